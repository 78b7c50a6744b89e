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
use router_core::page::Location;
use router_core::sco::{Frame, GROUP, frame_range};
use tokio::sync::oneshot;
use wire::proxy::code::UNREADABLE;
use wire::proxy::{RANGES_MAX, ReadDone, ReadObject, method};

use crate::backend::{Backend, BackendError};

/// How long one fetch tries.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes asked for in one call.
const CALL_BYTES: u64 = 4 << 20;
/// A shorter answer is copied for the cache: its frames would keep a whole read buffer, several times as long.
const COPIED_BELOW: usize = 64 << 10;

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
        frame.len() as u64 + 64
    }
}

type Waiters = Vec<oneshot::Sender<Result<Frame, ReadError>>>;

struct Shared {
    cache: Cache<FrameKey, Frame, ByBytes>,
    under_way: Mutex<HashMap<FrameKey, Waiters>>,
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

    /// Starts fetching the frames of these locations, all of one SCO, that aren't cached; one result per location, in order.
    pub fn fetch(&self, object: ObjectId, locations: &[Location]) -> Vec<Fetched> {
        let (fetched, mine) = self.join(object, locations);
        for chunk in chunks(&mine) {
            let claim = self.claim(object, chunk);
            tokio::spawn(claim.fetch());
        }
        fetched
    }

    /// One frame, fetched by the caller itself unless somebody is at it already: a task for it would cost more than asking.
    ///
    /// # Errors
    /// When the frame can't be read or fails its checksums.
    pub async fn one(&self, object: ObjectId, location: Location) -> Result<Frame, ReadError> {
        let (mut fetched, mine) = self.join(object, &[location]);
        if !mine.is_empty() {
            self.claim(object, mine).fetch().await;
        }
        fetched.pop().expect("one was asked for").get().await
    }

    /// One result per location, and those that the caller must see to.
    fn join(&self, object: ObjectId, locations: &[Location]) -> (Vec<Fetched>, Vec<Location>) {
        let mut mine = Vec::new();
        let mut fetched = Vec::with_capacity(locations.len());
        let mut under_way = self.shared.under_way();
        for location in locations {
            let key = FrameKey::of(object.vdisk, *location);
            if let Some(frame) = self.shared.cache.get(&key) {
                fetched.push(Fetched::Ready(frame));
                continue;
            }
            let (sender, receiver) = oneshot::channel();
            fetched.push(Fetched::Coming(receiver));
            let waiters = under_way.entry(key).or_insert_with(|| {
                mine.push(*location);
                Vec::new()
            });
            waiters.push(sender);
        }
        (fetched, mine)
    }

    fn claim(&self, object: ObjectId, locations: Vec<Location>) -> Claim {
        Claim { shared: Arc::clone(&self.shared), object, locations }
    }
}

/// Frames of one object that somebody fetches. Given up, those who wait for them are told to try again.
struct Claim {
    shared: Arc<Shared>,
    object: ObjectId,
    locations: Vec<Location>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        for location in &self.locations {
            self.shared.under_way().remove(&FrameKey::of(self.object.vdisk, *location));
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

fn chunks(locations: &[Location]) -> Vec<Vec<Location>> {
    let mut out: Vec<Vec<Location>> = Vec::new();
    let mut bytes = 0;
    for location in locations {
        let len = u64::from(frame_range(*location).1);
        match out.last_mut() {
            Some(chunk) if chunk.len() < RANGES_MAX && bytes + len <= CALL_BYTES => {
                chunk.push(*location);
            }
            Some(_) | None => {
                out.push(vec![*location]);
                bytes = 0;
            }
        }
        bytes += len;
    }
    out
}

impl Shared {
    fn under_way(&self) -> MutexGuard<'_, HashMap<FrameKey, Waiters>> {
        // Changes are single steps, so a panic elsewhere leaves a usable state.
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claim {
    async fn fetch(mut self) {
        let object = self.object;
        let ranges: Vec<(u64, u32)> =
            self.locations.iter().map(|location| frame_range(*location)).collect();
        let lens: Vec<u32> = ranges.iter().map(|range| range.1).collect();
        let ask = ReadObject { namespace: object.vdisk.into(), object, ranges };
        let answer = self
            .shared
            .backend
            .call::<_, ReadDone>(method::READ_OBJECT, &ask, Bytes::new(), PATIENCE)
            .await;
        let mut payload = match answer {
            Ok((_, payload)) if payload.len() < COPIED_BELOW => {
                Ok(Bytes::copy_from_slice(&payload))
            }
            Ok((_, payload)) => Ok(payload),
            Err(error) => Err(failed(object, &error)),
        };
        for (location, len) in std::mem::take(&mut self.locations).into_iter().zip(lens) {
            let frame = match &mut payload {
                Err(error) => Err(error.clone()),
                Ok(rest) if rest.len() < len as usize => Err(ReadError::Damaged {
                    object,
                    reason: "the backend's answer is short".to_owned(),
                }),
                Ok(rest) => Frame::verify(location, rest.split_to(len as usize))
                    .map_err(|error| ReadError::Damaged { object, reason: error.to_string() }),
            };
            if let Err(error) = &frame {
                tracing::error!(%error, "a frame can't be read");
            }
            let key = FrameKey::of(object.vdisk, location);
            if let Ok(frame) = &frame {
                self.shared.cache.insert(key, frame.clone());
            }
            let waiters = self.shared.under_way().remove(&key);
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
            let (mut others, mine) = frames.join(object, &[location]);
            assert!(mine.is_empty(), "one reads for all");
            drop(reader);
            let told = others.pop().unwrap().get().await;
            assert!(matches!(told, Err(ReadError::Stopping)), "{told:?}");
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
