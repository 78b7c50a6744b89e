//! What a new cluster looks like, and whether the options of a later `up` still fit it. Pure: options in, facts out.
//!
//! An option that is left out never contradicts; one that is given must agree with what the cluster was made with,
//! because changing it silently would either do nothing or move data. Only the NBD address may change.

use crate::cluster::{Choices, Cluster, Compression, Dtl, Encryption, Member, Transport};
use crate::role::ProcessRole;
use model::{ByteSize, PolicyList};
use runtime::config::Parsed;
use runtime::endpoint::Endpoint;
use std::collections::BTreeSet;
use std::path::Path;
use std::str::FromStr;

/// A unix socket's address has 108 bytes in Linux; some are left for whatever a role adds.
const SOCKET_PATH_MAX: usize = 100;
/// More processes than this on one machine is a typing error.
const COUNT_MAX: u16 = 64;
const ASDS_DEFAULT: u16 = 6;
const DEFAULT_NBD: &str = "127.0.0.1:10809";
const DEFAULT_POLICY: &str = "4,2,5,1;2,2,3,1";
pub const DEFAULT_VDISK: &str = "demo:4GiB";

/// The options of `up` that shape a cluster, as they were given.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub struct Wanted {
    /// Nodes of the key-value store: 1, 3 or 5 [default: 3]
    #[arg(long, value_name = "N")]
    pub arakoons: Option<u16>,

    /// Disks, each served by a process of its own [default: 6]
    #[arg(long, value_name = "N")]
    pub asds: Option<u16>,

    /// Processes that turn objects into fragments [default: 2]
    #[arg(long, value_name = "N")]
    pub proxies: Option<u16>,

    /// Processes that own vDisks [default: 2]
    #[arg(long, value_name = "N")]
    pub routers: Option<u16>,

    /// Protection, best first: data, parity, needed for an acknowledgement, most per disk [default: 4,2,5,1;2,2,3,1]
    #[arg(long, value_name = "K,M,C,X;…")]
    pub policy: Option<PolicyList>,

    /// [default: adaptive]
    #[arg(long, value_enum)]
    pub compression: Option<Compression>,

    /// [default: aes-256-gcm]
    #[arg(long, value_enum)]
    pub encryption: Option<Encryption>,

    /// Copy of each vDisk's write log at another router [default: sync, and none where there is one router]
    #[arg(long, value_enum)]
    pub dtl: Option<Dtl>,

    /// Where vDisks are served: IP:PORT or unix:/PATH; may change from one `up` to the next [default: 127.0.0.1:10809]
    #[arg(long, value_name = "ADDRESS", value_parser = nbd_address)]
    pub nbd: Option<Endpoint>,

    /// Most that one ASD may store [default: a fair share of what the file system has]
    #[arg(long, value_name = "SIZE")]
    pub asd_capacity: Option<ByteSize>,

    /// Segments of each router's write log [default: the router's own]
    #[arg(long, value_name = "N")]
    pub log_segments: Option<u32>,

    /// Size of one such segment [default: the router's own]
    #[arg(long, value_name = "SIZE")]
    pub log_segment_size: Option<ByteSize>,

    /// How the processes talk to each other [default: unix]
    #[arg(long, value_enum)]
    pub transport: Option<Transport>,
}

fn nbd_address(text: &str) -> Result<Endpoint, String> {
    let endpoint: Endpoint = text.parse().map_err(|_| {
        format!("`{text}` isn't an NBD address: write IP:PORT on loopback, like {DEFAULT_NBD}, or unix:/PATH")
    })?;
    match endpoint {
        Endpoint::Tls(_) => Err(format!("`{text}`: NBD over TLS isn't served by this version")),
        Endpoint::Tcp(_) | Endpoint::Unix(_) => Ok(endpoint),
    }
}

/// `NAME:SIZE`, a vDisk that `up` makes if it isn't there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VdiskWanted {
    pub name: String,
    pub size: ByteSize,
}

impl FromStr for VdiskWanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || format!("`{text}` isn't a vDisk: write NAME:SIZE, like demo:4GiB");
        let (name, size) = text.rsplit_once(':').ok_or_else(form)?;
        let size = size.parse().map_err(|error: model::ParseSizeError| error.to_string())?;
        check_vdisk(name, size)?;
        Ok(Self { name: name.to_owned(), size })
    }
}

