//! The protocol of the distributed transaction log (DTL): a second router keeps what a vDisk's owner has logged and the
//! backend doesn't have yet. `docs/formats/dtl.md` has every byte.
//!
//! It runs on the router's own listener; its methods and codes are disjoint from the router's.
//!
//! Invariant: every request that may change or lengthen something names its epoch, and a target refuses a lower one than
//! it has promised to (L4).

use crate::router::IO_MAX;
use crate::{Decode, DecodeError, Reader, message, tag};
use bytes::Bytes;
use model::{DtlGeneration, Epoch, Incarnation, Lsn, RouterId, VdiskId};

pub mod method {
    /// [`super::Open`] → [`super::Opened`]: what the target holds of a log.
    pub const OPEN: u16 = 0x40;
    /// [`super::Create`] → [`super::Opened`], after the target has asked arakoon (P12).
    pub const CREATE: u16 = 0x41;
    /// [`super::Append`] + records → [`super::Appended`]: the target has them in memory.
    pub const APPEND: u16 = 0x42;
    /// [`super::Sync`] → [`super::Synced`]: the target has them on stable storage.
    pub const SYNC: u16 = 0x43;
    /// [`super::Renew`] → [`super::Renewed`]: read leases, of many vDisks at once (P16).
    pub const RENEW: u16 = 0x44;
    /// [`super::Trim`] → `()`: what the backend holds isn't needed here.
    pub const TRIM: u16 = 0x45;
    /// [`super::Seal`] → [`super::Sealed`], once the last read lease has run out (P16).
    pub const SEAL: u16 = 0x46;
    /// [`super::ReadRecords`] → [`super::Records`] + records.
    pub const READ: u16 = 0x47;
    /// [`super::Trim`] → `()`: and the vDisk is forgotten here.
    pub const DROP: u16 = 0x48;
    /// [`super::LogsOf`] → [`super::LogList`]: what is held of one vDisk; seals nothing.
    pub const LOGS: u16 = 0x49;

    /// Is this method answered by the DTL?
    #[must_use]
    pub const fn is_dtl(method: u16) -> bool {
        OPEN <= method && method <= LOGS
    }
}

pub mod code {
    use crate::error::code::PROTOCOL_BASE;
    /// Class Refuse: a later epoch has sealed or created here (L4). Detail: that epoch, `u64`.
    pub const FENCED: u16 = PROTOCOL_BASE + 40;
    /// Class Refuse: the log is of another generation or epoch.
    pub const WRONG_GENERATION: u16 = PROTOCOL_BASE + 41;
    /// Class Refuse: no log of this vDisk: never created, or the target was wiped.
    pub const NO_LOG: u16 = PROTOCOL_BASE + 42;
    /// Class Retry: the records don't join what is here. Detail: the last LSN here, `u64`; send from behind it.
    pub const GAP: u16 = PROTOCOL_BASE + 43;
    /// Class Refuse: no room for this log.
    pub const FULL: u16 = PROTOCOL_BASE + 44;
    /// Class Refuse: the log's disk failed or what it held is damaged; it counts for nothing.
    pub const FAILED: u16 = PROTOCOL_BASE + 45;
    /// Class Refuse: arakoon's record of the vDisk doesn't name this target, generation and epoch (P12).
    pub const NOT_NAMED: u16 = PROTOCOL_BASE + 46;
    /// Class Refuse: the payload isn't the records announced.
    pub const BAD_RECORDS: u16 = PROTOCOL_BASE + 47;
    /// Class Retry: arakoon couldn't be asked.
    pub const UNKNOWN_RECORD: u16 = PROTOCOL_BASE + 48;
    /// Class Refuse: the log holds records that nobody said are in the backend.
    pub const NOT_EMPTY: u16 = PROTOCOL_BASE + 49;
}

/// Bytes of records in one request or answer at most: any one record fits, with room for its headers.
pub const RECORDS_MAX: u32 = 2 * IO_MAX;
/// Records in one append.
pub const APPEND_RECORDS_MAX: u32 = 4096;
/// Targets of one vDisk.
pub const TARGETS_MAX: usize = 2;
/// Logs of one vDisk that a target keeps: the current one, and older generations until they are in the backend.
pub const LOGS_MAX: usize = 4;
/// Leases renewed by one request.
pub const RENEW_MAX: usize = 4096;
/// How long an answer gives the right to serve reads, from the moment the owner sent the request (P16).
pub const LEASE_MS: u64 = 1000;

