//! Where something listens: `127.0.0.1:7000`, `tcp://10.0.0.1:7000`, `tls://10.0.0.1:7000`, `unix:/run/x.sock`.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Endpoint {
    /// Plain TCP; loopback only, unless the configuration says otherwise in so many words.
    Tcp(SocketAddr),
    /// TCP with mutual TLS.
    Tls(SocketAddr),
    Unix(PathBuf),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseEndpointError {
    #[error("`{0}` isn't an endpoint: write IP:PORT, tcp://IP:PORT, tls://IP:PORT or unix:/PATH")]
    Form(String),
    #[error("`{0}` is plain TCP beyond loopback: write tls://… for mutual TLS")]
    PlainBeyondLoopback(String),
}

impl FromStr for Endpoint {
    type Err = ParseEndpointError;

    fn from_str(text: &str) -> Result<Self, ParseEndpointError> {
        let form = || ParseEndpointError::Form(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.starts_with('/') {
                Ok(Self::Unix(PathBuf::from(path)))
            } else {
                Err(form())
            };
        }
        if let Some(address) = text.strip_prefix("tls://") {
            return address.parse().map(Self::Tls).map_err(|_| form());
        }
        let plain = text.strip_prefix("tcp://").unwrap_or(text);
        let address: SocketAddr = plain.parse().map_err(|_| form())?;
        if address.ip().is_loopback() {
            Ok(Self::Tcp(address))
        } else {
            Err(ParseEndpointError::PlainBeyondLoopback(text.to_owned()))
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Tls(address) => write!(f, "tls://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_print_what_they_parsed() {
        for text in ["127.0.0.1:7000", "tls://10.0.0.1:7000", "unix:/run/a.sock", "[::1]:80"] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
        assert!(matches!(
            "10.0.0.1:7000".parse::<Endpoint>(),
            Err(ParseEndpointError::PlainBeyondLoopback(_))
        ));
        for text in ["localhost", "unix:relative", "tls://x", ""] {
            assert!(matches!(text.parse::<Endpoint>(), Err(ParseEndpointError::Form(_))), "{text}");
        }
    }
}
