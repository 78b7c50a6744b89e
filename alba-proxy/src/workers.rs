//! The few threads that compress, seal and erasure-code, away from the loop that answers.
//!
//! Invariant: at most `threads` jobs run, each with an encoder or decoder of its own; small jobs run where they are.

use codec::{DecodeError, Decoder, EncodeError, Encoder};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Semaphore;

/// Up to this many stored bytes a decode is done at once: handing it to a thread costs more than doing it.
const INLINE_BYTES: usize = 128 << 10;

pub struct Workers {
    threads: usize,
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
            permits: Arc::new(Semaphore::new(threads)),
            encoders: Arc::default(),
            decoders: Arc::default(),
        }
    }

    /// Whether another job is under way, so that speed helps more than size.
    pub fn are_busy(&self) -> bool {
        self.permits.available_permits() < self.threads
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
        let pool = Arc::clone(&self.encoders);
        self.run(move || with_pooled(&pool, Encoder::new, job)).await
    }

    /// `bytes`: how much there is to decode.
    pub async fn decode<R: Send + 'static>(
        &self,
        bytes: usize,
        job: impl FnOnce(&mut Decoder) -> Result<R, DecodeError> + Send + 'static,
    ) -> Result<R, DecodeError> {
        if bytes <= INLINE_BYTES {
            return with_pooled(&self.decoders, Decoder::new, job);
        }
        let pool = Arc::clone(&self.decoders);
        self.run(move || with_pooled(&pool, Decoder::new, job)).await
    }
}
