//! Frames of SCOs read from the backend: a bounded cache, and one fetch per frame however many ask.
//!
//! Invariant: what is in the cache was verified, cluster by cluster, against the checksums the edge computed (L5).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use model::{ObjectId, ScoNumber, VdiskId};
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use router_core::CLUSTER;
use router_core::page::Location;
use router_core::sco::{Frame, FrameError, GROUP, TRAILER, cluster_ranges, frame_range};
use tokio::sync::oneshot;
use wire::proxy::code::UNREADABLE;
use wire::proxy::{RANGES_MAX, ReadDone, ReadObject, method};

use crate::backend::{Backend, BackendError};

/// How long one fetch tries.
const PATIENCE: Duration = Duration::from_secs(10);
/// Frames asked for in one call, of two ranges each at most: 2 MiB.
const CALL_FRAMES: usize = RANGES_MAX / 2;
/// What a frame in the cache takes besides its bytes, about.
const ENTRY: u64 = 128;

/// Why a cluster can't be read. Never answered with zeroes (L5).
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// No proxy can be reached, or none can do it now: this passes.
    #[error("object {object} can't be read now: {reason}")]
    Backend { object: ObjectId, reason: String },
    /// The backend says that it can't rebuild it.
    #[error("object {object} can't be read: {reason}")]
    Gone { object: ObjectId, reason: String },
    #[error("object {object} is damaged: {reason}")]
    Damaged { object: ObjectId, reason: String },
    #[error("the page map can't be read: {0}")]
    Map(String),
    /// It is being rebuilt from the backend's TLogs (L6).
    #[error("the page map is damaged ({0}) and is being rebuilt; try again")]
    MapDamaged(String),
    /// As above, and somebody is at it already.
    #[error("{0}")]
    MapBehind(String),
    #[error("the router is stopping")]
    Stopping,
}

/// How much of a frame is read. Readers at random want one of its clusters, and copying four takes longer; who comes again
/// for another one gets them all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    Whole,
    /// The cluster in this slot of the SCO.
    Slot(u32),
}

impl Part {
    /// For a reader of so many clusters of a frame, `location` among them.
    #[must_use]
    pub const fn with(clusters: usize, location: Location) -> Self {
        match clusters {
            1 => Self::Slot(location.slot()),
            _ => Self::Whole,
        }
    }

    fn add_ranges(self, location: Location, to: &mut Vec<(u64, u32)>) {
        match self {
            Self::Whole => to.push(frame_range(location)),
            Self::Slot(_) => to.extend(cluster_ranges(location)),
        }
    }

    fn len(self, location: Location) -> usize {
        match self {
            Self::Whole => frame_range(location).1 as usize,
            Self::Slot(_) => CLUSTER + TRAILER,
        }
    }

    fn is_in(self, frame: &Frame, location: Location) -> bool {
        match self {
            Self::Whole => frame.len() == self.len(location),
            Self::Slot(_) => frame.has(location),
        }
    }

    fn verify(self, location: Location, bytes: Bytes) -> Result<Frame, FrameError> {
        match self {
            Self::Whole => Frame::verify(location, bytes),
            Self::Slot(_) => Frame::verify_one(location, bytes),
        }
    }
}

/// Which frame of which SCO.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FrameKey {
    vdisk: VdiskId,
    number: ScoNumber,
    index: u32,
}

