//! An ASD made of `asd-core`'s store on its twins, with a disk that may be slow, full, failing or treacherous.
//!
//! Any ASD may lose power in the middle of a batch: its unsynced writes are then lost, kept or torn. Only an *unlucky* one
//! also loses writes, puts them elsewhere, lies about syncs, rots, or comes back empty: what a single disk does to the
//! fragments it was trusted with is what the redundancy is for; what two do at once is past every promise.
//!
//! Invariant: on a lucky disk, what was answered as stored is stored.

use asd_core::crc;
use asd_core::disk::{Disk, DiskError, FileId, ReadAt};
use asd_core::index::Lookup;
use asd_core::read::{Reading, Want, read};
use asd_core::record::Kind;
use asd_core::space::Limits;
use asd_core::store::{Op, Options, Outcome, Progress, Put, Store};
use asd_core::twin::{Dice, MemoryDisk, MemoryIndex, Power, Survival};
use bytes::Bytes;
use model::{Now, OsdId};
use sim::{Chance, FaultCounts, NodeId, Random};
use wire::asd::{DiskState, PutCondition};

const SEGMENT: u64 = 64 << 10;

/// What the disk below a store may do.
#[derive(Debug, Clone, Copy)]
pub struct Treachery {
    /// Fails, and half of the time it took effect all the same.
    pub write_error: Chance,
    pub lost_write: Chance,
    pub misdirected_write: Chance,
    pub lying_sync: Chance,
}

impl Treachery {
    pub const NONE: Self = Self {
        write_error: Chance::NEVER,
        lost_write: Chance::NEVER,
        misdirected_write: Chance::NEVER,
        lying_sync: Chance::NEVER,
    };
}

/// The twin, behind what may go wrong on the way to it.
pub struct FaultyDisk {
    twin: MemoryDisk,
    random: Random,
    treachery: Treachery,
    /// So many more operations before the power fails.
    fuse: Option<u64>,
    counts: FaultCounts,
}

impl FaultyDisk {
    fn is_off(&self) -> bool {
        self.fuse == Some(0)
    }

    /// Whether the power still lasts for this operation.
    fn spend(&mut self) -> bool {
        match &mut self.fuse {
            None => true,
            Some(0) => false,
            Some(left) => {
                *left -= 1;
                0 < *left
            }
        }
    }
}

fn off() -> DiskError {
    DiskError::Io("power is off".to_owned())
}

impl ReadAt for FaultyDisk {
    fn read_at(&self, file: FileId, offset: u64, len: usize) -> Result<Vec<u8>, DiskError> {
        if self.is_off() { Err(off()) } else { self.twin.read_at(file, offset, len) }
    }
}

impl Disk for FaultyDisk {
    fn list(&self) -> Result<Vec<(FileId, u64)>, DiskError> {
        self.twin.list()
    }

    fn create(&mut self, file: FileId, len: u64) -> Result<(), DiskError> {
        if self.spend() { self.twin.create(file, len) } else { Err(off()) }
    }

    fn write(&mut self, file: FileId, offset: u64, parts: &[Bytes]) -> Result<(), DiskError> {
        let was_off = self.is_off();
        if !self.spend() {
            // The write during which the power fails may be there in part.
            if !was_off {
                self.twin.write(file, offset, parts)?;
            }
            return Err(off());
        }
        if self.random.happens(self.treachery.write_error) {
            self.counts.count("asd write error");
            if self.random.happens(Chance::percent(50)) {
                self.counts.count("asd write error that took effect");
                self.twin.write(file, offset, parts)?;
            }
            return Err(DiskError::Io("simulated".to_owned()));
        }
        if self.random.happens(self.treachery.lost_write) {
            self.counts.count("asd lost write");
            return Ok(());
        }
        if self.random.happens(self.treachery.misdirected_write) {
            self.counts.count("asd misdirected write");
            let len = parts.iter().map(Bytes::len).sum::<usize>() as u64;
            let (_, size) =
                self.twin.list()?.into_iter().find(|(id, _)| *id == file).expect("open");
            let place = self.random.below((size - len) / 512 + 1) * 512;
            return self.twin.write(file, place, parts);
        }
        self.twin.write(file, offset, parts)
    }

    fn sync(&mut self, file: FileId) -> Result<(), DiskError> {
        if !self.spend() {
            return Err(off());
        }
        if self.random.happens(self.treachery.lying_sync) {
            self.counts.count("asd lying sync");
            return Ok(());
        }
        self.twin.sync(file)
    }

