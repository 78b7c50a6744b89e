//! Facts that live in arakoon and are read by more than one part: their keys and records.
//!
//! Keys are text, `/`-separated, so that an operator can read them. Records begin with a version byte.

use crate::dtl::{DtlFacts, DtlMode, DtlState};
use crate::{Decode, DecodeError, Encode, Reader, message, tag};
use bytes::Bytes;
use model::{
    AttachmentGeneration, EdgeId, Epoch, Incarnation, Lsn, NamespaceId, ObjectId, OsdId, RouterId,
    VdiskId,
};

/// Losses that the record of a vDisk keeps.
pub const LOSSES_MAX: usize = 64;

/// A record: version byte, then the message.
pub trait Record: Encode + Decode {
    /// The one that is written, and read unless the record knows older ones.
    const VERSION: u8 = 1;

    /// A record of another version that is read all the same.
    ///
    /// # Errors
    /// When it isn't.
    fn decode_older(version: u8, _from: &mut Reader) -> Result<Self, DecodeError> {
        Err(DecodeError::Illegal { what: "record version", value: version.into() })
    }

    #[must_use]
    fn to_record(&self) -> Bytes {
        let mut out = vec![Self::VERSION];
        self.encode(&mut out);
        Bytes::from(out)
    }

    /// # Errors
    /// When the bytes are no such record, or of another version.
    fn from_record(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let version = u8::decode(&mut reader)?;
        let value = if version == Self::VERSION {
            Self::decode(&mut reader)?
        } else {
            Self::decode_older(version, &mut reader)?
        };
        match reader.remaining() {
            0 => Ok(value),
            extra => Err(DecodeError::Trailing { extra }),
        }
    }
}

tag! {
    /// The life of an OSD (DESIGN of the backend); this version claims and uses them.
    pub enum OsdState {
        Claimed = 1,
        Good = 2,
        UnderReview = 3,
        Suspended = 4,
        Disqualified = 5,
        Draining = 6,
        Retired = 7,
    }

    pub enum Compression {
        Off = 1,
        /// Frames are probed; what doesn't pay is kept raw.
        Adaptive = 2,
        /// Every frame is tried.
        Always = 3,
    }

    pub enum Encryption {
        Off = 1,
        Aes256Gcm = 2,
    }

    pub enum RouterState {
        Online = 1,
        Draining = 2,
        Offline = 3,
    }

    pub enum AttachmentMode {
        Exclusive = 1,
        Shared = 2,
        ReadOnly = 3,
    }
}

