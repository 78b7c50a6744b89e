//! The few threads that compress, seal and erasure-code, away from the loop that answers.
//!
//! Invariant: at most `threads` jobs run, each with an encoder or decoder of its own; small jobs run where they are.

use codec::{DecodeError, Decoder, EncodeError, Encoder};
use runtime::clock::{boot_now, thread_cpu};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;

/// Up to this many stored bytes a decode is done at once: handing it to a thread costs more than doing it.
const INLINE_BYTES: usize = 128 << 10;

/// Whether the machine has processor time to spare, told from how long jobs that only compute had to wait for one.
#[derive(Debug, Default)]
struct Headroom {
    /// Share of their time that the last jobs waited, in 1/1024.
    waited: AtomicU32,
}

impl Headroom {
    /// Waiting for more than this share of the time is a shortage.
    const SHORT: u32 = 1024 / 5;

    fn note(&self, elapsed: Duration, cpu: Duration) {
        let idle = elapsed.saturating_sub(cpu).as_nanos() * 1024;
        let share = u32::try_from(idle / elapsed.as_nanos().max(1)).unwrap_or(1024);
        let before = self.waited.load(Ordering::Relaxed);
        // Of two at once one may go unnoticed: it is an estimate.
        self.waited.store((before * 3 + share) / 4, Ordering::Relaxed);
    }

    fn is_short(&self) -> bool {
        Self::SHORT < self.waited.load(Ordering::Relaxed)
    }
}

pub struct Workers {
    threads: usize,
    headroom: Arc<Headroom>,
    permits: Arc<Semaphore>,
    encoders: Arc<Mutex<Vec<Encoder>>>,
    decoders: Arc<Mutex<Vec<Decoder>>>,
}

/// Takes one out, or makes one; puts it back when done.
fn with_pooled<T, E, R>(
    pool: &Mutex<Vec<T>>,
    make: impl FnOnce() -> Result<T, E>,
    job: impl FnOnce(&mut T) -> Result<R, E>,
) -> Result<R, E> {
    let taken = pool.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let mut tool = match taken {
        Some(tool) => tool,
        None => make()?,
    };
    let result = job(&mut tool);
    pool.lock().unwrap_or_else(PoisonError::into_inner).push(tool);
    result
}

impl Workers {
    pub fn new() -> Self {
        let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get).min(8);
        Self {
            threads,
            headroom: Arc::default(),
            permits: Arc::new(Semaphore::new(threads)),
            encoders: Arc::default(),
            decoders: Arc::default(),
        }
    }

    /// Whether others wait for a processor, here or in other processes, so that speed helps more than size.
    pub fn are_busy(&self) -> bool {
        self.permits.available_permits() < self.threads || self.headroom.is_short()
    }

    /// Runs a job that takes milliseconds on a thread of its own, when one is free.
    pub async fn run<R: Send + 'static>(&self, job: impl FnOnce() -> R + Send + 'static) -> R {
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        let done = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            job()
        });
        match done.await {
            Ok(result) => result,
            Err(failed) => std::panic::resume_unwind(failed.into_panic()),
        }
    }

    pub async fn encode<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Encoder) -> Result<R, EncodeError> + Send + 'static,
    ) -> Result<R, EncodeError> {
        let (pool, headroom) = (Arc::clone(&self.encoders), Arc::clone(&self.headroom));
        let timed = move || {
            let (start, cpu) = (boot_now(), thread_cpu());
            let done = with_pooled(&pool, Encoder::new, job);
            headroom.note(boot_now().since(start), thread_cpu().saturating_sub(cpu));
            done
        };
        self.run(timed).await
    }

    /// A decode that is short for sure, at once.
    pub fn decode_here<R>(
        &self,
        job: impl FnOnce(&mut Decoder) -> Result<R, DecodeError>,
    ) -> Result<R, DecodeError> {
        with_pooled(&self.decoders, Decoder::new, job)
    }

    /// `bytes`: how much there is to decode.
    pub async fn decode<R: Send + 'static>(
        &self,
        bytes: usize,
        job: impl FnOnce(&mut Decoder) -> Result<R, DecodeError> + Send + 'static,
    ) -> Result<R, DecodeError> {
        if bytes <= INLINE_BYTES {
            return self.decode_here(job);
        }
        let pool = Arc::clone(&self.decoders);
        self.run(move || with_pooled(&pool, Decoder::new, job)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_that_wait_for_a_processor_show_a_shortage_and_those_that_do_not_end_it() {
        let ms = Duration::from_millis;
        let headroom = Headroom::default();
        assert!(!headroom.is_short(), "nothing is known at first");
        headroom.note(ms(10), ms(9));
        assert!(!headroom.is_short());
        for _ in 0..4 {
            headroom.note(ms(20), ms(10));
        }
        assert!(headroom.is_short());
        // Clocks of different grain: never more than all of the time, never less than none.
        headroom.note(ms(10), ms(11));
        headroom.note(Duration::ZERO, ms(1));
        for _ in 0..8 {
            headroom.note(ms(10), ms(10));
        }
        assert!(!headroom.is_short());
    }
}
