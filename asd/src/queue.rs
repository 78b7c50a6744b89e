//! What waits for a disk thread: two bounded lines, client traffic and maintenance.
//!
//! Clients go first. Maintenance goes when no client waits, and first at every eighth turn, but never faster than its
//! share of bytes per second. A full line refuses at once (L8): the caller tries again, or another disk.
//!
//! An idle thread sleeps without a timeout.
//!
//! Invariant: jobs of one line leave in the order in which they came.

use asd_core::share::Share;
use model::Now;
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use wire::asd::Priority;

/// Jobs in one line.
const JOBS_MAX: usize = 4096;
/// Bytes in one line; a single larger job is let into an empty one.
const BYTES_MAX: u64 = 64 << 20;
/// Every so many turns maintenance goes first.
const MAINTENANCE_TURN: u64 = 8;

/// The most that is taken at once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Portion {
    pub jobs: usize,
    pub bytes: u64,
}

#[derive(Debug)]
struct Line<T> {
    jobs: VecDeque<(T, u64)>,
    bytes: u64,
}

impl<T> Default for Line<T> {
    fn default() -> Self {
        Self { jobs: VecDeque::new(), bytes: 0 }
    }
}

#[derive(Debug)]
struct Inner<T> {
    client: Line<T>,
    maintenance: Line<T>,
    share: Share,
    turn: u64,
    closed: bool,
}

