//! After a failed assertion nothing that shared memory with it can be believed, so the process ends and whoever watches over it
//! starts it again: what was acknowledged is on disks (L1), and others take over what it served. A task that died alone would leave
//! behind what nobody serves, and nobody would know (L9).
//!
//! Work on data of its own may be contained ([`contain`]): one vDisk that can't be recovered must not take all others along,
//! again and again.
//!
//! Invariant: after [`end_the_process`] no panic goes by unnoticed: it ends the process, or is somebody's error.

use std::any::Any;
use std::cell::Cell;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::Poll;

thread_local! {
    /// What runs on this thread now is contained.
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// From now on a panic that isn't contained ends the process with SIGABRT, once it was logged.
pub fn end_the_process() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        usual(panic);
        if !CONTAINED.get() {
            tracing::error!(%panic, "an assertion failed; the process ends, to be started again");
            std::process::abort();
        }
    }));
}

/// A panic in contained work: what it said.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an assertion failed: {0}")]
pub struct Panicked(pub String);

impl Panicked {
    fn new(panic: &(dyn Any + Send)) -> Self {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Self(text.unwrap_or("it said nothing").to_owned())
    }
}

struct Within {
    before: bool,
}

impl Within {
    fn begin() -> Self {
        Self { before: CONTAINED.replace(true) }
    }
}

impl Drop for Within {
    fn drop(&mut self) {
        CONTAINED.set(self.before);
    }
}

/// Does work whose panic is an error to who waits for it. What it shares with others is his to distrust: a lock that was
/// held is poisoned. Tasks and threads that the work starts aren't contained.
///
/// # Errors
/// When it panicked.
pub async fn contain<T>(work: impl Future<Output = T>) -> Result<T, Panicked> {
    let mut work = pin!(work);
    poll_fn(move |context| {
        let within = Within::begin();
        let polled = catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context)));
        drop(within);
        match polled {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(done)) => Poll::Ready(Ok(done)),
            Err(panic) => Poll::Ready(Err(Panicked::new(&*panic))),
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, ExitStatus};

    use super::*;

    /// This program again, running the one test of this name, which then does what it does in a process of its own.
    fn alone(test: &str) -> ExitStatus {
        let mut program = Command::new(std::env::current_exe().unwrap());
        program.args(["--exact", test, "--nocapture"]).env("HOLDFAST_PANICS", "1");
        program.output().unwrap().status
    }

    fn is_alone() -> bool {
        std::env::var_os("HOLDFAST_PANICS").is_some()
    }

    #[tokio::test]
    async fn a_task_that_panics_ends_the_process() {
        if is_alone() {
            end_the_process();
            let died = tokio::spawn(async { panic!("found wanting") }).await;
            panic!("it goes on: {died:?}");
        }
        // SIGABRT.
        assert_eq!(alone("panics::tests::a_task_that_panics_ends_the_process").signal(), Some(6));
    }

    #[tokio::test]
    async fn what_is_contained_is_an_error_and_what_comes_after_isnt_contained() {
        if is_alone() {
            end_the_process();
            let work = async {
                tokio::task::yield_now().await;
                panic!("vDisk {}", 7)
            };
            let done: Result<(), Panicked> = contain(work).await;
            assert_eq!(done, Err(Panicked("vDisk 7".to_owned())));
            assert_eq!(contain(async { 5 }).await, Ok(5));
            std::process::exit(if CONTAINED.get() { 1 } else { 42 });
        }
        let test =
            "panics::tests::what_is_contained_is_an_error_and_what_comes_after_isnt_contained";
        assert_eq!(alone(test).code(), Some(42));
    }
}