message! {
    /// `osd/<id>`
    pub struct OsdRecord {
        pub osd: OsdId,
        pub name: String,
        pub addresses: Vec<String>,
        /// `datacenter/rack/host`
        pub domain: String,
        pub backend: String,
        pub state: OsdState,
        pub capacity_bytes: u64,
    }

    /// `preset/<name>`
    pub struct PresetRecord {
        pub name: String,
        pub version: u64,
        pub backend: String,
        /// As `PolicyList` prints it.
        pub policies: String,
        pub compression: Compression,
        pub compression_level: u8,
        pub encryption: Encryption,
    }

    /// `backend/<name>`
    pub struct BackendRecord {
        pub name: String,
    }

    /// `vpool/<name>`
    pub struct VpoolRecord {
        pub name: String,
        pub preset: String,
        pub sco_bytes: u64,
    }

    /// `vpool-dtl/<name>`: what vDisks made in it get; absent = no DTL.
    pub struct VpoolDtl {
        pub mode: DtlMode,
    }

    /// `router/<id>`
    pub struct RouterRecord {
        pub router: RouterId,
        pub name: String,
        pub addresses: Vec<String>,
        pub domain: String,
        pub state: RouterState,
        pub incarnation: Incarnation,
    }

    /// `vdisk/<id>`. Changed only by transactions that assert the whole old record.
    pub struct VdiskRecord {
        pub vdisk: VdiskId,
        pub name: String,
        pub size_bytes: u64,
        pub vpool: String,
        pub owner: RouterId,
        pub epoch: Epoch,
        /// Identity of the owner's write log that may hold what isn't in the backend yet; 0 = none ever.
        pub log_id: u64,
        /// Being deleted: refuses to open; deletion is resumed by the owner.
        pub deleting: bool,
    }

    /// `vdisk-dtl/<id>`, of vDisks that have a DTL or had one: then the mode is `NoTarget`, and what it says beside its log
    /// and the generation counts for nothing. A claim changes it together with the vDisk's record, so its epoch is
    /// that record's; the owner changes the facts, asserting the whole old value.
    pub struct DtlRecord {
        pub epoch: Epoch,
        pub mode: DtlMode,
        /// Of the owner's session, on which its right to read rests while not InSync (P16). 0 = nobody opened it yet.
        pub session: Incarnation,
        /// The owner's write log, once that holds everything above the backend's head; 0 = none does.
        pub log_id: u64,
        /// What that log holds before this position is of an ownership that is over, and counts for nothing (P10).
        pub log_from: u64,
        pub facts: DtlFacts,
    }

    /// `vdisk-dtl-targets/<id>`: how many targets the vDisk's DTL has by an operator's wish; absent = as many as there are
    /// further domains. Changed by the owner, asserting the vDisk's record.
    pub struct DtlTargets {
        pub count: u8,
    }

    /// `vdisk-contest/<id>`: how often in a row the vDisk was taken from an owner that an edge had no service from (P19).
    pub struct ContestRecord {
        pub rounds: u32,
        /// Who took it last, and the epoch of that.
        pub by: RouterId,
        pub epoch: Epoch,
    }

    /// What an operator gave up so that a vDisk starts (L7).
    pub struct Loss {
        /// For people; nothing is decided by it.
        pub at_unix_ms: u64,
        pub by: String,
        /// Who went on, and who owned it before.
        pub router: RouterId,
        pub owner: RouterId,
        /// The last epoch of the history that lost its end.
        pub epoch: Epoch,
        /// In the backend then.
        pub head: Lsn,
        /// The first LSN that was given up, and the last where that was known.
        pub from: Lsn,
        pub through: Option<Lsn>,
        /// Damage below this position of that write log was accepted; 0 = of none.
        pub log_id: u64,
        pub log_end: u64,
        pub missing: String,
    }

    /// `router-load/<id>`: what a router said last of what it carries. Nobody's right rests on it.
    pub struct RouterLoad {
        /// vDisks it owns.
        pub vdisks: u64,
        /// How many more it could take.
        pub room: u64,
        /// Its write log, and what is pinned in it.
        pub log_bytes: u64,
        pub log_used: u64,
    }

    /// `rebalance-turn`: who hands a vDisk over for the sake of load now, while its session lives.
    pub struct RebalanceTurn {
        pub router: RouterId,
        /// Of its session.
        pub incarnation: Incarnation,
        /// For people; nothing is decided by it.
        pub vdisk: VdiskId,
    }

    /// `router-maintenance/<id>`: an operator took the router out of service, over restarts too.
    pub struct MaintenanceRecord {
        /// For people; nothing is decided by it.
        pub at_unix_ms: u64,
        pub by: String,
    }

    /// `vdisk-loss/<id>`, of vDisks that lost something. Written before anybody serves what is left.
    pub struct LossRecord {
        /// In order; the oldest are forgotten.
        pub losses: Vec<Loss>,
    }

    pub struct AttachmentRecord {
        pub edge: EdgeId,
        pub edge_name: String,
        pub generation: AttachmentGeneration,
        pub mode: AttachmentMode,
        /// Where it runs, as `datacenter/rack/host`; empty: not known.
        pub domain: String,
    }

    /// `vdisk-attachments/<id>`. Generations only grow, whoever comes and goes (P4).
    pub struct AttachmentsRecord {
        pub last_generation: AttachmentGeneration,
        pub live: Vec<AttachmentRecord>,
    }
}

impl Record for OsdRecord {}
impl Record for PresetRecord {}
impl Record for BackendRecord {}
impl Record for VpoolRecord {}
impl Record for RouterRecord {}
impl Record for VpoolDtl {}
impl Record for VdiskRecord {}
impl Record for DtlRecord {
    /// 1 had no `log_from`, 2 no `through` of the previous promise.
    const VERSION: u8 = 3;

