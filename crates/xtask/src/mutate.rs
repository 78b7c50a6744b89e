//! `cargo xtask mutate`: named faults, put back one by one, and each must be caught.
//!
//! A test that never failed proves little. Here each rule that matters has a fault that breaks it, written down as an
//! exact replacement of text in `tests/mutations/*.toml`, with the narrow tests that must fail because of it. The drill
//! works on a copy of the sources below the target directory, so the checkout is never touched, and that copy keeps its
//! own build, so that a fault costs one crate's compilation.
//!
//! Every command is first run on the sources as they are: a test that fails anyway would catch everything.
//!
//! Invariant: success means that every chosen fault compiled, ran and was caught by a failing test, not by a build that
//! broke or a filter that matched nothing.

mod copy;
mod table;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use copy::Copy;
pub use table::{Mutation, load};

/// Where the faults are written down.
pub const TABLES: &str = "tests/mutations";
/// What nextest ends with when tests ran and some failed.
const TESTS_FAILED: i32 = 100;
/// Of a failed command's output, shown.
const LINES_SHOWN: usize = 30;

#[derive(Debug, Default)]
pub struct Options {
    pub only: Vec<String>,
    pub part: Option<Part>,
    pub list: bool,
}

/// Every `of`-th fault from the `number`-th on, counted from 1: the parts together are all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    number: usize,
    of: usize,
}

impl std::str::FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text
            .split_once('/')
            .and_then(|(number, of)| Some((number.parse().ok()?, of.parse().ok()?)));
        match parsed {
            Some((number, of)) if 0 < number && number <= of => Ok(Self { number, of }),
            Some(_) | None => Err("a part is I/N with I from 1 to N, as in 2/4".to_owned()),
        }
    }
}

impl Part {
    fn of<T>(self, all: Vec<T>) -> Vec<T> {
        all.into_iter().skip(self.number - 1).step_by(self.of).collect()
    }
}

/// What came of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Caught,
    Survived,
    /// It doesn't compile, or its tests don't exist or fail without it.
    Invalid,
}

struct Outcome<'a> {
    mutation: &'a Mutation,
    fate: Fate,
    took: Duration,
}

pub fn run(root: &Path, options: &Options) -> anyhow::Result<()> {
    let all = load(&root.join(TABLES))?;
    let mut chosen = choose(&all, &options.only)?;
    if let Some(part) = options.part {
        chosen = part.of(chosen);
    }
    let misfits = misfits(root, &all);
    if options.list {
        for mutation in &chosen {
            println!("{:<34} {:<10} {}", mutation.name, mutation.rule, mutation.what);
        }
    }
    if !misfits.is_empty() {
        bail!("{} mutations don't apply:\n{}", misfits.len(), misfits.join("\n"));
    }
    if options.list {
        return Ok(());
    }
    let drill = Drill::new(root)?;
    let healthy = drill.baseline(&chosen)?;
    let mut outcomes = Vec::with_capacity(chosen.len());
    for (number, mutation) in (1..).zip(&chosen) {
        eprint!("[{number}/{}] {} … ", chosen.len(), mutation.name);
        let began = Instant::now();
        let fate = match healthy.contains(&mutation.run) {
            true => drill.put_back(mutation)?,
            false => Fate::Invalid,
        };
        eprintln!("{} ({} s)", word(fate), began.elapsed().as_secs());
        outcomes.push(Outcome { mutation, fate, took: began.elapsed() });
    }
    eprint!("\n{}", summary(&outcomes));
    let bad = outcomes.iter().filter(|outcome| outcome.fate != Fate::Caught).count();
    if 0 < bad {
        bail!("{bad} of {} mutations weren't caught", outcomes.len());
    }
    Ok(())
}

fn choose<'a>(all: &'a [Mutation], only: &[String]) -> anyhow::Result<Vec<&'a Mutation>> {
    for name in only {
        if all.iter().all(|mutation| mutation.name != *name) {
            bail!("there is no mutation `{name}`; `--list` names them");
        }
    }
    let wanted = |mutation: &&Mutation| only.is_empty() || only.contains(&mutation.name);
    Ok(all.iter().filter(wanted).collect())
}