tag! {
    /// When a plain write is acknowledged.
    pub enum DtlMode {
        /// Every target has it in memory.
        Sync = 1,
        /// At once; a flush still waits for every target.
        Async = 2,
        /// There is no second copy of the log.
        NoTarget = 3,
    }

    /// What arakoon says about the second copy of a vDisk's log.
    pub enum DtlState {
        /// None is wanted.
        Standalone = 1,
        /// Targets are named and don't have everything yet: flushes go through to the backend.
        CatchingUp = 2,
        /// Every target has everything that is flushed and not in the backend.
        InSync = 3,
        /// Wanted, and there is none: flushes go through to the backend.
        Degraded = 4,
    }
}

message! {
    /// Targets that were InSync last, and their generation.
    pub struct DtlPromise {
        pub generation: DtlGeneration,
        pub targets: Vec<RouterId>,
        /// What their logs hold beyond counts for nothing any more: an owner has served without it (P10).
        pub through: Lsn,
    }

    /// The DTL of one vDisk, as arakoon has it. Every change asserts the whole old value.
    pub struct DtlFacts {
        pub state: DtlState,
        pub generation: DtlGeneration,
        pub targets: Vec<RouterId>,
        /// Highest LSN promised under the generations before (P13): a recovery that ends below it is a gap (L7).
        pub floor: Lsn,
        /// Until the next InSync: who may hold what was promised last.
        pub previous: Option<DtlPromise>,
    }

    /// A log, and who speaks for it.
    pub struct LogName {
        pub vdisk: VdiskId,
        pub epoch: Epoch,
        pub generation: DtlGeneration,
    }

    pub struct Open {
        pub log: LogName,
    }

    pub struct Create {
        pub log: LogName,
        /// Everything up to here is in the backend: the log begins behind it.
        pub base: Lsn,
    }

    /// What a target has of one log: the records `base + 1 ..= last`, without a gap.
    pub struct Held {
        pub generation: DtlGeneration,
        /// Of the owner that wrote it.
        pub epoch: Epoch,
        pub base: Lsn,
        pub last: Lsn,
        /// On stable storage through here.
        pub synced: Lsn,
        /// Records that were synced once are gone or unreadable: behind `last` something is missing.
        pub damaged: bool,
    }

    pub struct Opened {
        /// Of the target's process: when it changes, what wasn't synced may be gone (P12).
        pub incarnation: Incarnation,
        pub held: Held,
    }

    /// The payload is `count` records of the write log's format, one behind the other, with consecutive LSNs.
    pub struct Append {
        pub log: LogName,
        pub first: Lsn,
        pub count: u32,
    }

    pub struct Appended {
        pub last: Lsn,
    }

    pub struct Sync {
        pub log: LogName,
        pub through: Lsn,
    }

    pub struct Synced {
        pub through: Lsn,
    }

    pub struct Renew {
        pub logs: Vec<LogName>,
    }

    /// Those that got no lease; all others did.
    pub struct Renewed {
        pub refused: Vec<VdiskId>,
    }

    pub struct Trim {
        pub vdisk: VdiskId,
        pub epoch: Epoch,
        /// Everything up to here is in the backend.
        pub through: Lsn,
    }

    pub struct Seal {
        pub vdisk: VdiskId,
        /// Of the claimant: everything below is refused from now on.
        pub epoch: Epoch,
    }

    pub struct Sealed {
        pub incarnation: Incarnation,
        /// All synced, in order of generation.
        pub logs: Vec<Held>,
    }

    pub struct ReadRecords {
        pub vdisk: VdiskId,
        pub epoch: Epoch,
        pub generation: DtlGeneration,
        pub from: Lsn,
        /// At least one record comes, however large.
        pub bytes_max: u32,
    }

    /// The payload is `count` records from `first` on; none = the log ends before it.
    pub struct Records {
        pub first: Lsn,
        pub count: u32,
    }

    pub struct LogStatus {
        pub vdisk: VdiskId,
        /// Nothing below this epoch is taken any more.
        pub fence: Epoch,
        pub held: Held,
        /// About how much of it isn't in the backend.
        pub bytes: u64,
    }

    pub struct LogsOf {
        pub vdisk: VdiskId,
    }

    /// At most [`LOGS_MAX`].
    pub struct LogList {
        pub logs: Vec<LogStatus>,
    }
}