    fn refresh(&mut self, file: FileId) -> Result<(), DiskError> {
        if self.spend() { self.twin.refresh(file) } else { Err(off()) }
    }

    fn remove(&mut self, file: FileId) -> Result<(), DiskError> {
        if self.spend() { self.twin.remove(file) } else { Err(off()) }
    }
}

enum State {
    Up(Box<Store<FaultyDisk, MemoryIndex>>),
    Down(Box<(FaultyDisk, MemoryIndex)>),
    /// What is on the disk can't be opened: an operator's affair.
    Refused,
}

pub struct Asd {
    pub osd: OsdId,
    pub node: NodeId,
    pub unlucky: bool,
    /// Every answer takes long.
    pub slow: bool,
    options: Options,
    random: Random,
    dice: Dice,
    state: State,
    pub counts: FaultCounts,
}

impl Asd {
    pub fn new(random: &mut Random, (osd, node): (OsdId, NodeId), segments: u64) -> Self {
        let limits = Limits::new(segments * SEGMENT, SEGMENT).expect("within the limits");
        let dice = Dice::new(random.u64());
        let mut asd = Self {
            osd,
            node,
            unlucky: false,
            slow: false,
            options: Options { osd, limits },
            random: random.fork(),
            dice,
            state: State::Refused,
            counts: FaultCounts::default(),
        };
        asd.state = State::Down(Box::new((asd.empty_disk(), MemoryIndex::new(Power::stays()))));
        asd
    }

    fn empty_disk(&mut self) -> FaultyDisk {
        FaultyDisk {
            twin: MemoryDisk::new(Power::stays()),
            random: self.random.fork(),
            treachery: Treachery::NONE,
            fuse: None,
            counts: FaultCounts::default(),
        }
    }

    pub fn is_up(&self) -> bool {
        matches!(self.state, State::Up(_))
    }

    /// Nothing it was given can be had from it again.
    pub fn has_refused(&self) -> bool {
        matches!(self.state, State::Refused)
    }

    pub fn all_counts(&self) -> FaultCounts {
        let mut all = self.counts.clone();
        match &self.state {
            State::Up(store) => all.add(&store.disk().counts),
            State::Down(parts) => all.add(&parts.0.counts),
            State::Refused => {}
        }
        all
    }

    pub fn disk_state(&self) -> DiskState {
        match &self.state {
            State::Up(store) => store.state(),
            State::Down(_) | State::Refused => DiskState::Failed,
        }
    }

    /// From now on, until the power fails or it is told otherwise.
    pub fn betray(&mut self, treachery: Treachery) {
        if let State::Up(store) = &mut self.state {
            store.disk_mut().treachery = treachery;
        }
    }

    /// The power will fail during the n-th operation from now.
    pub fn light_fuse(&mut self, operations: u64) {
        if let State::Up(store) = &mut self.state {
            store.disk_mut().fuse = Some(operations);
        }
    }

    /// The power failed in the middle of something.
    pub fn is_off(&self) -> bool {
        matches!(&self.state, State::Up(store) if store.disk().is_off())
    }

    fn take_parts(&mut self) -> Option<Box<(FaultyDisk, MemoryIndex)>> {
        match std::mem::replace(&mut self.state, State::Refused) {
            State::Up(store) => {
                let (mut disk, index) = store.into_parts();
                self.counts.add(&std::mem::take(&mut disk.counts));
                (disk.treachery, disk.fuse) = (Treachery::NONE, None);
                Some(Box::new((disk, index)))
            }
            State::Down(parts) => Some(parts),
            State::Refused => None,
        }
    }

    /// kill -9.
    pub fn kill(&mut self) {
        let Some(parts) = self.take_parts() else { return };
        let (disk, index) = *parts;
        let twin = disk.twin.after_kill(Power::stays());
        let index = index.after_kill(Power::stays());
        self.state = State::Down(Box::new((FaultyDisk { twin, ..disk }, index)));
    }