    fn decode_older(version: u8, from: &mut Reader) -> Result<Self, DecodeError> {
        if version != 2 {
            return Err(DecodeError::Illegal { what: "record version", value: version.into() });
        }
        Ok(Self {
            epoch: Decode::decode(from)?,
            mode: Decode::decode(from)?,
            session: Decode::decode(from)?,
            log_id: Decode::decode(from)?,
            log_from: Decode::decode(from)?,
            facts: DtlFacts::decode_without_through(from)?,
        })
    }
}
impl Record for DtlTargets {}
impl Record for ContestRecord {}
impl Record for LossRecord {}
impl Record for MaintenanceRecord {}
impl Record for RouterLoad {}
impl Record for RebalanceTurn {}

impl LossRecord {
    /// One more; a record in arakoon stays small.
    pub fn add(&mut self, loss: Loss) {
        self.losses.push(loss);
        let excess = self.losses.len().saturating_sub(LOSSES_MAX);
        self.losses.drain(..excess);
    }
}

impl DtlRecord {
    /// Of a vDisk that was never opened.
    #[must_use]
    pub const fn new(mode: DtlMode) -> Self {
        let facts = DtlFacts::standalone();
        let (epoch, session) = (Epoch::ZERO, Incarnation(0));
        Self { epoch, mode, session, log_id: 0, log_from: 0, facts }
    }

    /// When everything through `head` is in the backend and the owner has let go: nobody else is needed to go on.
    #[must_use]
    pub fn drained(&self, epoch: Epoch, head: Lsn) -> Self {
        let facts = DtlFacts {
            state: DtlState::Degraded,
            generation: self.facts.generation.next(),
            targets: Vec::new(),
            floor: head,
            previous: None,
        };
        Self { epoch, session: Incarnation(0), log_id: 0, log_from: 0, facts, ..self.clone() }
    }
}
impl Record for AttachmentsRecord {
    /// 1 didn't say where edges run.
    const VERSION: u8 = 2;

    fn decode_older(version: u8, from: &mut Reader) -> Result<Self, DecodeError> {
        if version != 1 {
            return Err(DecodeError::Illegal { what: "record version", value: version.into() });
        }
        type Before = ((EdgeId, String), (AttachmentGeneration, AttachmentMode));
        let last_generation = Decode::decode(from)?;
        let live: Vec<Before> = Decode::decode(from)?;
        let now = |((edge, edge_name), (generation, mode)): Before| AttachmentRecord {
            edge,
            edge_name,
            generation,
            mode,
            domain: String::new(),
        };
        Ok(Self { last_generation, live: live.into_iter().map(now).collect() })
    }
}

/// Keys. A prefix ends with `/`.
pub mod key {
    use super::{Bytes, NamespaceId, ObjectId, OsdId, RouterId, VdiskId};

    pub const OSDS: &str = "osd/";
    pub const PRESETS: &str = "preset/";
    pub const BACKENDS: &str = "backend/";
    pub const VPOOLS: &str = "vpool/";
    pub const ROUTERS: &str = "router/";
    pub const MAINTENANCE: &str = "router-maintenance/";
    pub const LOADS: &str = "router-load/";
    pub const VDISKS: &str = "vdisk/";
    pub const VDISK_NAMES: &str = "vdisk-name/";
    pub const VDISK_DTLS: &str = "vdisk-dtl/";
    pub const ATTACHMENTS: &str = "vdisk-attachments/";

    #[must_use]
    pub fn osd(osd: OsdId) -> Bytes {
        Bytes::from(format!("{OSDS}{osd}"))
    }

    #[must_use]
    pub fn preset(name: &str) -> Bytes {
        Bytes::from(format!("{PRESETS}{name}"))
    }

    #[must_use]
    pub fn backend(name: &str) -> Bytes {
        Bytes::from(format!("{BACKENDS}{name}"))
    }

    #[must_use]
    pub fn vpool(name: &str) -> Bytes {
        Bytes::from(format!("{VPOOLS}{name}"))
    }

