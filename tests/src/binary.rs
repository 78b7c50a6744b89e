//! Where the `holdfast` program is.
//!
//! `HOLDFAST_BIN` names it; otherwise it lies beside the running test, built with the same profile, and is built once
//! if it is not there yet.
//!
//! Invariant: the tests run one program, and say so when they had to build it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, bail, ensure};

/// The program's path; found, or built, once per process.
pub fn holdfast() -> anyhow::Result<&'static Path> {
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let found = FOUND.get_or_init(|| find().map_err(|error| format!("{error:#}")));
    found.as_deref().map_err(|error| anyhow::anyhow!("{error}"))
}

fn find() -> anyhow::Result<PathBuf> {
    if let Some(named) = std::env::var_os("HOLDFAST_BIN") {
        let named = PathBuf::from(named);
        ensure!(named.is_file(), "HOLDFAST_BIN={} is no file", named.display());
        return Ok(named);
    }
    let exe = std::env::current_exe().context("find this program's path")?;
    let beside = beside(&exe).with_context(|| format!("find a target directory at {exe:?}"))?;
    if !beside.is_file() {
        build(&beside)?;
    }
    Ok(beside)
}

/// `target/debug/deps/crash-0123` and `target/debug/bench` both give `target/debug/holdfast`.
fn beside(exe: &Path) -> Option<PathBuf> {
    let dir = exe.parent()?;
    let profile = if dir.file_name()? == "deps" { dir.parent()? } else { dir };
    Some(profile.join("holdfast"))
}

fn build(wanted: &Path) -> anyhow::Result<()> {
    eprintln!("building {}; `cargo build -p holdfast` beforehand avoids this", wanted.display());
    let profile = wanted.parent().context("a target directory")?;
    let target = profile.parent().context("a target directory")?;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--package", "holdfast"]);
    cargo.current_dir(env!("CARGO_MANIFEST_DIR")).env("CARGO_TARGET_DIR", target);
    if profile.file_name().is_some_and(|name| name == "release") {
        cargo.arg("--release");
    }
    let status = cargo.status().context("start cargo")?;
    ensure!(status.success(), "cargo build --package holdfast ended with {status}");
    if !wanted.is_file() {
        bail!("cargo built holdfast, but not as {}", wanted.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_lies_beside_tests_and_programs_alike() {
        let expected = Some(PathBuf::from("/t/debug/holdfast"));
        assert_eq!(beside(Path::new("/t/debug/deps/crash-0123")), expected);
        assert_eq!(beside(Path::new("/t/debug/bench")), expected);
    }
}
