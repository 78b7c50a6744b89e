//! Many futures under way in one task, polled only when woken; no task per call, and no allocation once warm.
//!
//! Invariant: futures are first polled in the order in which they were pushed, so calls leave in that order.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

#[derive(Default)]
struct Ready {
    slots: Vec<usize>,
    /// Whoever polls the whole.
    parent: Option<Waker>,
}

#[derive(Default)]
struct Shared(Mutex<Ready>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Ready> {
        // A panic while the lock is held leaves a list that is still a list.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct SlotWaker {
    slot: usize,
    queued: AtomicBool,
    shared: Arc<Shared>,
}

impl Wake for SlotWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.queued.swap(true, Ordering::AcqRel) {
            return;
        }
        let parent = {
            let mut ready = self.shared.lock();
            ready.slots.push(self.slot);
            ready.parent.take()
        };
        if let Some(parent) = parent {
            parent.wake();
        }
    }
}

struct Slot<F> {
    future: Pin<Box<Option<F>>>,
    waker: Waker,
    state: Arc<SlotWaker>,
}

pub struct Calls<F> {
    slots: Vec<Slot<F>>,
    free: Vec<usize>,
    shared: Arc<Shared>,
    polling: Vec<usize>,
}

impl<F: Future> Calls<F> {
    pub fn new() -> Self {
        Self { slots: Vec::new(), free: Vec::new(), shared: Arc::default(), polling: Vec::new() }
    }

    pub fn push(&mut self, future: F) {
        let at = self.free.pop().unwrap_or_else(|| {
            let slot = self.slots.len();
            let shared = Arc::clone(&self.shared);
            let state = Arc::new(SlotWaker { slot, queued: AtomicBool::new(false), shared });
            let waker = Waker::from(Arc::clone(&state));
            self.slots.push(Slot { future: Box::pin(None), waker, state });
            slot
        });
        let slot = &mut self.slots[at];
        slot.future.set(Some(future));
        slot.waker.wake_by_ref();
    }

    /// Drops everything under way.
    pub fn clear(&mut self) {
        *self = Self::new();
    }

    /// Polls what was woken; `Ready` with at least one result put to `done`, or `Pending`.
    pub fn poll_some(&mut self, context: &mut Context<'_>, done: &mut Vec<F::Output>) -> Poll<()> {
        let before = done.len();
        {
            let mut ready = self.shared.lock();
            std::mem::swap(&mut ready.slots, &mut self.polling);
            ready.parent = Some(context.waker().clone());
        }
        for at in self.polling.drain(..) {
            let slot = &mut self.slots[at];
            // Before polling, so that a wake during it isn't lost.
            slot.state.queued.store(false, Ordering::Release);
            let Some(future) = slot.future.as_mut().as_pin_mut() else { continue };
            if let Poll::Ready(result) = future.poll(&mut Context::from_waker(&slot.waker)) {
                slot.future.set(None);
                self.free.push(at);
                done.push(result);
            }
        }
        if done.len() > before { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Waits until at least one is finished.
    pub async fn some(&mut self, done: &mut Vec<F::Output>) {
        std::future::poll_fn(|context| self.poll_some(context, done)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn first_polls_come_in_order_and_results_as_they_are_there() {
        let order = RefCell::new(Vec::new());
        let mut senders = Vec::new();
        let mut calls = Calls::new();
        for number in 0..100 {
            let (sender, receiver) = oneshot::channel::<()>();
            senders.push(Some(sender));
            let order = &order;
            calls.push(async move {
                order.borrow_mut().push(number);
                receiver.await.unwrap();
                number
            });
        }
        let mut done = Vec::new();
        let waker = Waker::noop();
        assert!(calls.poll_some(&mut Context::from_waker(waker), &mut done).is_pending());
        assert_eq!(*order.borrow(), (0..100).collect::<Vec<_>>());
        for number in [42, 7, 99] {
            senders[number].take().unwrap().send(()).unwrap();
        }
        calls.some(&mut done).await;
        assert_eq!(done, [42, 7, 99]);
        for sender in senders.iter_mut().filter_map(Option::take) {
            sender.send(()).unwrap();
        }
        while done.len() < 100 {
            calls.some(&mut done).await;
        }
        assert_eq!(calls.slots.len(), 100);
        assert_eq!(calls.free.len(), 100, "every slot can be used again");
    }
}