    #[must_use]
    pub fn router(router: RouterId) -> Bytes {
        Bytes::from(format!("{ROUTERS}{router}"))
    }

    #[must_use]
    pub fn vdisk(vdisk: VdiskId) -> Bytes {
        Bytes::from(format!("{VDISKS}{vdisk}"))
    }

    #[must_use]
    pub fn vpool_dtl(name: &str) -> Bytes {
        Bytes::from(format!("vpool-dtl/{name}"))
    }

    #[must_use]
    pub fn vdisk_dtl(vdisk: VdiskId) -> Bytes {
        Bytes::from(format!("{VDISK_DTLS}{vdisk}"))
    }

    #[must_use]
    pub fn vdisk_dtl_targets(vdisk: VdiskId) -> Bytes {
        Bytes::from(format!("vdisk-dtl-targets/{vdisk}"))
    }

    /// The vDisk that such a key names.
    #[must_use]
    pub fn vdisk_of_dtl(key: &[u8]) -> Option<VdiskId> {
        str::from_utf8(key.strip_prefix(VDISK_DTLS.as_bytes())?).ok()?.parse().ok()
    }

    #[must_use]
    pub fn vdisk_contest(vdisk: VdiskId) -> Bytes {
        Bytes::from(format!("vdisk-contest/{vdisk}"))
    }

    #[must_use]
    pub fn router_maintenance(router: RouterId) -> Bytes {
        Bytes::from(format!("{MAINTENANCE}{router}"))
    }

    /// The router that such a key names.
    #[must_use]
    pub fn router_of_maintenance(key: &[u8]) -> Option<RouterId> {
        str::from_utf8(key.strip_prefix(MAINTENANCE.as_bytes())?).ok()?.parse().ok()
    }

    #[must_use]
    pub fn router_load(router: RouterId) -> Bytes {
        Bytes::from(format!("{LOADS}{router}"))
    }

    /// The router that such a key names.
    #[must_use]
    pub fn router_of_load(key: &[u8]) -> Option<RouterId> {
        str::from_utf8(key.strip_prefix(LOADS.as_bytes())?).ok()?.parse().ok()
    }

    #[must_use]
    pub const fn rebalance_turn() -> Bytes {
        Bytes::from_static(b"rebalance-turn")
    }

    #[must_use]
    pub fn vdisk_loss(vdisk: VdiskId) -> Bytes {
        Bytes::from(format!("vdisk-loss/{vdisk}"))
    }

    /// A router's session in arakoon.
    #[must_use]
    pub fn router_session(router: RouterId) -> Bytes {
        Bytes::from(format!("{ROUTERS}{router}"))
    }

    /// Name → id, as 16 little-endian bytes.
    #[must_use]
    pub fn vdisk_name(name: &str) -> Bytes {
        Bytes::from(format!("{VDISK_NAMES}{name}"))
    }

    #[must_use]
    pub fn attachments(vdisk: VdiskId) -> Bytes {
        Bytes::from(format!("{ATTACHMENTS}{vdisk}"))
    }

    /// The vDisk that such a key names.
    #[must_use]
    pub fn vdisk_of_attachments(key: &[u8]) -> Option<VdiskId> {
        str::from_utf8(key.strip_prefix(ATTACHMENTS.as_bytes())?).ok()?.parse().ok()
    }

    /// Everything of a namespace begins with this.
    #[must_use]
    pub fn namespace(namespace: NamespaceId) -> Bytes {
        Bytes::from(format!("ns/{namespace}/"))
    }

    /// Highest epoch seen, 8 little-endian bytes (L4).
    #[must_use]
    pub fn namespace_epoch(namespace: NamespaceId) -> Bytes {
        Bytes::from(format!("ns/{namespace}/epoch"))
    }

    #[must_use]
    pub fn namespace_info(namespace: NamespaceId) -> Bytes {
        Bytes::from(format!("ns/{namespace}/info"))
    }

    #[must_use]
    pub fn namespace_head(namespace: NamespaceId) -> Bytes {
        Bytes::from(format!("ns/{namespace}/head"))
    }

