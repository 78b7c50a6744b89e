//! The faults as written down: `tests/mutations/*.toml`.
//!
//! ```toml
//! [[mutation]]
//! name = "trim-by-flush-ack-time"
//! rule = "P2"
//! what = "a flush ack forgets all that is acknowledged, not what it covers"
//! file = "edge/core/src/session/log.rs"
//! old = "…"    # occurs exactly once
//! new = "…"
//! run = ["-p", "edge-core", "p2_"]    # arguments of `cargo nextest run`; must fail
//! ```
//!
//! Invariant: names are unique, every field is there and none is unknown, and `old` differs from `new`.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, bail};
use toml::{Table, Value};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mutation {
    pub name: String,
    /// The law or rule that it breaks.
    pub rule: String,
    pub what: String,
    pub file: String,
    pub old: String,
    pub new: String,
    /// Arguments of `cargo nextest run`.
    pub run: Vec<String>,
}

const FIELDS: [&str; 7] = ["name", "rule", "what", "file", "old", "new", "run"];

impl Mutation {
    /// The file's text with the fault in it.
    pub fn apply(&self, text: &str) -> anyhow::Result<String> {
        let count = text.matches(&self.old).count();
        if count != 1 {
            bail!(
                "its text occurs {count} times in {}, not once; follow the code, so that the fault stays the same",
                self.file
            );
        }
        Ok(text.replacen(&self.old, &self.new, 1))
    }
}

/// All tables of a folder, in order of their names.
pub fn load(folder: &Path) -> anyhow::Result<Vec<Mutation>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            paths.push(path);
        }
    }
    paths.sort();
    let mut all = Vec::new();
    for path in paths {
        let shown = path.display().to_string();
        let text = std::fs::read_to_string(&path).with_context(|| shown.clone())?;
        all.extend(parse(&text).context(shown)?);
    }
    let names: BTreeSet<&str> = all.iter().map(|mutation| mutation.name.as_str()).collect();
    if names.len() != all.len() {
        bail!("two mutations have the same name");
    }
    Ok(all)
}

pub fn parse(text: &str) -> anyhow::Result<Vec<Mutation>> {
    let table: Table = text.parse()?;
    let list = table.get("mutation").and_then(Value::as_array).context("no [[mutation]]")?;
    let entries = list.iter().map(|entry| entry.as_table().context("not a table"));
    entries.map(|entry| read(entry?)).collect()
}

fn read(entry: &Table) -> anyhow::Result<Mutation> {
    let text = |field: &str| {
        let value = entry.get(field).and_then(Value::as_str);
        value.map(str::to_owned).with_context(|| format!("no text `{field}`"))
    };
    let name = text("name")?;
    let mutation = (|| {
        if let Some(unknown) = entry.keys().find(|key| !FIELDS.contains(&key.as_str())) {
            bail!("`{unknown}` is not a field");
        }
        let run = entry.get("run").and_then(Value::as_array).context("no list `run`")?;
        let words = run.iter().map(|word| word.as_str().map(str::to_owned));
        let run = words.collect::<Option<Vec<_>>>().context("`run` holds words")?;
        if run.len() < 3 || run[0] != "-p" {
            bail!("`run` names a package and a filter: [\"-p\", \"asd-core\", \"a_test\"]");
        }
        let (old, new) = (text("old")?, text("new")?);
        if old == new || old.trim().is_empty() {
            bail!("it changes nothing");
        }
        let (rule, what, file) = (text("rule")?, text("what")?, text("file")?);
        Ok(Mutation { name: name.clone(), rule, what, file, old, new, run })
    })();
    mutation.with_context(|| format!("mutation {name}"))
}
