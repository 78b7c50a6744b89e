//! `cargo xtask ci`: the stages of CI, each with a heading and its time, and a table at the end.
//!
//! A failed stage doesn't hide the next one: a person wants to see all that is wrong in one run. The tests come last,
//! and their runner's own summary is repeated as the very last line, as that is what CI reads.
//!
//! Invariant: the exit code is success only if every stage that was asked for ran and succeeded.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::ValueEnum;

use crate::tidy;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Stage {
    /// rustfmt
    Fmt,
    /// Import arrows, manifests, source files
    Tidy,
    /// Clippy on everything, warnings as errors
    Clippy,
    /// All libraries and binaries; the cluster tests start the binary
    Build,
    /// Examples in the documentation
    Doc,
    /// Unit, property, simulation and cluster tests
    Test,
}

impl Stage {
    const ALL: [Self; 6] =
        [Self::Fmt, Self::Tidy, Self::Clippy, Self::Build, Self::Doc, Self::Test];

    fn name(self) -> &'static str {
        match self {
            Self::Fmt => "fmt",
            Self::Tidy => "tidy",
            Self::Clippy => "clippy",
            Self::Build => "build",
            Self::Doc => "doc",
            Self::Test => "test",
        }
    }
}

/// What a stage came to.
struct Report {
    stage: Stage,
    took: Duration,
    outcome: anyhow::Result<()>,
}

pub fn run(root: &Path, only: Option<Stage>) -> anyhow::Result<()> {
    warn_if_rocksdb_would_be_compiled();
    let stages = only.map_or_else(|| Stage::ALL.to_vec(), |stage| vec![stage]);
    let mut closing_line = None;
    let mut reports = Vec::with_capacity(stages.len());
    for stage in stages {
        eprintln!("\n=== {} ===", stage.name());
        let began = Instant::now();
        let outcome = run_stage(root, stage, &mut closing_line);
        reports.push(Report { stage, took: began.elapsed(), outcome });
    }
    eprint!("\n{}", table(&reports));
    let failed: Vec<_> =
        reports.iter().filter(|r| r.outcome.is_err()).map(|r| r.stage.name()).collect();
    if let Some(line) = closing_line {
        eprintln!("{line}");
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

fn run_stage(root: &Path, stage: Stage, closing_line: &mut Option<String>) -> anyhow::Result<()> {
    match stage {
        Stage::Fmt => succeed(cargo(root, &["fmt", "--all", "--check"])),
        Stage::Tidy => tidy::run(root),
        Stage::Clippy => succeed(cargo(
            root,
            &["clippy", "--locked", "--workspace", "--all-targets", "--", "--deny", "warnings"],
        )),
        Stage::Build => succeed(cargo(root, &["build", "--locked", "--workspace"])),
        Stage::Doc => succeed(cargo(root, &["test", "--locked", "--workspace", "--doc"])),
        Stage::Test => run_tests(root, closing_line),
    }
}

/// The runner's output passes through line by line, so that its last summary can be repeated at the end.
fn run_tests(root: &Path, closing_line: &mut Option<String>) -> anyhow::Result<()> {
    let mut tests = cargo(root, &["nextest", "run", "--locked", "--workspace"]);
    let mut child = tests.stderr(Stdio::piped()).spawn().context("start cargo nextest")?;
    let stderr = child.stderr.take().expect("stderr was asked to be piped");
    for line in BufReader::new(stderr).lines() {
        let line = line.context("read the output of cargo nextest")?;
        eprintln!("{line}");
        if is_summary(&line) {
            *closing_line = Some(line);
        }
    }
    let status = child.wait().context("wait for cargo nextest")?;
    if !status.success() {
        bail!("cargo nextest ended with {status}");
    }
    Ok(())
}

/// `Summary [  12.3s] 40 tests run: 40 passed, 0 skipped`, coloured or not.
fn is_summary(line: &str) -> bool {
    line.contains("Summary") && line.contains(" run: ")
}

/// Cargo, in the workspace, with what our tests read from the environment.
pub fn cargo(root: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root).args(args);
    command
}

/// Runs the command with our standard streams.
pub fn succeed(mut command: Command) -> anyhow::Result<()> {
    let shown = format!("{command:?}");
    let status = command.status().with_context(|| format!("start {shown}"))?;
    if !status.success() {
        bail!("{shown} ended with {status}");
    }
    Ok(())
}

fn table(reports: &[Report]) -> String {
    let mut text = String::new();
    for Report { stage, took, outcome } in reports {
        let verdict = if outcome.is_ok() { "ok" } else { "FAILED" };
        let seconds = took.as_secs();
        let (minutes, seconds) = (seconds / 60, seconds % 60);
        text += &format!("{:<8} {verdict:<7} {minutes:>3} min {seconds:>2} s\n", stage.name());
        if let Err(error) = outcome {
            text += &format!("         {error:#}\n");
        }
    }
    text
}

/// Without a prebuilt library cargo compiles RocksDB itself, for twenty minutes and without a word.
fn warn_if_rocksdb_would_be_compiled() {
    if std::env::var_os("ROCKSDB_LIB_DIR").is_none() {
        eprintln!(
            "xtask: ROCKSDB_LIB_DIR is not set, so cargo will compile RocksDB from source (20 minutes); \
             `scripts/setup` does it once, then `source scripts/env` or .cargo/local.toml names the library"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_names_each_stage_its_time_and_its_error() {
        let reports = [
            Report { stage: Stage::Fmt, took: Duration::from_secs(3), outcome: Ok(()) },
            Report {
                stage: Stage::Test,
                took: Duration::from_secs(125),
                outcome: Err(anyhow::anyhow!("two tests failed")),
            },
        ];
        let text = table(&reports);
        assert_eq!(
            text,
            "fmt      ok        0 min  3 s\n\
             test     FAILED    2 min  5 s\n         two tests failed\n"
        );
    }

    #[test]
    fn the_runners_summary_is_recognised() {
        assert!(is_summary("     Summary [   0.5s] 12 tests run: 12 passed, 0 skipped"));
        assert!(is_summary("\u{1b}[32m Summary\u{1b}[0m [ 0.5s] 1 test run: 0 passed, 1 failed"));
        assert!(!is_summary("PASS [ 0.1s] asd tests::summary_of_a_segment"));
    }

    #[test]
    fn every_stage_has_a_name_of_its_own_and_tests_are_last() {
        let names: std::collections::BTreeSet<_> = Stage::ALL.iter().map(|s| s.name()).collect();
        assert_eq!(names.len(), Stage::ALL.len());
        assert_eq!(Stage::ALL.last(), Some(&Stage::Test));
    }

    #[test]
    fn a_command_that_fails_is_an_error_and_one_that_succeeds_is_not() {
        assert!(succeed(Command::new("true")).is_ok());
        let error = succeed(Command::new("false")).unwrap_err();
        assert!(error.to_string().contains("false"), "{error}");
    }
}
