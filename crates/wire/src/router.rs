//! The protocol of the router: block I/O from edges, and administration of vDisks.

use crate::dtl::DtlMode;
use crate::facts::RouterState;
use crate::{message, tag};
use bytes::Bytes;
use model::{
    AttachmentGeneration, EdgeId, Epoch, Incarnation, Lsn, ObjectId, RequestSeq, RouterId,
    ScoNumber, VdiskId,
};

pub mod method {
    /// [`super::Locate`] → [`super::Location`]. Any router answers.
    pub const LOCATE: u16 = 1;
    /// [`super::Attach`] → [`super::Attached`]. Only the owner; others redirect.
    pub const ATTACH: u16 = 2;
    /// [`super::ReplayComplete`] → `()`: from now on reads are served (P6).
    pub const REPLAY_COMPLETE: u16 = 3;
    /// [`super::Detach`] → `()`.
    pub const DETACH: u16 = 4;
    /// [`super::Read`] → [`super::ReadDone`] + payload.
    pub const READ: u16 = 5;
    /// [`super::Write`] + payload → [`super::Applied`].
    pub const WRITE: u16 = 6;
    /// [`super::Flush`] → [`super::Flushed`].
    pub const FLUSH: u16 = 7;
    /// [`super::Unmap`] → [`super::Applied`]: trim or write-zeroes of any length.
    pub const UNMAP: u16 = 8;
    /// [`super::BlockStatus`] → [`super::Extents`].
    pub const BLOCK_STATUS: u16 = 9;
    /// `()` → [`super::VdiskNames`]. Any router answers.
    pub const LIST: u16 = 10;
    /// [`super::Contest`] → `()`, to a router that isn't the owner: the owner gives me no service (P19). Attach again after
    /// it; whether the vDisk is served here then shows there.
    pub const CONTEST: u16 = 11;

    /// [`super::CreateVdisk`] → [`super::VdiskInfo`].
    pub const CREATE_VDISK: u16 = 32;
    /// [`super::VdiskName`] → `()`.
    pub const DELETE_VDISK: u16 = 33;
    /// [`super::ResizeVdisk`] → [`super::VdiskInfo`].
    pub const RESIZE_VDISK: u16 = 34;
    /// [`super::VdiskName`] → [`super::VdiskInfo`]. Owner gives live facts, others redirect.
    pub const SHOW_VDISK: u16 = 35;
    /// [`super::VdiskName`] → [`super::SyncDone`] when all is in the backend and no holes are left.
    pub const SYNC_VDISK: u16 = 36;
    /// [`super::Transfer`] → [`super::Transferred`]: the owner hands the vDisk to another router; others redirect.
    pub const TRANSFER_VDISK: u16 = 37;
    /// [`super::SetStanding`] → `()`: whether this router takes vDisks.
    pub const SET_STANDING: u16 = 38;
    /// [`super::Adoption`] → `()`, from an owner to who shall be the next: could you start it? Its page map is brought up
    /// to date meanwhile.
    pub const PREPARE_ADOPTION: u16 = 39;
    /// [`super::Adoption`] → `()`: it is yours by arakoon's record; open it now.
    pub const ADOPT: u16 = 40;
    /// [`super::Contested`] → `()`, to the owner: an edge says that it gets no service. Refuted by `REFUTED`; an owner that
    /// can't recover it, or has no room for it, answers `YIELDED`.
    pub const CONTESTED: u16 = 41;
    /// [`super::RecoverVdisk`] → [`super::Recovery`]: what keeps a vDisk from starting, and to start it without that (L7).
    pub const RECOVER_VDISK: u16 = 42;
    /// [`super::EndAttachment`] → [`super::EndedAttachment`]: an operator knows that an edge doesn't come back (P6).
    pub const END_ATTACHMENT: u16 = 48;
    /// [`super::SetVdisk`] → [`super::VdiskInfo`]: changes the second copy of a served vDisk's log. Only the owner; others
    /// redirect. May be repeated.
    pub const SET_VDISK: u16 = 49;
    /// `()` → [`super::MapCopies`]: the page maps that this router has, its own and copies.
    pub const LIST_MAPS: u16 = 46;
    /// [`super::ReadMap`] → [`super::MapPart`] + payload (a part of a page map): the next part of this router's copy, all of
    /// them as of one TLog. Between routers.
    pub const READ_MAP: u16 = 50;
    /// `()` → [`super::Carried`]: what is asked of this router now, and what it could still take.
    pub const CARRIED: u16 = 51;
}

