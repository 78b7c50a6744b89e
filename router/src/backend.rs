//! The client of the proxies: several of them, one used at a time, the next one when it fails.
//!
//! A proxy that errors, times out or can't be reached is passed over for a while and then tried again; a request is
//! repeated at the next one until its own deadline. Puts are idempotent by object id, so repeating is safe (P21).

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use model::Now;
use runtime::clock::boot_now;
use runtime::endpoint::Endpoint;
use runtime::peer::Identity;
use runtime::random::jitter;
use runtime::rpc::{Call, CallError, Client, ClientOptions};
use wire::{Decode, Encode, ErrorClass, Role, WireError};

/// One try at one proxy.
const ATTEMPT: Duration = Duration::from_secs(20);
/// How long a proxy that failed is passed over while others work.
const PASS_OVER: Duration = Duration::from_secs(2);
/// Pause after a round in which every proxy failed.
const PAUSE: Duration = Duration::from_millis(200);

/// Why the backend didn't do as asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BackendError {
    /// It answered no; another try gives the same.
    #[error("the backend refused: {0}")]
    Refused(WireError),
    /// No proxy could do it before the deadline; it may or may not have happened.
    /// `said`: the code by which the last proxy that answered said so; `None`: none answered.
    #[error("the backend can't be used now: {reason}")]
    Unavailable { reason: String, said: Option<u16> },
}

struct Proxy {
    client: Client,
    failed_at: Mutex<Option<Now>>,
}

impl Proxy {
    fn is_passed_over(&self) -> bool {
        let failed = *self.failed_at.lock().unwrap_or_else(PoisonError::into_inner);
        failed.is_some_and(|at| boot_now().since(at) < PASS_OVER)
    }

    fn works(&self) {
        *self.failed_at.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn failed(&self) {
        *self.failed_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(boot_now());
    }
}

/// All proxies of this router.
#[derive(Clone)]
pub struct Backend {
    proxies: Arc<Vec<Proxy>>,
    current: Arc<AtomicUsize>,
}

impl Backend {
    #[must_use]
    pub fn new(endpoints: &[Endpoint], identity: &Arc<Identity>) -> Self {
        let proxy = |endpoint: &Endpoint| Proxy {
            client: Client::new(
                endpoint.clone(),
                Role::AlbaProxy,
                Arc::clone(identity),
                ClientOptions::default(),
            ),
            failed_at: Mutex::new(None),
        };
        Self {
            proxies: Arc::new(endpoints.iter().map(proxy).collect()),
            current: Arc::new(AtomicUsize::new(0)),
        }
    }

    /// (address, answers?) of each proxy.
    #[must_use]
    pub fn health(&self) -> Vec<(String, bool)> {
        let all = self.proxies.iter();
        all.map(|proxy| (proxy.client.endpoint().to_string(), !proxy.is_passed_over())).collect()
    }

    /// As [`Self::call`], but each proxy is asked once: for callers that say what happened and try again themselves.
    ///
    /// # Errors
    /// When the backend refuses, or no proxy could do it now.
    pub async fn call_once<Q: Encode, A: Decode>(
        &self,
        method: u16,
        body: &Q,
        payload: Bytes,
    ) -> Result<(A, Bytes), BackendError> {
        let mut last = None;
        let left = ATTEMPT * model::u32_of(self.proxies.len());
        let answer = self.round(method, body, (&payload, left), &mut last).await;
        answer.unwrap_or_else(|| Err(unavailable(last)))
    }

    /// # Errors
    /// When the backend refuses, or no proxy could do it within `patience`.
    pub async fn call<Q: Encode, A: Decode>(
        &self,
        method: u16,
        body: &Q,
        payload: Bytes,
        patience: Duration,
    ) -> Result<(A, Bytes), BackendError> {
        let start = boot_now();
        let left = || patience.saturating_sub(boot_now().since(start));
        let mut last = None;
        loop {
            if let Some(answer) = self.round(method, body, (&payload, left()), &mut last).await {
                return answer;
            }
            // What every proxy finds unreadable stays so for now: an I/O error late is no better than one now.
            let left = left();
            let said = last.as_ref().and_then(CallError::code);
            if left.is_zero() || said == Some(wire::proxy::code::UNREADABLE) {
                return Err(unavailable(last));
            }
            tokio::time::sleep(jitter(PAUSE).min(left)).await;
        }
    }

    /// Asks each proxy once; `None` = none could do it.
    async fn round<Q: Encode, A: Decode>(
        &self,
        method: u16,
        body: &Q,
        (payload, left): (&Bytes, Duration),
        last: &mut Option<CallError>,
    ) -> Option<Result<(A, Bytes), BackendError>> {
        let start = boot_now();
        for index in self.order() {
            let left = left.saturating_sub(boot_now().since(start));
            if left.is_zero() {
                return None;
            }
            let proxy = &self.proxies[index];
            let call = Call::with_payload(payload.clone(), left.min(ATTEMPT));
            match proxy.client.call(method, body, call).await {
                Ok(answer) => {
                    proxy.works();
                    self.current.store(index, Ordering::Relaxed);
                    return Some(Ok(answer));
                }
                Err(CallError::Refused(error)) if error.class != ErrorClass::Retry => {
                    proxy.works();
                    return Some(Err(BackendError::Refused(error)));
                }
                Err(error) => {
                    tracing::debug!(proxy = %proxy.client.endpoint(), %error, method, "proxy failed");
                    proxy.failed();
                    // One that is dead says nothing about the backend: it doesn't cover up what another one said.
                    if error.code().is_some() || last.as_ref().is_none_or(|l| l.code().is_none()) {
                        *last = Some(error);
                    }
                }
            }
        }
        None
    }

    /// The current proxy first, then the others; those that failed just now last.
    fn order(&self) -> Vec<usize> {
        let count = self.proxies.len();
        let current = self.current.load(Ordering::Relaxed);
        let mut order: Vec<usize> = (0..count).map(|at| (current + at) % count).collect();
        order.sort_by_key(|index| self.proxies[*index].is_passed_over());
        order
    }
}

fn unavailable(last: Option<CallError>) -> BackendError {
    BackendError::Unavailable {
        said: last.as_ref().and_then(CallError::code),
        reason: last.map_or_else(|| "no time left".to_owned(), |error| error.to_string()),
    }
}
