//! Mutual TLS. The cluster has its own certificate authority; a certificate names the role of its holder, and both ends
//! check the other's: an ASD refuses an edge even when the edge's certificate is genuine.
//!
//! The role stands in the subject alternative name as `<role>.holdfast.internal`, so a client asks for the role it
//! means to talk to, and addresses may change without new certificates.

use crate::config::TlsSection;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use wire::Role;

const ROLE_SUFFIX: &str = ".holdfast.internal";

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error(
        "can't read {path}: {problem}; it must be a PEM file made by `holdfast up` or `holdfast cluster init`"
    )]
    File { path: PathBuf, problem: String },
    #[error("certificate {path} is for role {found}, not for role {wanted} of this process")]
    Role { path: PathBuf, found: String, wanted: Role },
    #[error("certificate {path} can't be used: {problem}")]
    Unusable { path: PathBuf, problem: String },
    #[error("can't make a certificate: {0}")]
    Make(#[from] rcgen::Error),
}

/// What this process shows, and whose signatures it accepts.
#[derive(Debug, Clone)]
pub struct TlsIdentity {
    pub(crate) server: Arc<ServerConfig>,
    pub(crate) client: Arc<ClientConfig>,
}

impl TlsIdentity {
    /// # Errors
    /// When files are missing or don't fit together, or the certificate is for another role.
    pub fn load(section: &TlsSection, role: Role) -> Result<Self, TlsError> {
        let ca = read_certificates(&section.ca)?;
        let chain = read_certificates(&section.cert)?;
        let key = PrivateKeyDer::from_pem_file(&section.key).map_err(|error| TlsError::File {
            path: section.key.clone(),
            problem: error.to_string(),
        })?;
        let found = chain.first().map(|cert| roles_of(cert)).unwrap_or_default();
        if !found.contains(&role) {
            let names: Vec<&str> = found.iter().map(|role| role.name()).collect();
            let found = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            return Err(TlsError::Role { path: section.cert.clone(), found, wanted: role });
        }
        let unusable =
            |path: &Path, problem: String| TlsError::Unusable { path: path.to_owned(), problem };
        let mut roots = RootCertStore::empty();
        for cert in ca {
            roots.add(cert).map_err(|error| unusable(&section.ca, error.to_string()))?;
        }
        let roots = Arc::new(roots);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
                .build()
                .map_err(|error| unusable(&section.ca, error.to_string()))?;
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| unusable(&section.cert, error.to_string()))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(|error| unusable(&section.cert, error.to_string()))?;
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| unusable(&section.cert, error.to_string()))?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(|error| unusable(&section.cert, error.to_string()))?;
        Ok(Self { server: Arc::new(server), client: Arc::new(client) })
    }
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let file_error = |problem: String| TlsError::File { path: path.to_owned(), problem };
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
        .map_err(|error| file_error(error.to_string()))?
        .collect::<Result<_, _>>()
        .map_err(|error| file_error(error.to_string()))?;
    if certificates.is_empty() {
        Err(file_error("no certificate inside".into()))
    } else {
        Ok(certificates)
    }
}

/// Roles that a certificate proves. Garbage proves none.
pub(crate) fn roles_of(certificate: &CertificateDer<'_>) -> Vec<Role> {
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(certificate) else {
        return Vec::new();
    };
    let Ok(Some(names)) = parsed.subject_alternative_name() else { return Vec::new() };
    let role = |name: &x509_parser::extensions::GeneralName<'_>| {
        let x509_parser::extensions::GeneralName::DNSName(text) = name else { return None };
        text.strip_suffix(ROLE_SUFFIX).and_then(Role::from_name)
    };
    names.value.general_names.iter().filter_map(role).collect()
}

/// The name a client asks for when it means to talk to `role`.
pub(crate) fn server_name(role: Role) -> ServerName<'static> {
    ServerName::try_from(format!("{}{ROLE_SUFFIX}", role.name()))
        .expect("role names are legal DNS labels")
}

/// A certificate and its private key, PEM.
#[derive(Clone)]
pub struct CertAndKey {
    pub cert_pem: String,
    pub key_pem: String,
}

/// A certificate for this long; renewing is issuing a new one.
const VALID_DAYS: i64 = 3650;

fn valid_span(params: &mut rcgen::CertificateParams) {
    let days = |unix_ms: u64| i64::try_from(unix_ms / 86_400_000).unwrap_or(0);
    let today = days(crate::clock::unix_ms());
    let date = |days_since_epoch: i64| {
        // Civil date from a day count (Howard Hinnant, "chrono-compatible low-level date algorithms").
        let shifted = days_since_epoch + 719_468;
        let era = shifted.div_euclid(146_097);
        let day_of_era = shifted.rem_euclid(146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let day = u8::try_from(day_of_year - (153 * shifted_month + 2) / 5 + 1).unwrap_or(1);
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        rcgen::date_time_ymd(
            i32::try_from(year).unwrap_or(2100),
            u8::try_from(month).unwrap_or(1),
            day,
        )
    };
    // A day of slack for machines whose clocks disagree.
    params.not_before = date(today - 1);
    params.not_after = date(today + VALID_DAYS);
}

/// Makes a certificate authority for a new cluster.
///
/// # Errors
/// When the library can't make keys.
pub fn make_authority(cluster: &str) -> Result<CertAndKey, TlsError> {
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, format!("Holdfast cluster {cluster}"));
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
    valid_span(&mut params);
    let key = rcgen::KeyPair::generate()?;
    let cert = params.self_signed(&key)?;
    Ok(CertAndKey { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
}

/// Issues a certificate for one process.
///
/// # Errors
/// When the authority's files aren't what [`make_authority`] made.
pub fn issue(authority: &CertAndKey, role: Role, name: &str) -> Result<CertAndKey, TlsError> {
    let ca_key = rcgen::KeyPair::from_pem(&authority.key_pem)?;
    let issuer = rcgen::Issuer::from_ca_cert_pem(&authority.cert_pem, ca_key)?;
    let mut params = rcgen::CertificateParams::new(vec![format!("{}{ROLE_SUFFIX}", role.name())])?;
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.extended_key_usages = vec![
        rcgen::ExtendedKeyUsagePurpose::ServerAuth,
        rcgen::ExtendedKeyUsagePurpose::ClientAuth,
    ];
    valid_span(&mut params);
    let key = rcgen::KeyPair::generate()?;
    let cert = params.signed_by(&key, &issuer)?;
    Ok(CertAndKey { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
}

#[cfg(test)]
mod tests;
