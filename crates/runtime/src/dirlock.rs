//! One process per data directory: an advisory lock that the kernel drops when the process ends, however it ends.

use rustix::fs::{FlockOperation, flock};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum DirLockError {
    #[error(
        "{dir} is in use by another process (pid {holder}); stop it or choose another directory"
    )]
    Held { dir: PathBuf, holder: String },
    #[error("can't use directory {dir}: {cause}; check that it exists and is writable")]
    Io { dir: PathBuf, cause: io::Error },
}

/// Holds the directory until dropped.
#[derive(Debug)]
pub struct DirLock {
    _file: File,
}

impl DirLock {
    /// Creates `dir` when absent and locks `dir/lock`.
    ///
    /// # Errors
    /// When another process holds it or the directory can't be written.
    pub fn acquire(dir: &Path) -> Result<Self, DirLockError> {
        let io_error = |cause| DirLockError::Io { dir: dir.to_owned(), cause };
        std::fs::create_dir_all(dir).map_err(io_error)?;
        let path = dir.join("lock");
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)
            .map_err(io_error)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder);
                let holder = holder.trim();
                let holder = if holder.is_empty() { "unknown" } else { holder }.to_owned();
                return Err(DirLockError::Held { dir: dir.to_owned(), holder });
            }
            Err(errno) => return Err(io_error(errno.into())),
        }
        file.set_len(0).and_then(|()| file.rewind()).map_err(io_error)?;
        writeln!(file, "{}", std::process::id()).map_err(io_error)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_held_once() {
        let dir = tempfile::tempdir().unwrap();
        let first = DirLock::acquire(dir.path()).unwrap();
        let second = DirLock::acquire(dir.path()).unwrap_err().to_string();
        assert!(second.contains(&std::process::id().to_string()), "{second}");
        drop(first);
        assert!(DirLock::acquire(dir.path()).is_ok());
    }
}