pub mod code {
    use crate::error::code::PROTOCOL_BASE;
    /// Class Redirect; detail: [`super::Location`].
    pub const NOT_OWNER: u16 = PROTOCOL_BASE;
    /// Class Refuse: no vDisk of that name.
    pub const NO_VDISK: u16 = PROTOCOL_BASE + 1;
    /// Class Refuse: the name is taken.
    pub const EXISTS: u16 = PROTOCOL_BASE + 2;
    /// Class Refuse: a later attachment took over (P4).
    pub const ATTACHMENT_FENCED: u16 = PROTOCOL_BASE + 3;
    /// Class Refuse: another edge is attached exclusively; the message names it.
    pub const ATTACHED_ELSEWHERE: u16 = PROTOCOL_BASE + 4;
    /// Class Refuse: outside the vDisk, or larger than one request may be.
    pub const OUT_OF_RANGE: u16 = PROTOCOL_BASE + 5;
    /// Class Refuse: the attachment is read-only.
    pub const READ_ONLY: u16 = PROTOCOL_BASE + 6;
    /// Class Refuse: the payload doesn't match its checksums: damaged on the way; send it again.
    pub const BAD_CHECKSUM: u16 = PROTOCOL_BASE + 7;
    /// Class Retry: recovery is under way.
    pub const RECOVERING: u16 = PROTOCOL_BASE + 8;
    /// Class Retry: the backend can't give the data now (L5: an I/O error, never zeroes).
    pub const UNREADABLE: u16 = PROTOCOL_BASE + 9;
    /// Class Refuse: not attached, or the router restarted since; attach again.
    pub const NOT_ATTACHED: u16 = PROTOCOL_BASE + 10;
    /// Class Refuse: recovery found a gap; an operator must decide (L7). The message says what is missing. Detail: of one
    /// that isn't the owner and can't take the vDisk from it, [`super::Location`]; else none.
    pub const GAP: u16 = PROTOCOL_BASE + 11;
    /// Class Refuse: the name, size or state doesn't allow it; the message says why.
    pub const INVALID: u16 = PROTOCOL_BASE + 12;
    /// Class Retry: the vDisk is in use and must be detached first.
    pub const IN_USE: u16 = PROTOCOL_BASE + 13;
    /// Class Retry: a hand-over didn't come about; the owner serves on. The message says why.
    pub const HANDOVER_ABORTED: u16 = PROTOCOL_BASE + 14;
    /// Class Retry: the vDisk stays with its owner for now, contested or not (P19). The message says why.
    pub const REFUTED: u16 = PROTOCOL_BASE + 15;
    /// Class Retry: the vDisk is served on as it was; the message says what stood against the change.
    pub const UNCHANGED: u16 = PROTOCOL_BASE + 16;
    /// Class Refuse: the contested owner misses something, or has no room for it, and serves nothing by this epoch: whoever
    /// reaches all of it may claim the vDisk. The message says what is missing.
    pub const YIELDED: u16 = PROTOCOL_BASE + 17;
    /// Class Refuse: there is no page map here that would help, or its parts aren't kept any longer; ask another router.
    pub const NO_MAP: u16 = PROTOCOL_BASE + 18;
    /// Class Retry: the write log here has no room for what must be recovered of the vDisk; another router may have. Detail:
    /// of one that isn't the owner, [`super::Location`]; else none.
    pub const NO_ROOM: u16 = PROTOCOL_BASE + 19;
}

/// Largest read or write in one request. An edge splits longer ones.
pub const IO_MAX: u32 = 4 << 20;
/// Extents in one answer.
pub const EXTENTS_MAX: u32 = 4096;
/// Exceptions to the contiguous applied sequence that a router keeps (P3); an edge has at most as many requests in flight.
pub const INFLIGHT_MAX: usize = 1024;
/// Longest name of a vDisk in bytes.
pub const NAME_MAX: usize = 255;

tag! {
    pub enum AttachMode {
        Exclusive = 1,
        Shared = 2,
        ReadOnly = 3,
    }

    pub enum Durability {
        /// Acknowledged as the vPool's mode says.
        Normal = 1,
        /// Acknowledged when durable (FUA).
        Durable = 2,
    }

    pub enum UnmapKind {
        /// Discard: reads give zeroes afterwards.
        Trim = 1,
        /// The same result, and asked for as data.
        Zero = 2,
    }

    pub enum RecoveryVerdict {
        /// It starts, or would, by itself.
        Whole = 1,
        Gap = 2,
        /// An operator gave up what is missing.
        Accepted = 3,
    }

    pub enum ExtentKind {
        Data = 1,
        /// Not mapped; reads as zeroes.
        Hole = 2,
    }
}

