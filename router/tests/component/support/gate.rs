//! Stops the world at one message: everything that routers ask of arakoon and the backend is counted, and the one that was
//! chosen is held, before or after it was carried out, until whoever waits for it has done its worst.
//!
//! The servers behind it run on one thread each, so holding a message holds its answer and all that come after it.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::WITHIN;

/// Between two looks.
const TICK: Duration = Duration::from_millis(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Nothing was done yet.
    Before,
    /// It was done, and nobody knows.
    After,
}

#[derive(Default)]
pub struct Gate(Mutex<Option<Armed>>);

struct Armed {
    left: usize,
    moment: Moment,
    reached: SyncSender<SyncSender<()>>,
}

/// Waits for the chosen message.
pub struct Watch(Receiver<SyncSender<()>>);

impl Gate {
    /// From now on the message of this number, from 0, is held.
    pub fn arm(&self, number: usize, moment: Moment) -> Watch {
        let (reached, watch) = sync_channel(1);
        *self.0.lock().unwrap() = Some(Armed { left: number, moment, reached });
        Watch(watch)
    }

    /// Nothing is held any more.
    pub fn disarm(&self) {
        *self.0.lock().unwrap() = None;
    }

    /// A message is carried out by `work`.
    pub fn pass(&self, work: impl FnOnce()) {
        let hold = self.chosen();
        if let Some((Moment::Before, reached)) = &hold {
            held(reached);
        }
        work();
        if let Some((Moment::After, reached)) = &hold {
            held(reached);
        }
    }

    fn chosen(&self) -> Option<(Moment, SyncSender<SyncSender<()>>)> {
        let mut armed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if armed.as_ref()?.left == 0 {
            return armed.take().map(|armed| (armed.moment, armed.reached));
        }
        armed.as_mut()?.left -= 1;
        None
    }
}

fn held(reached: &SyncSender<SyncSender<()>>) {
    let (release, released) = sync_channel(1);
    if reached.send(release).is_ok() {
        let _ = released.recv_timeout(WITHIN);
    }
}

impl Watch {
    /// Runs `worst` while the message is held; false when `done` and the message still didn't come `patience` later.
    pub fn until(&self, done: impl Fn() -> bool, patience: Duration, worst: impl FnOnce()) -> bool {
        let mut ended: Option<Instant> = None;
        loop {
            match self.0.recv_timeout(TICK) {
                Ok(release) => {
                    worst();
                    let _ = release.send(());
                    return true;
                }
                Err(RecvTimeoutError::Disconnected) => return false,
                Err(RecvTimeoutError::Timeout) if done() => {
                    if patience < ended.get_or_insert_with(Instant::now).elapsed() {
                        return false;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}
