//! The copy of the sources that faults are put into.
//!
//! A copy rather than a worktree of git, because what is to be proven is what lies in the checkout, committed or not.
//! Only files that differ are written: cargo goes by the time of a file, and an untouched one isn't compiled again.
//!
//! Invariant: after a refresh the copy holds exactly the files that git knows, with their present contents.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::tidy::known_files;

/// Not under version control, but says where the RocksDB library lies.
const LOCAL_CONFIG: &str = ".cargo/local.toml";

#[derive(Debug)]
pub struct Copy {
    pub root: PathBuf,
    /// Files that differed.
    pub changed: usize,
}

impl Copy {
    pub fn refresh(from: &Path, to: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(to).with_context(|| to.display().to_string())?;
        let mut wanted: BTreeSet<String> = known_files(from)?.into_iter().collect();
        wanted.insert(LOCAL_CONFIG.to_owned());
        let mut changed = 0;
        for name in &wanted {
            let path = to.join(name);
            // Listed and yet gone: deleted, and not committed yet.
            let Ok(contents) = std::fs::read(from.join(name)) else { continue };
            if std::fs::read(&path).is_ok_and(|old| old == contents) {
                continue;
            }
            let folder = path.parent().context("a file lies in a folder")?;
            std::fs::create_dir_all(folder)?;
            std::fs::write(&path, contents).with_context(|| path.display().to_string())?;
            changed += 1;
        }
        let gone = |name: &String| !wanted.contains(name) || !from.join(name).is_file();
        for name in files_below(to, to)?.iter().filter(|name| gone(name)) {
            std::fs::remove_file(to.join(name))?;
        }
        Ok(Self { root: to.to_owned(), changed })
    }
}

fn files_below(root: &Path, folder: &Path) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            names.extend(files_below(root, &path)?);
        } else if let Some(name) = path.strip_prefix(root)?.to_str() {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}