/// # Errors
/// When a router would refuse a vDisk of this name and size, with the reason.
pub fn check_vdisk(name: &str, size: ByteSize) -> Result<(), String> {
    if !wire::router::is_legal_name(name) {
        return Err(format!(
            "`{name}` can't be a vDisk's name: use up to {} printable ASCII characters without `/`, `@`, spaces and \
             quotes, not starting with `-` or `.`",
            wire::router::NAME_MAX
        ));
    }
    if size.0 == 0 || !size.0.is_multiple_of(model::CLUSTER_SIZE) {
        return Err(format!(
            "vDisk {name}: its size must be a multiple of {} B, above 0",
            model::CLUSTER_SIZE
        ));
    }
    Ok(())
}

/// Why there can't be such a cluster.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error("--arakoons {0}: a majority needs 1, 3 or 5 nodes")]
    Arakoons(u16),
    #[error("--{option} {count}: must lie between 1 and {COUNT_MAX}")]
    Count { option: &'static str, count: u16 },
    #[error(
        "--policy {policies}: none of these can be met by {asds} ASDs; lower k + m or give more with --asds"
    )]
    Policy { policies: PolicyList, asds: u16 },
    #[error("can't find a free TCP port: {0}")]
    Port(std::io::Error),
}

/// A cluster that doesn't exist yet. `free_port` gives a port of loopback that nobody listens on.
///
/// # Errors
/// When the numbers don't make a cluster.
pub fn new_cluster(
    wanted: &Wanted,
    dir: &Path,
    id: &str,
    free_port: &mut dyn FnMut() -> std::io::Result<u16>,
) -> Result<Cluster, PlanError> {
    let counts = counts(wanted)?;
    let policy = wanted
        .policy
        .clone()
        .unwrap_or_else(|| DEFAULT_POLICY.parse().expect("the default is a policy"));
    let asds = counts[1].1;
    if policy.level() == model::DomainLevel::Disk
        && !policy
            .policies()
            .iter()
            .any(|policy| u32::from(policy.c()) <= u32::from(asds) * u32::from(policy.x()))
    {
        return Err(PlanError::Policy { policies: policy, asds });
    }
    let choices = Choices {
        transport: wanted.transport.unwrap_or(Transport::Unix),
        policy: Parsed(policy),
        compression: wanted.compression.unwrap_or(Compression::Adaptive),
        encryption: wanted.encryption.unwrap_or(Encryption::Aes256Gcm),
        dtl: wanted.dtl.unwrap_or_else(|| default_dtl(&counts)),
        asd_capacity_bytes: wanted.asd_capacity.map(|size| size.0),
        log_segments: wanted.log_segments,
        log_segment_size_bytes: wanted.log_segment_size.map(|size| size.0),
    };
    let mut ports = BTreeSet::new();
    let mut members = Vec::new();
    for (role, count) in counts {
        for number in 1..=count {
            let id = format!("{role}-{number}");
            let endpoint = Parsed(endpoint(choices.transport, dir, &id, &mut ports, free_port)?);
            let raft_id = (role == ProcessRole::Arakoon).then_some(u64::from(number));
            members.push(Member {
                role,
                id,
                endpoint,
                raft_id,
                netns: None,
                osd: None,
                initialized: false,
            });
        }
    }
    let nbd = wanted
        .nbd
        .clone()
        .unwrap_or_else(|| DEFAULT_NBD.parse().expect("the default is an endpoint"));
    Ok(Cluster { id: id.to_owned(), dir: dir.to_owned(), nbd, choices, members })
}

/// What each of several ASDs on one file system may take, leaving some for logs; `None` when there is next to nothing.
#[must_use]
pub fn fair_share(free_bytes: u64, asds: Option<u16>) -> Option<ByteSize> {
    const UNIT: u64 = 64 << 20;
    let share = free_bytes / 10 * 8 / u64::from(asds.unwrap_or(ASDS_DEFAULT).max(1));
    Some(ByteSize(share / UNIT * UNIT)).filter(|share| share.0 > 0)
}

/// A flush at one place only is nobody's wish where there is a second one; a router alone has nobody to copy to (P14).
fn default_dtl(counts: &[(ProcessRole, u16)]) -> Dtl {
    let routers = counts.iter().find(|(role, _)| *role == ProcessRole::Router);
    if routers.is_some_and(|(_, count)| 1 < *count) { Dtl::Sync } else { Dtl::None }
}