/// Those whose text isn't in the sources exactly once, each with what is wrong.
fn misfits(root: &Path, mutations: &[Mutation]) -> Vec<String> {
    let judge = |mutation: &Mutation| {
        let text = std::fs::read_to_string(root.join(&mutation.file)).unwrap_or_default();
        mutation.apply(&text).err().map(|error| format!("{}: {error:#}", mutation.name))
    };
    mutations.iter().filter_map(judge).collect()
}

const fn word(fate: Fate) -> &'static str {
    match fate {
        Fate::Caught => "caught",
        Fate::Survived => "SURVIVED",
        Fate::Invalid => "INVALID",
    }
}

fn summary(outcomes: &[Outcome<'_>]) -> String {
    let line = |outcome: &Outcome<'_>| {
        let Outcome { mutation, fate, took } = outcome;
        let (name, rule) = (&mutation.name, &mutation.rule);
        format!(
            "{name:<34} {rule:<10} {:<8} {:>4} s  {}\n",
            word(*fate),
            took.as_secs(),
            mutation.what
        )
    };
    outcomes.iter().map(line).collect()
}

/// The copy that the faults are put into, and how it is built.
struct Drill {
    copy: Copy,
    target: PathBuf,
}

/// How a command of tests ended.
struct Ended {
    code: Option<i32>,
    output: String,
}

impl Drill {
    fn new(root: &Path) -> anyhow::Result<Self> {
        let target = std::env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| root.join("target"), |dir| root.join(dir))
            .join("mutate");
        let copy = Copy::refresh(root, &target.join("sources"))?;
        eprintln!("mutate: {} files copied to {}", copy.changed, copy.root.display());
        Ok(Self { copy, target: target.join("build") })
    }

    /// The commands that succeed on the sources as they are.
    fn baseline(&self, mutations: &[&Mutation]) -> anyhow::Result<BTreeSet<Vec<String>>> {
        let commands: BTreeSet<&Vec<String>> = mutations.iter().map(|m| &m.run).collect();
        let mut healthy = BTreeSet::new();
        for (number, run) in (1..).zip(&commands) {
            eprint!("[{number}/{}] without faults: {} … ", commands.len(), run.join(" "));
            let began = Instant::now();
            let ended = self.test(run)?;
            let passes = ended.code == Some(0);
            eprintln!("{} ({} s)", if passes { "ok" } else { "FAILS" }, began.elapsed().as_secs());
            if passes {
                healthy.insert((*run).clone());
            } else {
                eprintln!("{}", last_lines(&ended.output));
            }
        }
        Ok(healthy)
    }

    fn put_back(&self, mutation: &Mutation) -> anyhow::Result<Fate> {
        let path = self.copy.root.join(&mutation.file);
        let before = std::fs::read_to_string(&path).with_context(|| mutation.file.clone())?;
        std::fs::write(&path, mutation.apply(&before)?).with_context(|| mutation.file.clone())?;
        let ended = self.test(&mutation.run);
        std::fs::write(&path, before).with_context(|| mutation.file.clone())?;
        let ended = ended?;
        let fate = match ended.code {
            Some(0) => Fate::Survived,
            Some(TESTS_FAILED) => Fate::Caught,
            Some(_) | None => Fate::Invalid,
        };
        if fate == Fate::Invalid {
            eprintln!("\n{}", last_lines(&ended.output));
        }
        Ok(fate)
    }

    /// `cargo nextest run …` in the copy. It has its own target directory: a faulty program must never be found by tests
    /// of the checkout.
    fn test(&self, run: &[String]) -> anyhow::Result<Ended> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let output = Command::new(cargo)
            .current_dir(&self.copy.root)
            .args(["nextest", "run", "--locked", "--no-tests", "fail", "--fail-fast"])
            .args(run)
            .env("CARGO_TARGET_DIR", &self.target)
            .env("CARGO_INCREMENTAL", "1")
            .env_remove("CARGO_MANIFEST_DIR")
            .stdin(Stdio::null())
            .output()
            .context("start cargo nextest")?;
        let text = [output.stdout, output.stderr].concat();
        Ok(Ended { code: output.status.code(), output: String::from_utf8_lossy(&text).into() })
    }
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n")
}

#[cfg(test)]
mod tests;