message! {
    pub struct Locate {
        pub name: String,
    }

    pub struct RouterAddress {
        pub router: RouterId,
        /// Tried in turn.
        pub addresses: Vec<String>,
    }

    /// Where a vDisk is served, and where else to go.
    pub struct Location {
        pub vdisk: VdiskId,
        pub size_bytes: u64,
        pub epoch: Epoch,
        pub owner: RouterAddress,
        /// The other routers, best first.
        pub routers: Vec<RouterAddress>,
        pub list_version: u64,
        pub cluster: String,
    }

    pub struct Attach {
        pub name: String,
        pub edge: EdgeId,
        /// Shown to whoever is refused because of this one.
        pub edge_name: String,
        pub mode: AttachMode,
        /// The generation this edge holds already and comes back with; `None` = a new attachment.
        pub reclaim: Option<AttachmentGeneration>,
        /// Push out another edge that holds it exclusively.
        pub take_over: bool,
        /// Where the edge runs, as `datacenter/rack/host`; empty: not known. Routers near it come first.
        pub domain: String,
    }

    /// Sequences of one attachment that are applied: all `<= contiguous`, and the exceptions above it (P3).
    pub struct AppliedSequences {
        pub contiguous: RequestSeq,
        pub above: Vec<RequestSeq>,
    }

    pub struct Attached {
        pub vdisk: VdiskId,
        pub generation: AttachmentGeneration,
        pub epoch: Epoch,
        /// Of the router: a change means its memory is gone.
        pub incarnation: Incarnation,
        pub size_bytes: u64,
        pub applied: AppliedSequences,
        /// Highest LSN recovered; acknowledged writes above it must be replayed if their sequence isn't applied.
        pub last_lsn: Lsn,
    }

    pub struct ReplayComplete {
        pub vdisk: VdiskId,
        pub generation: AttachmentGeneration,
    }

    pub struct Detach {
        pub vdisk: VdiskId,
        pub generation: AttachmentGeneration,
    }

    pub struct Read {
        pub vdisk: VdiskId,
        pub generation: AttachmentGeneration,
        pub offset: u64,
        pub len: u32,
    }

    pub struct ReadDone {
        /// CRC-32C of the part of the payload in each cluster touched.
        pub checksums: Vec<u32>,
    }

    pub struct Write {
        pub vdisk: VdiskId,
        pub generation: AttachmentGeneration,
        pub seq: RequestSeq,
        pub offset: u64,
        pub durability: Durability,
        /// CRC-32C of the part of the payload in each cluster touched, computed at the edge.
        pub checksums: Vec<u32>,
    }

    pub struct Unmap {
        pub vdisk: VdiskId,
        pub generation: AttachmentGeneration,
        pub seq: RequestSeq,
        pub offset: u64,
        pub len: u64,
        pub kind: UnmapKind,
        pub durability: Durability,
    }

    /// The position of what was applied (P2).
    pub struct Applied {
        pub epoch: Epoch,
        pub lsn: Lsn,
    }

    pub struct Flush {
        pub vdisk: VdiskId,
        pub generation: AttachmentGeneration,
    }

    /// Everything up to this LSN is durable; the edge forgets only acknowledged writes at or below it (P2).
    pub struct Flushed {
        pub epoch: Epoch,
        pub lsn: Lsn,
    }

    pub struct BlockStatus {
        pub vdisk: VdiskId,
        pub generation: AttachmentGeneration,
        pub offset: u64,
        pub len: u64,
        pub extents_max: u32,
    }

    pub struct Extent {
        pub len: u64,
        pub kind: ExtentKind,
    }

    /// From the asked offset on, without gaps; may end early.
    pub struct Extents {
        pub extents: Vec<Extent>,
    }

    pub struct VdiskNames {
        pub names: Vec<(String, u64)>,
    }

    pub struct CreateVdisk {
        pub name: String,
        pub size_bytes: u64,
        pub vpool: String,
        /// Absent: as the vPool says.
        pub dtl: Option<DtlMode>,
    }

    pub struct VdiskName {
        pub name: String,
    }

    pub struct ResizeVdisk {
        pub name: String,
        pub size_bytes: u64,
        /// Also shrink, down to the last mapped cluster.
        pub force: bool,
    }

    pub struct SetVdisk {
        pub name: String,
        /// Absent: as it is.
        pub dtl: Option<DtlMode>,
        /// 1 or 2; absent: as it is.
        pub dtl_targets: Option<u8>,
    }

    pub struct VdiskInfo {
        pub vdisk: VdiskId,
        pub name: String,
        pub size_bytes: u64,
        pub vpool: String,
        pub owner: RouterId,
        pub owner_name: String,
        pub epoch: Epoch,
        /// More facts as one JSON object (attachments, LSNs, log and backend lag, usage).
        pub details_json: String,
    }

    pub struct SyncDone {
        pub lsn: Lsn,
        pub objects: u64,
    }

    pub struct Transfer {
        pub name: String,
        pub to: RouterId,
    }

    pub struct Transferred {
        pub owner: RouterId,
        pub epoch: Epoch,
        /// How long requests waited.
        pub pause_ms: u32,
    }

    pub struct SetStanding {
        /// Offline: out of service until it is told to be online again, restarts or not.
        pub state: RouterState,
        /// Who says so.
        pub by: String,
    }

    pub struct Adoption {
        pub vdisk: VdiskId,
    }

    pub struct Contest {
        pub name: String,
        pub edge: EdgeId,
        /// The attachment that isn't served; `None` = the edge couldn't even attach.
        pub generation: Option<AttachmentGeneration>,
        /// Of the owner that is meant.
        pub epoch: Epoch,
    }

    pub struct Contested {
        pub vdisk: VdiskId,
        pub epoch: Epoch,
        pub generation: Option<AttachmentGeneration>,
        /// Who would take it.
        pub by: RouterId,
    }

    pub struct RecoverVdisk {
        pub name: String,
        /// Start without what is missing. Asserts that the former owner doesn't run any more.
        pub accept_loss: bool,
        /// Who says so; kept with the loss.
        pub by: String,
    }

    /// Where writes of a vDisk may lie that aren't in the backend.
    pub struct RecoveryPlace {
        pub router: RouterId,
        pub name: String,
        /// `write log 00ab…`, `DTL log of generation 5`
        pub what: String,
        /// It answered.
        pub reached: bool,
        /// What it showed ends here.
        pub last: Option<Lsn>,
        pub bytes: u64,
        /// Synced writes in it can't be read any more.
        pub damaged: bool,
    }

    pub struct Recovery {
        pub vdisk: VdiskId,
        pub name: String,
        pub verdict: RecoveryVerdict,
        /// Before the loss was accepted.
        pub owner: RouterId,
        pub owner_name: String,
        pub epoch: Epoch,
        /// Who looked, and serves it once the loss is accepted.
        pub router_name: String,
        /// The last LSN in the backend.
        pub head: Lsn,
        /// The first LSN that may be missing.
        pub from: Lsn,
        /// The last; absent: nobody knows.
        pub through: Option<Lsn>,
        /// In words.
        pub missing: String,
        pub places: Vec<RecoveryPlace>,
    }

    pub struct EndAttachment {
        pub name: String,
        /// Its name or id.
        pub edge: String,
        /// Also of an edge that is connected now.
        pub force: bool,
    }

    pub struct EndedAttachment {
        pub edge: EdgeId,
        pub edge_name: String,
        pub generation: AttachmentGeneration,
        pub mode: AttachMode,
        pub connected: bool,
        /// Its replay was awaited: what it had neither flushed nor sent again is given up.
        pub owes_replay: bool,
    }

    /// The page map of a vDisk at one router.
    pub struct MapCopy {
        pub vdisk: VdiskId,
        /// The last object whose TLog it holds.
        pub object: Option<ObjectId>,
        pub last_lsn: Lsn,
        /// The owner's own; else a copy.
        pub serving: bool,
        /// The owner knows: as of which LSN the newest checkpoint in the backend is.
        pub checkpoint: Option<Lsn>,
    }

    pub struct MapCopies {
        pub maps: Vec<MapCopy>,
    }

    /// Of a router. Nobody's right rests on it.
    pub struct Carried {
        /// vDisks that are served or opened here.
        pub vdisks: u64,
        /// How many more it could take.
        pub room: u64,
        /// What is asked of them together, damped: requests per second, and what bytes count as.
        pub load: u64,
        /// None of them was opened too lately to say.
        pub is_known: bool,
        /// It hands vDisks over by their number.
        pub by_number: bool,
    }

    /// Part after part, each asked for once; who loses an answer begins anew.
    pub struct ReadMap {
        pub vdisk: VdiskId,
        /// As [`MapPart::cut`] said; 0: a new one.
        pub cut: u64,
        /// From 0.
        pub part: u32,
        /// A map that ends before this SCO isn't wanted.
        pub least: ScoNumber,
    }

    pub struct MapPart {
        /// Names the view of the map that the parts are of.
        pub cut: u64,
    }
}

/// A vDisk name: 1 to 255 bytes of printable ASCII without `/`, `@`, spaces and quotes, not starting with `-` or `.`.
#[must_use]
pub fn is_legal_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= NAME_MAX
        && !name.starts_with(['-', '.'])
        && name.chars().all(|c| c.is_ascii_graphic() && !"/@'\"\\`".contains(c))
}

/// Detail of a redirect when only an address is known.
#[must_use]
pub fn encode_location(location: &Location) -> Bytes {
    crate::encode_to_bytes(location)
}