#[derive(Debug)]
pub(crate) struct Queue<T> {
    inner: Mutex<Inner<T>>,
    came: Condvar,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Taken<T> {
    Jobs(Vec<T>),
    /// Nothing came within the time given.
    Nothing,
    /// Closed and empty.
    Closed,
}

/// The line is full, or the queue closed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refused<T>(pub T);

impl<T> Queue<T> {
    pub(crate) fn new(maintenance_rate: u64, now: Now) -> Self {
        let inner = Inner {
            client: Line::default(),
            maintenance: Line::default(),
            share: Share::new(maintenance_rate, now),
            turn: 0,
            closed: false,
        };
        Self { inner: Mutex::new(inner), came: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner<T>> {
        // Every change under the lock is whole before anything can panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn push(&self, job: T, priority: Priority, bytes: u64) -> Result<(), Refused<T>> {
        let mut inner = self.lock();
        let closed = inner.closed;
        let line = match priority {
            Priority::Client => &mut inner.client,
            Priority::Maintenance => &mut inner.maintenance,
        };
        let over = line.jobs.len() >= JOBS_MAX || line.bytes.saturating_add(bytes) > BYTES_MAX;
        if closed || (over && !line.jobs.is_empty()) {
            return Err(Refused(job));
        }
        line.bytes += bytes;
        line.jobs.push_back((job, bytes));
        drop(inner);
        self.came.notify_one();
        Ok(())
    }

    /// What is there, waiting for it at most `wait` (`None`: for as long as it takes).
    pub(crate) fn take(
        &self,
        portion: Portion,
        wait: Option<Duration>,
        clock: impl Fn() -> Now,
    ) -> Taken<T> {
        let mut inner = self.lock();
        let until = wait.map(|wait| clock().plus(wait));
        loop {
            let now = clock();
            let jobs = inner.take(portion, now);
            if !jobs.is_empty() {
                return Taken::Jobs(jobs);
            }
            if inner.closed && inner.maintenance.jobs.is_empty() {
                return Taken::Closed;
            }
            if until.is_some_and(|until| now >= until) {
                return Taken::Nothing;
            }
            let for_share = (!inner.maintenance.jobs.is_empty()).then(|| inner.share.wait(now));
            let for_caller = until.map(|until| until.since(now));
            let pause = [for_share, for_caller].into_iter().flatten().min();
            inner = match pause {
                None => self.came.wait(inner).unwrap_or_else(PoisonError::into_inner),
                Some(pause) => {
                    let waited = self.came.wait_timeout(inner, pause);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// When maintenance may go on; its share is also what compaction works in.
    pub(crate) fn maintenance_wait(&self, now: Now) -> Duration {
        self.lock().share.wait(now)
    }

    pub(crate) fn charge_maintenance(&self, bytes: u64) {
        self.lock().share.charge(bytes);
    }

    /// Takes nothing more in; what is in it is still handed out.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.came.notify_all();
    }
}

impl<T> Inner<T> {
    fn take(&mut self, portion: Portion, now: Now) -> Vec<T> {
        self.turn += 1;
        let mut taken = Batch { jobs: Vec::new(), bytes: 0, portion };
        let maintenance_first = self.turn.is_multiple_of(MAINTENANCE_TURN);
        if maintenance_first {
            self.take_maintenance(&mut taken, now);
        }
        while let Some(job) = taken.next_of(&mut self.client) {
            taken.jobs.push(job);
        }
        if !maintenance_first {
            self.take_maintenance(&mut taken, now);
        }
        taken.jobs
    }

    fn take_maintenance(&mut self, taken: &mut Batch<T>, now: Now) {
        // A closed queue is emptied without regard to the share: it is soon over.
        while self.closed || self.share.wait(now).is_zero() {
            let before = taken.bytes;
            let Some(job) = taken.next_of(&mut self.maintenance) else { return };
            self.share.charge(taken.bytes - before);
            taken.jobs.push(job);
        }
    }
}

struct Batch<T> {
    jobs: Vec<T>,
    bytes: u64,
    portion: Portion,
}

impl<T> Batch<T> {
    fn next_of(&mut self, line: &mut Line<T>) -> Option<T> {
        let (_, bytes) = line.jobs.front()?;
        let fits = self.jobs.len() < self.portion.jobs
            && self.bytes.saturating_add(*bytes) <= self.portion.bytes;
        if !fits && !self.jobs.is_empty() {
            return None;
        }
        let (job, bytes) = line.jobs.pop_front()?;
        line.bytes -= bytes;
        self.bytes += bytes;
        Some(job)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    const ALL: Portion = Portion { jobs: 100, bytes: 1 << 20 };

    fn take(queue: &Queue<u32>, portion: Portion, now: Now) -> Taken<u32> {
        queue.take(portion, Some(Duration::ZERO), || now)
    }

    #[test]
    fn clients_go_first_and_lines_keep_their_order() {
        let queue = Queue::new(1000, Now::default());
        for (job, priority) in
            [(1, Priority::Maintenance), (2, Priority::Client), (3, Priority::Client)]
        {
            queue.push(job, priority, 10).unwrap();
        }
        assert_eq!(take(&queue, ALL, Now::default()), Taken::Jobs(vec![2, 3, 1]));
        assert_eq!(take(&queue, ALL, Now::default()), Taken::Nothing);
    }

    #[test]
    fn a_portion_is_kept_but_one_large_job_goes_alone() {
        let queue = Queue::new(1000, Now::default());
        for (job, bytes) in [(1, 60), (2, 60), (3, 500)] {
            queue.push(job, Priority::Client, bytes).unwrap();
        }
        let portion = Portion { jobs: 10, bytes: 100 };
        for job in [1, 2, 3] {
            assert_eq!(take(&queue, portion, Now::default()), Taken::Jobs(vec![job]));
        }
    }

    #[test]
    fn maintenance_waits_for_its_share_and_starves_nobody() {
        let queue = Queue::new(1000, Now::default());
        queue.push(1, Priority::Maintenance, 3000).unwrap();
        queue.push(2, Priority::Maintenance, 10).unwrap();
        assert_eq!(take(&queue, ALL, Now::default()), Taken::Jobs(vec![1]));
        assert_eq!(take(&queue, ALL, Now(Duration::from_secs(1))), Taken::Nothing);
        assert_eq!(take(&queue, ALL, Now(Duration::from_secs(4))), Taken::Jobs(vec![2]));
        // Clients alone would fill every portion; still maintenance gets a turn.
        let one = Portion { jobs: 1, bytes: 1 << 20 };
        queue.push(100, Priority::Maintenance, 1).unwrap();
        let mut turns = 0;
        loop {
            queue.push(0, Priority::Client, 1).unwrap();
            turns += 1;
            if take(&queue, one, Now(Duration::from_secs(9))) == Taken::Jobs(vec![100]) {
                break;
            }
            assert!(turns <= MAINTENANCE_TURN, "maintenance starves");
        }
    }

    #[test]
    fn a_full_line_refuses_and_a_closed_queue_is_emptied() {
        let queue = Queue::new(1, Now::default());
        queue.push(1, Priority::Client, BYTES_MAX + 1).unwrap();
        assert_eq!(queue.push(2, Priority::Client, 1), Err(Refused(2)));
        queue.push(3, Priority::Maintenance, 1000).unwrap();
        queue.push(4, Priority::Maintenance, 1000).unwrap();
        queue.close();
        assert_eq!(queue.push(5, Priority::Maintenance, 1), Err(Refused(5)));
        assert_eq!(take(&queue, ALL, Now::default()), Taken::Jobs(vec![1]));
        assert_eq!(take(&queue, ALL, Now::default()), Taken::Jobs(vec![3, 4]));
        assert_eq!(take(&queue, ALL, Now::default()), Taken::Closed);
    }

    #[test]
    fn a_wait_ends_when_its_time_is_over() {
        let queue: Queue<u32> = Queue::new(1, Now::default());
        let calls = Cell::new(0);
        let clock = || {
            calls.set(calls.get() + 1);
            Now(Duration::from_millis(calls.get()))
        };
        assert_eq!(queue.take(ALL, Some(Duration::from_millis(3)), clock), Taken::Nothing);
    }
}
