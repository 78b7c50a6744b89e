//! Several named checks on one cluster, all reported.
//!
//! A cluster takes seconds to start, and each test runs in a process of its own, so checks that don't disturb each
//! other share one. A failed step doesn't hide the next.
//!
//! Invariant: a test with a failed step fails, and names it.

use std::time::Instant;

use crate::trouble;

#[derive(Default)]
pub struct Steps {
    failed: Vec<String>,
}

impl Steps {
    /// Runs one check and prints its name, outcome and time.
    pub fn step(&mut self, name: &str, check: impl FnOnce() -> anyhow::Result<()>) {
        let began = Instant::now();
        let outcome = check();
        let took = began.elapsed().as_secs_f64();
        match outcome {
            Ok(()) => eprintln!("ok      {took:>6.1} s  {name}"),
            Err(error) => {
                trouble::note();
                eprintln!("FAILED  {took:>6.1} s  {name}\n{error:?}");
                self.failed.push(name.into());
            }
        }
    }

    /// Succeeds if every step did.
    pub fn done(self) -> anyhow::Result<()> {
        anyhow::ensure!(self.failed.is_empty(), "failed: {}", self.failed.join(", "));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_runs_and_the_failed_are_named() {
        let mut steps = Steps::default();
        let mut ran = 0;
        steps.step("first", || anyhow::bail!("broken"));
        steps.step("second", || {
            ran += 1;
            Ok(())
        });
        assert_eq!(ran, 1);
        assert_eq!(steps.done().unwrap_err().to_string(), "failed: first");
        assert!(Steps::default().done().is_ok());
    }
}