impl DtlFacts {
    /// A vDisk that was never opened, or wants no second copy.
    #[must_use]
    pub const fn standalone() -> Self {
        Self {
            state: DtlState::Standalone,
            generation: DtlGeneration::ZERO,
            targets: Vec::new(),
            floor: Lsn::ZERO,
            previous: None,
        }
    }

    /// As records had them before promises were bounded: all that was promised counts.
    pub(crate) fn decode_without_through(from: &mut Reader) -> Result<Self, DecodeError> {
        let (state, generation) = (Decode::decode(from)?, Decode::decode(from)?);
        let (targets, floor) = (Decode::decode(from)?, Decode::decode(from)?);
        let previous: Option<(DtlGeneration, Vec<RouterId>)> = Decode::decode(from)?;
        let previous = previous.map(|(generation, targets)| DtlPromise {
            generation,
            targets,
            through: Lsn(u64::MAX),
        });
        Ok(Self { state, generation, targets, floor, previous })
    }
}

/// The number in the detail of `FENCED` and `GAP`.
#[must_use]
pub fn detail_number(detail: &Bytes) -> Option<u64> {
    crate::decode_all(detail.clone()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{decode_all, encode_to_bytes};

    const LOG: LogName =
        LogName { vdisk: VdiskId(0x0a0b), epoch: Epoch(3), generation: DtlGeneration(5) };
    const HELD: Held = Held {
        generation: DtlGeneration(5),
        epoch: Epoch(3),
        base: Lsn(10),
        last: Lsn(20),
        synced: Lsn(15),
        damaged: false,
    };

    fn hex(bytes: &Bytes) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn messages_have_these_bytes() {
        let log = "0b0a000000000000000000000000000003000000000000000500000000000000";
        let n = |value: u8| format!("{value:02x}00000000000000");
        let held = format!("{}{}{}{}{}00", n(5), n(3), n(10), n(20), n(15));
        let vdisk = "0b0a0000000000000000000000000000";
        assert_eq!(hex(&encode_to_bytes(&Open { log: LOG })), log);
        assert_eq!(
            hex(&encode_to_bytes(&Create { log: LOG, base: Lsn(10) })),
            format!("{log}{}", n(10))
        );
        let append = Append { log: LOG, first: Lsn(11), count: 2 };
        assert_eq!(hex(&encode_to_bytes(&append)), format!("{log}{}02000000", n(11)));
        let opened = Opened { incarnation: Incarnation(9), held: HELD };
        assert_eq!(hex(&encode_to_bytes(&opened)), format!("{}{held}", n(9)));
        let renew = Renew { logs: vec![LOG] };
        assert_eq!(hex(&encode_to_bytes(&renew)), format!("01000000{log}"));
        let seal = Seal { vdisk: LOG.vdisk, epoch: Epoch(4) };
        assert_eq!(hex(&encode_to_bytes(&seal)), format!("{vdisk}{}", n(4)));
        let sealed = Sealed { incarnation: Incarnation(9), logs: vec![HELD] };
        assert_eq!(hex(&encode_to_bytes(&sealed)), format!("{}01000000{held}", n(9)));
        let trim = Trim { vdisk: LOG.vdisk, epoch: Epoch(3), through: Lsn(7) };
        assert_eq!(hex(&encode_to_bytes(&trim)), format!("{vdisk}{}{}", n(3), n(7)));
        let facts = DtlFacts {
            state: DtlState::InSync,
            generation: DtlGeneration(5),
            targets: vec![RouterId(1)],
            floor: Lsn(2),
            previous: Some(DtlPromise {
                generation: DtlGeneration(4),
                targets: Vec::new(),
                through: Lsn(9),
            }),
        };
        let router = "01000000000000000000000000000000";
        let expected = format!("03{}01000000{router}{}01{}00000000{}", n(5), n(2), n(4), n(9));
        assert_eq!(hex(&encode_to_bytes(&facts)), expected);
        assert_eq!(decode_all(encode_to_bytes(&facts)), Ok(facts));
        assert_eq!(decode_all(encode_to_bytes(&sealed)), Ok(sealed));
    }

    #[test]
    fn its_methods_are_not_the_routers() {
        for method in [1, 10, 32, 36, 0x3f, 0x4a, crate::common::method::STATUS] {
            assert!(!method::is_dtl(method));
        }
        assert!(method::is_dtl(method::OPEN) && method::is_dtl(method::LOGS));
    }
}