fn counts(wanted: &Wanted) -> Result<[(ProcessRole, u16); 5], PlanError> {
    let arakoons = wanted.arakoons.unwrap_or(3);
    if ![1, 3, 5].contains(&arakoons) {
        return Err(PlanError::Arakoons(arakoons));
    }
    let checked = |option, count: Option<u16>, default| match count.unwrap_or(default) {
        count @ 1..=COUNT_MAX => Ok(count),
        count => Err(PlanError::Count { option, count }),
    };
    Ok([
        (ProcessRole::Arakoon, arakoons),
        (ProcessRole::Asd, checked("asds", wanted.asds, ASDS_DEFAULT)?),
        (ProcessRole::AlbaProxy, checked("proxies", wanted.proxies, 2)?),
        (ProcessRole::Router, checked("routers", wanted.routers, 2)?),
        (ProcessRole::Edge, 1),
    ])
}

fn endpoint(
    transport: Transport,
    dir: &Path,
    id: &str,
    taken: &mut BTreeSet<u16>,
    free_port: &mut dyn FnMut() -> std::io::Result<u16>,
) -> Result<Endpoint, PlanError> {
    let socket = dir.join(id).join("sock");
    if transport == Transport::Unix && socket.as_os_str().len() <= SOCKET_PATH_MAX {
        return Ok(Endpoint::Unix(socket));
    }
    // The kernel may offer a port twice, as nobody listens on it yet. Bounded by the number of ports.
    let mut port = free_port().map_err(PlanError::Port)?;
    for _ in 0..u16::MAX {
        if taken.insert(port) {
            break;
        }
        port = free_port().map_err(PlanError::Port)?;
    }
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    Ok(if transport == Transport::Tls { Endpoint::Tls(address) } else { Endpoint::Tcp(address) })
}

/// The first option that doesn't agree with the cluster that is there, in words for the user.
#[must_use]
pub fn contradiction(wanted: &Wanted, cluster: &Cluster) -> Option<String> {
    let count = |role| u16::try_from(cluster.of_role(role).count()).unwrap_or(u16::MAX);
    let Choices { transport, policy, compression, encryption, dtl, .. } = &cluster.choices;
    let size =
        |bytes: Option<u64>| bytes.map_or_else(own_default, |bytes| spaceless(ByteSize(bytes)));
    let capacity = size(cluster.choices.asd_capacity_bytes);
    let segment_size = size(cluster.choices.log_segment_size_bytes);
    let segments = cluster.choices.log_segments.map_or_else(own_default, |count| count.to_string());
    [
        differs("--arakoons", wanted.arakoons, &count(ProcessRole::Arakoon)),
        differs("--asds", wanted.asds, &count(ProcessRole::Asd)),
        differs("--proxies", wanted.proxies, &count(ProcessRole::AlbaProxy)),
        differs("--routers", wanted.routers, &count(ProcessRole::Router)),
        differs("--policy", wanted.policy.as_ref().map(ToString::to_string), &policy.0.to_string()),
        differs("--compression", wanted.compression.as_ref().map(value_name), &value_name(compression)),
        differs("--encryption", wanted.encryption.as_ref().map(value_name), &value_name(encryption)),
        differs("--dtl", wanted.dtl.as_ref().map(value_name), &value_name(dtl)),
        differs("--transport", wanted.transport.as_ref().map(value_name), &value_name(transport)),
        differs("--asd-capacity", wanted.asd_capacity.map(spaceless), &capacity),
        differs("--log-segments", wanted.log_segments.map(|count| count.to_string()), &segments),
        differs("--log-segment-size", wanted.log_segment_size.map(spaceless), &segment_size),
    ]
    .into_iter()
    .flatten()
    .next()
    .map(|what| {
        format!(
            "{what} when it was made; leave the option out to go on with the cluster in {}, or make another with --dir",
            cluster.dir.display()
        )
    })
}

fn own_default() -> String {
    "the role's own default".to_owned()
}

fn spaceless(size: ByteSize) -> String {
    size.to_string().replace(' ', "")
}

fn value_name<T: clap::ValueEnum>(value: &T) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

fn differs<T: PartialEq + std::fmt::Display>(
    option: &str,
    given: Option<T>,
    made_with: &T,
) -> Option<String> {
    given
        .filter(|given| given != made_with)
        .map(|given| format!("{option} {given}: the cluster had {made_with}"))
}

#[cfg(test)]
mod tests;
