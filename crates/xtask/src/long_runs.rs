//! `cargo xtask soak` and `cargo xtask bench`: what takes too long for CI.
//!
//! Soak tests are the same tests as in CI, told by `HOLDFAST_SOAK=1` to run long; nothing is marked as ignored, so
//! what CI compiles is what the soak runs. Both work on release builds: races and figures differ in slow ones.
//!
//! Invariant: a missing program is said so in plain words, never taken for a success.

use std::path::Path;

use anyhow::bail;

use crate::ci::{cargo, succeed};

/// Where the benchmark harness lies, relative to the workspace.
const BENCH_SOURCES: [&str; 2] = ["tests/src/bin/bench.rs", "tests/src/bin/bench/main.rs"];

pub fn soak(root: &Path, args: &[String]) -> anyhow::Result<()> {
    succeed(cargo(root, &["build", "--locked", "--release", "--package", "holdfast"]))?;
    let mut tests = cargo(
        root,
        &["nextest", "run", "--locked", "--cargo-profile", "release", "--profile", "soak"],
    );
    tests.args(["--package", "holdfast-tests"]).args(args).env("HOLDFAST_SOAK", "1");
    succeed(tests)
}

pub fn bench(root: &Path, args: &[String]) -> anyhow::Result<()> {
    if !BENCH_SOURCES.iter().any(|source| root.join(source).is_file()) {
        bail!(
            "there is no benchmark harness yet: package holdfast-tests has no binary `bench` ({})",
            BENCH_SOURCES.join(" or ")
        );
    }
    succeed(cargo(root, &["build", "--locked", "--release", "--package", "holdfast"]))?;
    let mut harness = cargo(root, &["run", "--locked", "--release", "--package", "holdfast-tests"]);
    harness.args(["--bin", "bench", "--"]).args(args);
    succeed(harness)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_benchmark_harness_is_an_error_that_names_it() {
        let empty = tempfile::tempdir().unwrap();
        let error = bench(empty.path(), &[]).unwrap_err().to_string();
        assert!(error.contains("holdfast-tests") && error.contains("bench"), "{error}");
    }
}
