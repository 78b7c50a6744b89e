//! What the kernel keeps of files in memory.
//!
//! A sync that fails leaves pages that readers see, that count as clean, and that no later sync writes; one that a later process
//! asks for succeeds. So who relies on a file of an earlier life reads it only after [`refresh`].
//!
//! Invariant: after [`refresh`] a read of what was there before it is one of the disk.

use std::fs::File;
use std::io;

use rustix::fs::{Advice, fadvise};

/// Syncs a file, and has its pages read from the disk again. Slow: for a blocking thread.
///
/// # Errors
/// When the disk fails.
pub fn refresh(file: &File) -> io::Result<()> {
    // The first may say only that a write failed before this process began; nothing is left to be written then.
    file.sync_data().or_else(|_| file.sync_data())?;
    // All pages are clean now, also those that no sync wrote.
    Ok(fadvise(file, 0, None, Advice::DontNeed)?)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn what_was_written_is_read_again() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 10_000]).unwrap();
        refresh(&file).unwrap();
        let mut bytes = [0; 10_000];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes, [7; 10_000]);
    }
}