    pub fn power_cut(&mut self) {
        let Some(parts) = self.take_parts() else { return };
        let (disk, index) = *parts;
        let survival = match self.random.below(4) {
            0 => Survival::Nothing,
            1 => Survival::Everything,
            _ => Survival::Torn,
        };
        self.counts.count(match survival {
            Survival::Nothing => "asd unsynced lost",
            Survival::Everything => "asd unsynced kept",
            Survival::Torn | Survival::Shredded => "asd unsynced torn",
        });
        let twin = disk.twin.after_power_cut(survival, &mut self.dice, Power::stays());
        let index = if self.random.happens(Chance::percent(10)) {
            self.counts.count("asd index gone");
            MemoryIndex::new(Power::stays())
        } else {
            index.after_power_cut(&mut self.dice, Power::stays())
        };
        self.state = State::Down(Box::new((FaultyDisk { twin, ..disk }, index)));
    }

    /// The disk is taken out and an empty one put in its place, under the same name.
    pub fn empty(&mut self) {
        let _old = self.take_parts();
        self.counts.count("asd disk replaced");
        self.state = State::Down(Box::new((self.empty_disk(), MemoryIndex::new(Power::stays()))));
    }

    pub fn start(&mut self, now: Now) {
        let Some(parts) = self.take_parts() else { return };
        let (disk, index) = *parts;
        match Store::open(disk, index, self.options, now) {
            Ok((store, recovery)) => {
                for (kind, happened) in [
                    ("asd: index rebuilt", recovery.rebuilt),
                    ("asd: records replayed", 0 < recovery.replayed),
                    ("asd: torn end wiped", 0 < recovery.wiped),
                    ("asd: loss of records found", 0 < recovery.lost),
                ] {
                    if happened {
                        self.counts.count(kind);
                    }
                }
                assert!(self.unlucky || recovery.lost == 0, "{}: {recovery:?}", self.osd);
                self.state = State::Up(Box::new(store));
            }
            Err(error) => {
                assert!(self.unlucky, "{} doesn't start on an honest disk: {error}", self.osd);
                self.counts.count("asd: refused to start");
            }
        }
    }

    /// A store that failed to write tries whether it can again; a broken one is opened again.
    pub fn try_again(&mut self, now: Now) {
        let State::Up(store) = &mut self.state else { return };
        if store.needs_probe() {
            self.counts.count("asd: writes tried again");
            store.probe(now);
        } else if store.broken().is_some() && !store.disk().is_off() {
            self.counts.count("asd: opened again");
            let treachery = store.disk().treachery;
            self.kill();
            self.start(now);
            self.betray(treachery);
        }
    }

    /// Stores or deletes; on stable storage when it is answered.
    pub fn carry_out(&mut self, op: &Op, now: Now) -> Outcome {
        let State::Up(store) = &mut self.state else { return Outcome::Failed };
        let outcome = store.commit(std::slice::from_ref(op), now)[0];
        if matches!(op, Op::Delete(_)) {
            for _ in 0..8 {
                match store.compact(SEGMENT, now) {
                    Progress::Copied(_) => {}
                    Progress::Freed(_) => self.counts.count("asd: segment freed"),
                    Progress::Idle | Progress::Pinned(_) | Progress::Blocked => break,
                }
            }
        }
        if outcome == Outcome::Full {
            self.counts.count("asd full");
        }
        outcome
    }

    pub fn read(&self, key: &[u8], want: Want) -> Option<Reading> {
        let State::Up(store) = &self.state else { return None };
        Some(read(store.index(), store.disk(), self.osd, key, want).expect("the index is sound"))
    }

    /// Every fragment it holds.
    pub fn keys(&self) -> Vec<Bytes> {
        let State::Up(store) = &self.state else { return Vec::new() };
        let entries = store.index().entries_from(&[], usize::MAX).expect("the index is sound");
        let puts = entries.into_iter().filter(|(_, entry)| entry.kind == Kind::Put);
        puts.map(|(key, _)| key).collect()
    }

    /// Flips a bit somewhere in what is stored.
    pub fn rot(&mut self) {
        let keys = self.keys();
        let Some(key) = self.random.pick(&keys).cloned() else { return };
        let State::Up(store) = &mut self.state else { return };
        let entry = store.index().get(&key).expect("sound").expect("just listed");
        let offset = entry.at.offset + self.random.below(u64::from(entry.data_len) + 64);
        store.disk_mut().twin.flip(entry.at.file, offset);
        self.counts.count("asd rot");
    }
}

pub fn put(key: Bytes, data: Bytes, condition: PutCondition) -> Op {
    let checksums = crc::blocks(&data);
    Op::Put(Put { key, data, checksums, condition })
}
