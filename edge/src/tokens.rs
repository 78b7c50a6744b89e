//! Who this edge is, and which attachments it holds: a small text file, so that a restarted edge is recognised as the
//! one that held its vDisks and not taken for a stranger (P4).
//!
//! ```text
//! holdfast-edge 1
//! edge 0123456789abcdef0123456789abcdef
//! attachment demo 7
//! ```
//!
//! Invariant: the file is replaced whole (written aside, synced, renamed), so it is always the old or the new one.

use model::{AttachmentGeneration, EdgeId};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

const FIRST_LINE: &str = "holdfast-edge 1";
const FILE: &str = "edge.state";

#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    #[error("can't use {path}: {cause}")]
    Io { path: PathBuf, cause: io::Error },
    #[error(
        "{path}, line {line}, isn't what an edge writes; remove the file to begin as a new edge (another edge's name \
         may then hold the vDisks until it is taken over)"
    )]
    Content { path: PathBuf, line: usize },
}

#[derive(Debug)]
pub struct Tokens {
    path: PathBuf,
    edge: EdgeId,
    attachments: Mutex<BTreeMap<String, AttachmentGeneration>>,
}

impl Tokens {
    /// Reads the file, or makes one with `new_id`.
    pub fn load(dir: &Path, new_id: EdgeId) -> Result<Self, TokensError> {
        let path = dir.join(FILE);
        let (edge, attachments) = match fs::read_to_string(&path) {
            Ok(text) => {
                parse(&text).map_err(|line| TokensError::Content { path: path.clone(), line })?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => (new_id, BTreeMap::new()),
            Err(cause) => return Err(TokensError::Io { path, cause }),
        };
        let tokens = Self { path, edge, attachments: Mutex::new(attachments) };
        tokens.change(|_| {})?;
        Ok(tokens)
    }

    pub const fn edge(&self) -> EdgeId {
        self.edge
    }

    pub fn get(&self, vdisk: &str) -> Option<AttachmentGeneration> {
        self.attachments.lock().unwrap_or_else(PoisonError::into_inner).get(vdisk).copied()
    }

    pub fn keep(&self, vdisk: &str, token: AttachmentGeneration) -> Result<(), TokensError> {
        self.change(|all| {
            all.insert(vdisk.to_owned(), token);
        })
    }

    pub fn forget(&self, vdisk: &str) -> Result<(), TokensError> {
        self.change(|all| {
            all.remove(vdisk);
        })
    }

    fn change(
        &self,
        change: impl FnOnce(&mut BTreeMap<String, AttachmentGeneration>),
    ) -> Result<(), TokensError> {
        let mut all = self.attachments.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut all);
        let mut text = format!("{FIRST_LINE}\nedge {}\n", self.edge);
        for (vdisk, token) in &*all {
            text.push_str(&format!("attachment {vdisk} {token}\n"));
        }
        replace(&self.path, text.as_bytes())
            .map_err(|cause| TokensError::Io { path: self.path.clone(), cause })
    }
}

fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let aside = path.with_extension("new");
    let mut file = File::create(&aside)?;
    file.write_all(content)?;
    file.sync_data()?;
    fs::rename(&aside, path)?;
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

type Content = (EdgeId, BTreeMap<String, AttachmentGeneration>);

/// # Errors
/// The number of the line that is wrong.
fn parse(text: &str) -> Result<Content, usize> {
    let mut lines = text.lines();
    if lines.next() != Some(FIRST_LINE) {
        return Err(1);
    }
    let edge =
        lines.next().and_then(|line| line.strip_prefix("edge ")?.parse().ok()).ok_or(2_usize)?;
    let mut attachments = BTreeMap::new();
    for (at, line) in lines.enumerate() {
        let mut words = line.split(' ');
        let (Some("attachment"), Some(name), Some(token), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(at + 3);
        };
        let token = token.parse().map_err(|_| at + 3)?;
        attachments.insert(name.to_owned(), AttachmentGeneration(token));
    }
    Ok((edge, attachments))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restarted_edge_knows_itself_and_its_attachments() {
        let dir = tempfile::tempdir().unwrap();
        let first = Tokens::load(dir.path(), EdgeId(7)).unwrap();
        first.keep("demo", AttachmentGeneration(3)).unwrap();
        first.keep("gone", AttachmentGeneration(1)).unwrap();
        first.forget("gone").unwrap();
        let second = Tokens::load(dir.path(), EdgeId(8)).unwrap();
        assert_eq!(second.edge(), EdgeId(7));
        assert_eq!(second.get("demo"), Some(AttachmentGeneration(3)));
        assert_eq!(second.get("gone"), None);
        let text = fs::read_to_string(dir.path().join(FILE)).unwrap();
        assert_eq!(
            text, "holdfast-edge 1\nedge 00000000000000000000000000000007\nattachment demo 3\n",
            "the format is frozen"
        );
    }

    #[test]
    fn a_strange_file_is_refused_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        for (text, line) in [("", "line 1"), ("holdfast-edge 1\nedge x", "line 2")] {
            fs::write(dir.path().join(FILE), text).unwrap();
            let error = Tokens::load(dir.path(), EdgeId(1)).unwrap_err().to_string();
            assert!(error.contains(line), "{error}");
        }
    }
}