impl FrameKey {
    #[must_use]
    pub const fn of(vdisk: VdiskId, location: Location) -> Self {
        Self { vdisk, number: location.number(), index: location.slot() / GROUP }
    }
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<FrameKey, Frame> for ByBytes {
    fn weight(&self, _key: &FrameKey, frame: &Frame) -> u64 {
        frame.len() as u64 + ENTRY
    }
}

/// What is to be read of one frame, and a location in it.
type Wanted = (Location, Part);

type Waiters = Vec<oneshot::Sender<Result<Frame, ReadError>>>;

struct Shared {
    cache: Cache<FrameKey, Frame, ByBytes>,
    under_way: Mutex<HashMap<(FrameKey, Part), Waiters>>,
    backend: Backend,
}

/// Reads frames. Clones share the cache.
#[derive(Clone)]
pub struct Frames {
    shared: Arc<Shared>,
}

impl Frames {
    #[must_use]
    pub fn new(capacity: u64, backend: Backend) -> Self {
        let items = model::usize_of(capacity / 16_384).max(16);
        let cache = Cache::with_weighter(items, capacity, ByBytes);
        Self { shared: Arc::new(Shared { cache, under_way: Mutex::default(), backend }) }
    }

    #[must_use]
    pub fn cached(&self, key: &FrameKey) -> Option<Frame> {
        self.shared.cache.get(key)
    }

    /// Starts fetching what isn't cached of these frames, all of one SCO; one result for each, in order.
    pub fn fetch(&self, object: ObjectId, wanted: &[Wanted]) -> Vec<Fetched> {
        let mut mine = Vec::new();
        let fetched = wanted.iter().map(|wanted| self.join(object, *wanted, &mut mine)).collect();
        for some in mine.chunks(CALL_FRAMES) {
            let claim = self.claim(object, some.to_vec());
            tokio::spawn(claim.fetch());
        }
        fetched
    }

    /// At least one cluster, fetched by the caller itself unless somebody is at it already: a task for it would cost more
    /// than asking.
    ///
    /// # Errors
    /// When it can't be read or fails its checksum.
    pub async fn one(&self, object: ObjectId, location: Location) -> Result<Frame, ReadError> {
        let mut mine = Vec::new();
        let fetched = self.join(object, (location, Part::with(1, location)), &mut mine);
        if !mine.is_empty() {
            self.claim(object, mine).fetch().await;
        }
        fetched.get().await
    }

    /// What is there already or on its way; else the caller must see to what is added to `mine`.
    fn join(&self, object: ObjectId, (location, part): Wanted, mine: &mut Vec<Wanted>) -> Fetched {
        let key = FrameKey::of(object.vdisk, location);
        // Before the cache is looked at: what is fetched enters it first and leaves here then.
        let mut under_way = self.shared.under_way();
        let part = match self.shared.cache.get(&key) {
            Some(frame) if part.is_in(&frame, location) => return Fetched::Ready(frame),
            Some(_) => Part::Whole,
            None => part,
        };
        let (sender, receiver) = oneshot::channel();
        let other = if under_way.contains_key(&(key, Part::Whole)) { Part::Whole } else { part };
        let waiters = under_way.entry((key, other)).or_insert_with(|| {
            mine.push((location, part));
            Vec::new()
        });
        waiters.push(sender);
        Fetched::Coming(receiver)
    }

    fn claim(&self, object: ObjectId, wanted: Vec<Wanted>) -> Claim {
        Claim { shared: Arc::clone(&self.shared), object, wanted }
    }
}

/// Frames of one object that somebody fetches. Given up, those who wait for them are told to try again.
struct Claim {
    shared: Arc<Shared>,
    object: ObjectId,
    wanted: Vec<Wanted>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        for (location, part) in &self.wanted {
            let key = FrameKey::of(self.object.vdisk, *location);
            self.shared.under_way().remove(&(key, *part));
        }
    }
}

/// A frame, or the promise of one.
pub enum Fetched {
    Ready(Frame),
    Coming(oneshot::Receiver<Result<Frame, ReadError>>),
}

impl Fetched {
    /// # Errors
    /// When the frame can't be read or fails its checksums.
    pub async fn get(self) -> Result<Frame, ReadError> {
        match self {
            Self::Ready(frame) => Ok(frame),
            Self::Coming(receiver) => receiver.await.unwrap_or(Err(ReadError::Stopping)),
        }
    }
}

