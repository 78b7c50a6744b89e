//! Request numbers of one session: each transaction has its own, kept on every retry, and the nodes are told below which
//! number all answers have arrived, so that they can forget them.

use model::ClientId;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Span of open request numbers. Nodes remember more per session, so none of ours is forgotten while it is open.
pub const WINDOW: u64 = 512;

#[derive(Debug)]
struct Numbers {
    next: u64,
    open: BTreeSet<u64>,
}

impl Numbers {
    fn answered_below(&self) -> u64 {
        self.open.first().copied().unwrap_or(self.next)
    }
}

#[derive(Debug)]
pub struct RequestSession {
    pub id: ClientId,
    numbers: Mutex<Numbers>,
    closed_one: Notify,
}

impl RequestSession {
    pub fn new(id: ClientId) -> Self {
        let numbers = Mutex::new(Numbers { next: 1, open: BTreeSet::new() });
        Self { id, numbers, closed_one: Notify::new() }
    }

    fn numbers(&self) -> MutexGuard<'_, Numbers> {
        // A panic under this lock leaves at worst a number open.
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next number, once the window has room; open until the result is dropped.
    pub async fn begin(self: &Arc<Self>) -> OpenRequest {
        loop {
            let closed = self.closed_one.notified();
            if let Some(number) = self.try_begin() {
                return OpenRequest { session: Arc::clone(self), number };
            }
            closed.await;
        }
    }

    fn try_begin(&self) -> Option<u64> {
        let mut numbers = self.numbers();
        let number = numbers.next;
        if number - numbers.answered_below() >= WINDOW {
            return None;
        }
        numbers.next += 1;
        numbers.open.insert(number);
        Some(number)
    }
}

/// A number in use. Dropping it says that nobody waits for its answer any more.
#[derive(Debug)]
pub struct OpenRequest {
    pub session: Arc<RequestSession>,
    pub number: u64,
}

impl OpenRequest {
    pub fn answered_below(&self) -> u64 {
        self.session.numbers().answered_below()
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        self.session.numbers().open.remove(&self.number);
        self.session.closed_one.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn answers_are_counted_from_the_oldest_open_request() {
        let session = Arc::new(RequestSession::new(ClientId(1)));
        let first = session.begin().await;
        let second = session.begin().await;
        assert_eq!((first.number, second.number), (1, 2));
        drop(second);
        let third = session.begin().await;
        assert_eq!(third.answered_below(), 1);
        drop(first);
        assert_eq!(third.answered_below(), 3);
        drop(third);
        assert_eq!(session.begin().await.answered_below(), 4);
    }

    #[tokio::test]
    async fn the_window_waits_for_its_oldest_request() {
        let session = Arc::new(RequestSession::new(ClientId(1)));
        let first = session.begin().await;
        for _ in 1..WINDOW {
            drop(session.begin().await);
        }
        assert_eq!(session.try_begin(), None);
        let waiting = tokio::spawn({
            let session = Arc::clone(&session);
            async move { session.begin().await.number }
        });
        tokio::task::yield_now().await;
        drop(first);
        assert_eq!(waiting.await.unwrap(), WINDOW + 1);
    }
}
