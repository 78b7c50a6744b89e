//! A page map read out as a whole, part by part, while it goes on changing: all parts are of one moment.
//!
//! A thread of its own holds RocksDB's view of that moment and reads only as far as somebody asks; parts wait in memory
//! one at a time. It ends when nobody asks for long, when all of it takes too long, and when the database must be
//! replaced, which waits for it.
//!
//! Invariant: the last part is given out only if number and digest of all pages are what the state says (L5).

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use bytes::Bytes;
use model::{Epoch, ScoNumber, VdiskId};
use router_core::map_stream::{Assembly, Cutter, Limits, Part};
use tokio::sync::oneshot;

use super::{MapError, MapState, MapStore, state};

/// Between two looks whether the database must be replaced.
const TICK: Duration = Duration::from_millis(100);

type Ask = oneshot::Sender<Result<Part, MapError>>;

/// See the module's page.
pub struct Cut {
    vdisk: VdiskId,
    asks: SyncSender<Ask>,
}

impl MapStore {
    /// The map of this vDisk as it is on disk now, in parts of at most so many bytes.
    #[must_use]
    pub fn cut(&self, vdisk: VdiskId, bytes_max: usize, limits: Limits) -> Cut {
        let (asks, asked) = sync_channel(1);
        let store = self.clone();
        tokio::task::spawn_blocking(move || {
            let (assembly, began) = (Assembly::new(vdisk), Instant::now());
            let life = limits.whole;
            let mut out = Out { store: &store, vdisk, asked, assembly, limits, began, life };
            if let Err(error) = out.read(bytes_max) {
                tracing::debug!(%vdisk, %error, "a page map isn't read out to the end");
                out.fail(error);
            }
        });
        Cut { vdisk, asks }
    }
}

impl Cut {
    /// The next part. After the last one nothing more comes.
    ///
    /// # Errors
    /// When the map is damaged, the store fails, or nobody asked for too long.
    pub async fn next(&self) -> Result<Part, MapError> {
        let (ask, answer) = oneshot::channel();
        // One asks at a time, so there is room.
        let asked = self.asks.try_send(ask);
        let ended = |()| MapError::Closed(self.vdisk);
        asked.map_err(|_| ended(()))?;
        answer.await.map_err(|_| ended(()))?
    }
}

struct Out<'a> {
    store: &'a MapStore,
    vdisk: VdiskId,
    asked: Receiver<Ask>,
    assembly: Assembly,
    limits: Limits,
    began: Instant,
    /// Until all of it must be read out; longer once its size is known.
    life: Duration,
}

impl Out<'_> {
    fn read(&mut self, bytes_max: usize) -> Result<(), MapError> {
        let (place, vdisk) = (&self.store.shared.place, self.vdisk);
        let strange = |problem: &str| MapError::Mismatch { vdisk, problem: problem.to_owned() };
        let mut cutter: Option<Cutter> = None;
        // The state first: it says what the rest must be.
        place.each_at_once(b"sep", vdisk, |key, value| {
            let full = match (&mut cutter, key.first()) {
                (None, Some(b's')) => {
                    let state = MapState::decode(value);
                    let state = state.ok_or_else(|| strange("the state fails its checksum"))?;
                    cutter = Some(Cutter::new(vdisk, state, bytes_max));
                    None
                }
                (Some(cutter), Some(b'e')) => {
                    let row = (key.split_last_chunk::<8>(), <[u8; 8]>::try_from(value));
                    let (Some((_, first)), Ok(epoch)) = row else {
                        return Err(strange("an epoch has a wrong length"));
                    };
                    let (first, epoch) = (u64::from_be_bytes(*first), u64::from_le_bytes(epoch));
                    cutter.epoch(ScoNumber(first), Epoch(epoch))
                }
                (Some(cutter), _) => {
                    let number = state::page_of(key).ok_or_else(|| strange("a strange key"))?;
                    cutter.page(number, Bytes::copy_from_slice(value))
                }
                (None, _) => return Err(MapError::Closed(vdisk)),
            };
            full.map_or(Ok(()), |part| self.give(part))
        })?;
        let cutter = cutter.ok_or(MapError::Closed(vdisk))?;
        self.give(cutter.finish())
    }

    /// Waits until somebody asks for it.
    fn give(&mut self, part: Part) -> Result<(), MapError> {
        let wrong = |error: router_core::map_stream::StreamError| MapError::Mismatch {
            vdisk: self.vdisk,
            problem: error.to_string(),
        };
        self.assembly.take(&part).map_err(wrong)?;
        self.life = self.limits.life(part.state.totals.mapped);
        if part.last {
            self.assembly.finish().map_err(wrong)?;
        }
        let ask = self.ask().ok_or(MapError::Closed(self.vdisk))?;
        // Who asked and went away asks no more; the next wait sees it.
        let _ = ask.send(Ok(part));
        Ok(())
    }

    fn fail(&self, error: MapError) {
        if let Some(ask) = self.ask() {
            let _ = ask.send(Err(error));
        }
    }

    /// `None`: nobody asks any more, all of it took too long, or the database must be given up.
    fn ask(&self) -> Option<Ask> {
        let start = Instant::now();
        loop {
            let asked = self.asked.recv_timeout(TICK);
            // However eagerly somebody asks: all other maps wait for the replacement, and old files for the end of this.
            if self.store.shared.place.is_suspect() || self.life <= self.began.elapsed() {
                return None;
            }
            match asked {
                Ok(ask) => return Some(ask),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) if self.limits.idle < start.elapsed() => {
                    return None;
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}