impl Shared {
    fn under_way(&self) -> MutexGuard<'_, HashMap<(FrameKey, Part), Waiters>> {
        // Changes are single steps, so a panic elsewhere leaves a usable state.
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claim {
    async fn fetch(mut self) {
        let object = self.object;
        let mut ranges = Vec::with_capacity(2 * self.wanted.len());
        for (location, part) in &self.wanted {
            part.add_ranges(*location, &mut ranges);
        }
        let ask = ReadObject { namespace: object.vdisk.into(), object, ranges };
        let answer = self
            .shared
            .backend
            .call::<_, ReadDone>(method::READ_OBJECT, &ask, Bytes::new(), PATIENCE)
            .await;
        let mut payload =
            answer.map(|(_, payload)| payload).map_err(|error| failed(object, &error));
        for (location, part) in std::mem::take(&mut self.wanted) {
            let len = part.len(location);
            let frame = match &mut payload {
                Err(error) => Err(error.clone()),
                Ok(rest) if rest.len() < len => Err(ReadError::Damaged {
                    object,
                    reason: "the backend's answer is short".to_owned(),
                }),
                // Copied: each frame in the cache would keep the whole answer, many times as long (L8).
                Ok(rest) => part
                    .verify(location, Bytes::copy_from_slice(&rest.split_to(len)))
                    .map_err(|error| ReadError::Damaged { object, reason: error.to_string() }),
            };
            if let Err(error) = &frame {
                tracing::error!(%error, "a frame can't be read");
            }
            let key = FrameKey::of(object.vdisk, location);
            if let Ok(frame) = &frame {
                self.shared.cache.insert(key, frame.clone());
            }
            let waiters = self.shared.under_way().remove(&(key, part));
            for waiter in waiters.unwrap_or_default() {
                let _ = waiter.send(frame.clone());
            }
        }
    }
}

fn failed(object: ObjectId, error: &BackendError) -> ReadError {
    let reason = error.to_string();
    match error {
        BackendError::Unavailable { said: Some(UNREADABLE), .. } | BackendError::Refused(_) => {
            ReadError::Gone { object, reason }
        }
        BackendError::Unavailable { .. } => ReadError::Backend { object, reason },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::router::read_failed;
    use model::Epoch;
    use wire::router::code;
    use wire::{ErrorClass, WireError};

    /// A proxy that takes connections and never says a word.
    fn silent_backend() -> (std::net::TcpListener, Backend) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("127.0.0.1:{}", listener.local_addr().unwrap().port());
        let me = runtime::peer::Identity::new(wire::Role::Router, "r", "c", None).unwrap();
        let backend = Backend::new(&[endpoint.parse().unwrap()], &me);
        (listener, backend)
    }

    /// L8: who reads a frame reads it for all who want it meanwhile.
    #[tokio::test]
    async fn a_read_that_is_given_up_leaves_nobody_waiting_for_it() {
        let (_listener, backend) = silent_backend();
        let frames = Frames::new(1 << 20, backend);
        let object = ObjectId { vdisk: VdiskId(1), epoch: Epoch(1), number: ScoNumber(1) };
        let location = Location::new(ScoNumber(1), 0, 1);
        for _ in 0..2 {
            let mut reader = Box::pin(frames.one(object, location));
            assert!(futures_pending(&mut reader).await, "it asks the proxy");
            let mut mine = Vec::new();
            let other = frames.join(object, (location, Part::Slot(0)), &mut mine);
            assert!(mine.is_empty(), "one reads for all");
            drop(reader);
            let told = other.get().await;
            assert!(matches!(told, Err(ReadError::Stopping)), "{told:?}");
        }
    }

    /// As a proxy would send it, when each slot holds the cluster of its own number.
    fn frame(part: Part, location: Location) -> Frame {
        let cluster = |slot: u32| vec![u8::try_from(slot).unwrap(); CLUSTER];
        let trailer = |slot: u32| {
            let sum = router_core::crc32c(&cluster(slot)).to_le_bytes();
            [&u64::from(slot).to_le_bytes()[..], &sum[..], &[0; 4]].concat()
        };
        let slots = match part {
            Part::Whole => 0..location.group(),
            Part::Slot(slot) => slot..slot + 1,
        };
        let bytes: Vec<u8> =
            slots.clone().flat_map(cluster).chain(slots.flat_map(trailer)).collect();
        assert_eq!(bytes.len(), part.len(location));
        part.verify(location, bytes.into()).unwrap()
    }

    /// The first reader of a frame gets its cluster; the next one, for another, gets all.
    #[tokio::test]
    async fn whoever_reads_on_in_a_frame_gets_all_of_it() {
        let (_listener, backend) = silent_backend();
        let frames = Frames::new(1 << 20, backend);
        let object = ObjectId { vdisk: VdiskId(1), epoch: Epoch(1), number: ScoNumber(1) };
        let [one, two] = [1, 2].map(|slot| Location::new(ScoNumber(1), slot, 4));
        let ask = |location, clusters| {
            let mut mine = Vec::new();
            let fetched =
                frames.join(object, (location, Part::with(clusters, location)), &mut mine);
            (fetched, mine)
        };
        assert_eq!(ask(one, 1).1, [(one, Part::Slot(1))]);
        assert_eq!(ask(one, 1).1, [], "it is on its way");
        assert_eq!(
            ask(one, 2).1,
            [(one, Part::Whole)],
            "one cluster isn't what this one waits for"
        );
        assert_eq!(ask(two, 1).1, [], "it comes with the whole");

        frames.shared.under_way().clear();
        let key = FrameKey::of(object.vdisk, one);
        frames.shared.cache.insert(key, frame(Part::Slot(1), one));
        let (there, mine) = ask(one, 1);
        assert_eq!(mine, []);
        let (data, _) = there.get().await.unwrap().cluster(one, model::Cluster(1)).unwrap();
        assert_eq!(data, vec![1; CLUSTER]);
        assert!(matches!(ask(two, 1), (Fetched::Coming(_), mine) if mine == [(two, Part::Whole)]));

        frames.shared.under_way().clear();
        frames.shared.cache.insert(key, frame(Part::Whole, one));
        for (location, clusters) in [(one, 1), (two, 1), (one, 4)] {
            assert!(
                matches!(ask(location, clusters), (Fetched::Ready(_), mine) if mine.is_empty())
            );
        }
    }

    async fn futures_pending<F: Future + Unpin>(future: &mut F) -> bool {
        tokio::time::timeout(Duration::from_millis(1), future).await.is_err()
    }

    #[test]
    fn only_what_cant_be_read_is_called_so_and_what_passes_is_waited_for() {
        let object = ObjectId { vdisk: VdiskId(1), epoch: Epoch(1), number: ScoNumber(1) };
        let (text, reason) = (|| "why".to_owned(), "why".to_owned());
        let unavailable =
            |said| failed(object, &BackendError::Unavailable { reason: text(), said });
        let refused = WireError::refuse(wire::proxy::code::NO_NAMESPACE, "gone");
        let lasting = [
            unavailable(Some(UNREADABLE)),
            failed(object, &BackendError::Refused(refused)),
            ReadError::Damaged { object, reason },
        ];
        let passing = [
            unavailable(None),
            unavailable(Some(wire::proxy::code::NO_POLICY)),
            ReadError::Map(text()),
            ReadError::MapDamaged(text()),
            ReadError::MapBehind(text()),
            ReadError::Stopping,
        ];
        let answered = |error: &ReadError| {
            let answer = read_failed(error);
            (answer.class, answer.code)
        };
        for error in &lasting {
            assert_eq!(answered(error), (ErrorClass::Retry, code::UNREADABLE), "{error}");
        }
        for error in &passing {
            assert_eq!(answered(error), (ErrorClass::Retry, code::RECOVERING), "{error}");
        }
    }
}
