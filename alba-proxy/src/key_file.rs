//! The file of key-encryption keys: they wrap the key of every namespace, and are the only secret on this host.
//!
//! One key per line: `v1 <key id> <64 hexadecimal digits>`; empty lines and lines that begin with `#` are skipped.
//! The first key wraps new namespace keys, the others only open what they wrapped: rotation is a new first line.
//!
//! Invariant: a ring that was loaded has at least one key, ids are unique, and nobody but owner and group could read
//! the file.

use codec::{Engine, KeyEncryptionKey, KeyError, NamespaceKey, WRAPPED_KEY_BYTES, wrapped_key_id};
use model::NamespaceId;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Lines accepted; more is a mistake.
const KEYS_MAX: usize = 64;

#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    #[error("can't read the key file {path}: {cause}")]
    Read { path: PathBuf, cause: std::io::Error },
    #[error(
        "the key file {path} can be read by everybody (mode {mode:o}); run `chmod 600 {path}`",
        path = path.display()
    )]
    Open { path: PathBuf, mode: u32 },
    #[error("key file {path}, line {line}: {problem}", path = path.display())]
    Line { path: PathBuf, line: usize, problem: &'static str },
    #[error(
        "the key file {path} has no key; write a line `v1 1 <64 hexadecimal digits>`",
        path = path.display()
    )]
    Empty { path: PathBuf },
}

/// Key-encryption keys; the first is used for what is new.
#[derive(Debug)]
pub struct KeyRing {
    keys: Vec<KeyEncryptionKey>,
}

impl KeyRing {
    /// # Errors
    /// When the file is missing, open to everybody, or not of this form. Key digits are never part of an error.
    pub fn load(path: &Path) -> Result<Self, KeyFileError> {
        let read = |cause| KeyFileError::Read { path: path.to_owned(), cause };
        let mode = std::fs::metadata(path).map_err(read)?.permissions().mode() & 0o777;
        if mode & 0o007 != 0 {
            return Err(KeyFileError::Open { path: path.to_owned(), mode });
        }
        let text = std::fs::read_to_string(path).map_err(read)?;
        Self::parse(&text).map_err(|problem| match problem {
            Some((line, problem)) => KeyFileError::Line { path: path.to_owned(), line, problem },
            None => KeyFileError::Empty { path: path.to_owned() },
        })
    }

    /// The error names the line; `None` when there is no key at all.
    fn parse(text: &str) -> Result<Self, Option<(usize, &'static str)>> {
        let mut keys: Vec<KeyEncryptionKey> = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let key = parse_line(line).map_err(|problem| Some((number, problem)))?;
            if keys.iter().any(|other| other.id() == key.id()) {
                return Err(Some((number, "this key id occurs twice")));
            }
            if keys.len() == KEYS_MAX {
                return Err(Some((number, "more keys than the 64 that are allowed")));
            }
            keys.push(key);
        }
        if keys.is_empty() { Err(None) } else { Ok(Self { keys }) }
    }

    /// Wraps a namespace's key with the current key-encryption key.
    #[must_use]
    pub fn wrap(
        &self,
        namespace: NamespaceId,
        key: &NamespaceKey,
        nonce: [u8; 12],
    ) -> [u8; WRAPPED_KEY_BYTES] {
        let current = self.keys.first().expect("a ring has a key");
        current.wrap(&namespace.0.to_be_bytes(), key, nonce)
    }

    /// # Errors
    /// When the key that wrapped it isn't here, or the bytes aren't genuine.
    pub fn unwrap(&self, namespace: NamespaceId, wrapped: &[u8]) -> Result<NamespaceKey, String> {
        let id = wrapped_key_id(wrapped).map_err(|error| error.to_string())?;
        let Some(key) = self.keys.iter().find(|key| key.id() == id) else {
            return Err(format!(
                "its key is wrapped by key-encryption key {id}, which isn't in the key file"
            ));
        };
        key.unwrap(&namespace.0.to_be_bytes(), wrapped).map_err(|error: KeyError| error.to_string())
    }
}

fn parse_line(line: &str) -> Result<KeyEncryptionKey, &'static str> {
    let mut parts = line.split_ascii_whitespace();
    let (version, id, hex) = (parts.next(), parts.next(), parts.next());
    let (Some("v1"), Some(id), Some(hex), None) = (version, id, hex, parts.next()) else {
        return Err("write `v1 <key id> <64 hexadecimal digits>`");
    };
    let id = id.parse().map_err(|_| "the key id isn't a number of at most 32 bits")?;
    if hex.len() != 64 || !hex.is_ascii() {
        return Err("the key isn't 64 hexadecimal digits");
    }
    let mut bytes = [0_u8; 32];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * at..2 * at + 2], 16)
            .map_err(|_| "the key isn't 64 hexadecimal digits")?;
    }
    Ok(KeyEncryptionKey::new(id, bytes, Engine::AwsLc))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(text: &str, mode: u32) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        (dir, path)
    }

    #[test]
    fn the_first_key_wraps_and_older_ones_still_open() {
        let (old, new) = ("11".repeat(32), "22".repeat(32));
        let (_dir, path) = write(&format!("# keys\nv1 1 {old}\n"), 0o600);
        let before = KeyRing::load(&path).unwrap();
        let key = NamespaceKey::new([9; 32]);
        let wrapped = before.wrap(NamespaceId(5), &key, [1; 12]);
        let (_dir, path) = write(&format!("v1 2 {new}\n\nv1 1 {old}\n"), 0o640);
        let after = KeyRing::load(&path).unwrap();
        assert!(after.unwrap(NamespaceId(5), &wrapped).is_ok());
        assert!(after.unwrap(NamespaceId(6), &wrapped).is_err());
        let rewrapped = after.wrap(NamespaceId(5), &key, [2; 12]);
        let refused = before.unwrap(NamespaceId(5), &rewrapped).unwrap_err();
        assert!(refused.contains("key-encryption key 2"), "{refused}");
    }

    #[test]
    fn mistakes_are_named_without_showing_keys() {
        let hex = "ab".repeat(32);
        for (text, mode, want) in [
            (format!("v1 1 {hex}"), 0o644, "chmod"),
            (String::new(), 0o600, "no key"),
            (format!("v2 1 {hex}"), 0o600, "line 1"),
            (format!("\nv1 x {hex}"), 0o600, "line 2"),
            (format!("v1 1 {}", &hex[2..]), 0o600, "64"),
            (format!("v1 1 {}", hex.replace('a', "g")), 0o600, "64"),
            (format!("v1 1 {hex}\nv1 1 {hex}"), 0o600, "twice"),
        ] {
            let (_dir, path) = write(&text, mode);
            let error = KeyRing::load(&path).unwrap_err().to_string();
            assert!(error.contains(want) && !error.contains("abab"), "{error}");
        }
        assert!(KeyRing::load(Path::new("/nonexistent/keys")).is_err());
    }
}
