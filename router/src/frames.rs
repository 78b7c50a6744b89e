//! Frames of SCOs read from the backend: a bounded cache, and one fetch per frame however many ask.
//!
//! Invariant: what is in the cache was verified, cluster by cluster, against the checksums the edge computed (L5).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
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
        let mut mine = Vec::new();
        let mut fetched = Vec::new();
        let mut under_way = self.shared.under_way.lock().unwrap_or_else(PoisonError::into_inner);
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
        drop(under_way);
        for chunk in chunks(&mine) {
            let shared = Arc::clone(&self.shared);
            tokio::spawn(async move { shared.fetch(object, chunk).await });
        }
        fetched
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
    async fn fetch(&self, object: ObjectId, locations: Vec<Location>) {
        let ranges: Vec<(u64, u32)> =
            locations.iter().map(|location| frame_range(*location)).collect();
        let lens: Vec<u32> = ranges.iter().map(|range| range.1).collect();
        let ask = ReadObject { namespace: object.vdisk.into(), object, ranges };
        let answer = self
            .backend
            .call::<_, ReadDone>(method::READ_OBJECT, &ask, Bytes::new(), PATIENCE)
            .await;
        let mut payload = match answer {
            Ok((_, payload)) => Ok(payload),
            Err(error) => Err(failed(object, &error)),
        };
        for (location, len) in locations.into_iter().zip(lens) {
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
                self.cache.insert(key, frame.clone());
            }
            let waiters =
                self.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
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
