//! `cargo xtask tidy`: the rules of the house that neither compiler nor clippy knows.
//!
//! Four parts, each a pure function from text to findings, so that each rule has a test that breaks it:
//! [`arrows`] (who may import whom), [`manifest`] (how a crate's manifest looks), [`source`] (how a file looks),
//! [`index`] (the indexes of holes and rules are whole, and name what exists).
//! This file only reads the workspace and prints.
//!
//! Invariant: every member of the workspace and every file git knows is looked at; a crate without a rule is a finding,
//! so nothing is let through by being new.

mod arrows;
mod index;
mod manifest;
mod source;

use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};

use crate::mutate;

/// Something that isn't as the house wants it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// File and, where there is one, line: `router/src/lib.rs:12`.
    pub place: String,
    pub what: String,
}

impl Finding {
    fn new(place: impl Into<String>, what: impl Into<String>) -> Self {
        Self { place: place.into(), what: what.into() }
    }
}

pub fn run(root: &Path) -> anyhow::Result<()> {
    let mut findings = Vec::new();
    let members = read_members(root, &mut findings)?;
    findings.extend(arrows::check(&members));
    let (mut files, mut rust) = (0_usize, Vec::new());
    for path in known_files(root)? {
        // A file that git lists may have been deleted and not yet committed; links and binaries carry no rules.
        let Ok(text) = std::fs::read_to_string(root.join(&path)) else { continue };
        findings.extend(source::check(&path, &text));
        files += 1;
        if path.ends_with(".rs") {
            rust.push(text);
        }
    }
    let page =
        |path: &str| std::fs::read_to_string(root.join(path)).with_context(|| path.to_owned());
    let faults = mutate::load(&root.join(mutate::TABLES))?;
    let faults = faults.into_iter().map(|mutation| mutation.name).collect();
    let known = index::Known { rust: &rust, faults: &faults };
    findings.extend(index::check(&page(index::LAWS)?, &page(index::PAGE)?, &known));
    findings.sort();
    findings.dedup();
    for Finding { place, what } in &findings {
        eprintln!("{place}: {what}");
    }
    if !findings.is_empty() {
        bail!("{} findings", findings.len());
    }
    eprintln!("tidy: {} crates and {files} files are as they should be", members.len());
    Ok(())
}

fn read_members(
    root: &Path,
    findings: &mut Vec<Finding>,
) -> anyhow::Result<Vec<manifest::Manifest>> {
    let text = std::fs::read_to_string(root.join("Cargo.toml")).context("read Cargo.toml")?;
    let paths = manifest::members(&text)?;
    let mut members = Vec::with_capacity(paths.len());
    for path in paths {
        let file = format!("{path}/Cargo.toml");
        let text =
            std::fs::read_to_string(root.join(&file)).with_context(|| format!("read {file}"))?;
        let member = manifest::parse(&file, &text).with_context(|| format!("parse {file}"))?;
        findings.extend(manifest::check(&member));
        members.push(member);
    }
    Ok(members)
}

/// What is under version control, and what is new and not ignored: tidy should warn before the commit.
pub fn known_files(root: &Path) -> anyhow::Result<Vec<String>> {
    let output = Command::new("git")
        .current_dir(root)
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .output()
        .context("start git ls-files")?;
    if !output.status.success() {
        bail!("git ls-files: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let names = String::from_utf8(output.stdout).context("a file's name is not UTF-8")?;
    Ok(names.split('\0').filter(|name| !name.is_empty()).map(str::to_owned).collect())
}