    /// Manifests; sorted by (epoch, number) within the namespace.
    #[must_use]
    pub fn manifests(namespace: NamespaceId) -> Bytes {
        Bytes::from(format!("ns/{namespace}/object/"))
    }

    #[must_use]
    pub fn manifest(namespace: NamespaceId, object: ObjectId) -> Bytes {
        Bytes::from(format!("ns/{namespace}/object/{}", object_text(object)))
    }

    /// Objects with fragments not stored yet.
    #[must_use]
    pub fn holes(namespace: NamespaceId) -> Bytes {
        Bytes::from(format!("ns/{namespace}/hole/"))
    }

    #[must_use]
    pub fn hole(namespace: NamespaceId, object: ObjectId) -> Bytes {
        Bytes::from(format!("ns/{namespace}/hole/{}", object_text(object)))
    }

    /// Fixed-width hexadecimal, so that text order is number order.
    fn object_text(object: ObjectId) -> String {
        format!("{}-{:016x}-{:016x}", object.vdisk, object.epoch.0, object.number.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtl::DtlPromise;
    use model::{DtlGeneration, Lsn, RouterId, ScoNumber};

    #[test]
    fn records_survive_their_bytes_and_refuse_other_versions() {
        let record = VdiskRecord {
            vdisk: VdiskId(1),
            name: "demo".into(),
            size_bytes: 4096,
            vpool: "default".into(),
            owner: RouterId(2),
            epoch: Epoch(3),
            log_id: 4,
            deleting: false,
        };
        let bytes = record.to_record();
        assert_eq!(VdiskRecord::from_record(bytes.clone()), Ok(record));
        let mut future = bytes.to_vec();
        future[0] = 9;
        assert!(VdiskRecord::from_record(Bytes::from(future)).is_err());
        assert!(VdiskRecord::from_record(bytes.slice(..bytes.len() - 1)).is_err());
    }

    #[test]
    fn a_dtl_record_of_the_version_before_is_read_and_all_that_it_promised_counts() {
        let promise = |through| DtlPromise {
            generation: DtlGeneration(4),
            targets: vec![RouterId(7)],
            through: Lsn(through),
        };
        let mut record = DtlRecord::new(DtlMode::Sync);
        record.facts.previous = Some(promise(u64::MAX));
        // `through` is the last field.
        let mut before = record.to_record().to_vec();
        before.truncate(before.len() - 8);
        before[0] = 2;
        assert_eq!(DtlRecord::from_record(Bytes::from(before.clone())), Ok(record.clone()));
        before.push(0);
        assert!(DtlRecord::from_record(Bytes::from(before.clone())).is_err(), "trailing");
        before.truncate(before.len() - 2);
        assert!(DtlRecord::from_record(Bytes::from(before)).is_err(), "cut");
        record.facts.previous = None;
        let mut before = record.to_record().to_vec();
        before[0] = 2;
        assert_eq!(DtlRecord::from_record(Bytes::from(before.clone())), Ok(record));
        before[0] = 1;
        assert!(DtlRecord::from_record(Bytes::from(before)).is_err());
    }

    #[test]
    fn attachments_of_the_version_before_are_read() {
        let live = AttachmentRecord {
            edge: EdgeId(5),
            edge_name: "edge-1".into(),
            generation: AttachmentGeneration(3),
            mode: AttachmentMode::Shared,
            domain: String::new(),
        };
        let record =
            AttachmentsRecord { last_generation: AttachmentGeneration(4), live: vec![live] };
        // The domain is last, and empty: four bytes of length.
        let mut before = record.to_record().to_vec();
        before.truncate(before.len() - 4);
        before[0] = 1;
        assert_eq!(AttachmentsRecord::from_record(Bytes::from(before)), Ok(record));
    }

    #[test]
    fn manifest_keys_sort_as_objects_were_committed() {
        let key = |epoch, number| {
            key::manifest(
                NamespaceId(1),
                ObjectId { vdisk: VdiskId(1), epoch: Epoch(epoch), number: ScoNumber(number) },
            )
        };
        assert!(key(1, 200) < key(2, 9));
        assert!(key(2, 9) < key(2, 10));
    }
}
