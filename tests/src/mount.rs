//! A filesystem on a vDisk as anyone on Linux gets one: nbdfuse shows the export as a file, a loop device makes it a
//! block device, mkfs and mount do the rest.
//!
//! Invariant: dropping unmounts, detaches and ends nbdfuse, in that order, whatever went wrong before.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::cluster::{is_installed, wait_until};
use crate::tool::{Running, Tool};

/// A cluster under load answers slowly.
const LIMIT: Duration = Duration::from_secs(300);

/// The export as a loop device.
pub struct LoopDevice {
    /// `None` once detached: the kernel may give the number to somebody else at once.
    device: Option<String>,
    fuse_dir: PathBuf,
    // Ends when the file system is unmounted, or at the latest when this is dropped.
    _nbdfuse: Running,
}

impl LoopDevice {
    /// What is missing on this machine, if anything is.
    #[must_use]
    pub fn missing() -> Option<String> {
        let devices = ["/dev/fuse", "/dev/loop-control"];
        let programs = ["nbdfuse", "nbdkit", "losetup", "fusermount3"];
        let device = devices.iter().find(|path| !Path::new(path).exists());
        let program = programs.iter().find(|program| !is_installed(program));
        device.or(program).map(|missing| format!("{missing} is not available here"))
    }

    /// `dir` is made, and holds the mount points.
    pub fn attach(uri: &str, dir: &Path) -> anyhow::Result<Self> {
        Self::attach_to(&[uri], dir)
    }

    /// Through a client that connects again when the edge was away, which nbdfuse alone doesn't: nbdkit's retry filter over
    /// its NBD plugin. What was asked and not answered is asked again.
    pub fn attach_for_good(uri: &str, dir: &Path) -> anyhow::Result<Self> {
        let uri = format!("uri={uri}");
        let retry = ["--filter=retry", "nbd", &uri, "retry=60", "retries=60", "retry-delay=1"];
        let nbdkit = ["[", "nbdkit", "--exit-with-parent"];
        let exponential = ["retry-exponential=no", "]"];
        Self::attach_to(&[&nbdkit[..], &retry, &exponential].concat(), dir)
    }

    fn attach_to(server: &[&str], dir: &Path) -> anyhow::Result<Self> {
        let fuse_dir = dir.join("nbd");
        fs::create_dir_all(&fuse_dir)?;
        let file = fuse_dir.join("disk");
        let mut nbdfuse = Tool::new("nbdfuse").arg(&file).args(server).spawn()?;
        let shown = wait_until(LIMIT, "nbdfuse to show the disk", || {
            ensure!(!nbdfuse.has_ended()?, "nbdfuse ended: {}", nbdfuse.printed()?);
            Ok(file.exists())
        });
        let attached = shown.and_then(|()| {
            Tool::new("losetup").args(["--find", "--show"]).arg(&file).within(LIMIT).run()
        });
        match attached {
            Ok(device) => {
                let device = Some(device.trim().to_owned());
                Ok(Self { device, fuse_dir, _nbdfuse: nbdfuse })
            }
            Err(error) => {
                unmount_fuse(&fuse_dir);
                Err(error)
            }
        }
    }

    #[must_use]
    pub fn path(&self) -> &str {
        self.device.as_deref().expect("attached until it is detached")
    }

    pub fn mount(&self, at: &Path) -> anyhow::Result<Mounted> {
        fs::create_dir_all(at)?;
        Tool::new("mount").arg(self.path()).arg(at).within(LIMIT).run()?;
        Ok(Mounted { at: Some(at.to_path_buf()) })
    }

    /// Detaches, and says if that failed; dropping alone stays silent.
    pub fn detach(mut self) -> anyhow::Result<()> {
        let device = self.device.take().context("attached")?;
        Tool::new("losetup").args(["--detach", &device]).within(LIMIT).run()?;
        Tool::new("fusermount3").arg("-u").arg(&self.fuse_dir).within(LIMIT).run().map(drop)
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        if let Some(device) = self.device.take() {
            let _detached = Tool::new("losetup").args(["--detach", &device]).run();
        }
        unmount_fuse(&self.fuse_dir);
    }
}

fn unmount_fuse(dir: &Path) {
    // Lazily: when the server is gone a plain unmount may wait for it.
    let _unmounted = Tool::new("fusermount3").args(["-u", "-z"]).arg(dir).outcome();
}

/// A mounted filesystem.
pub struct Mounted {
    at: Option<PathBuf>,
}

impl Mounted {
    pub fn path(&self) -> &Path {
        self.at.as_deref().expect("mounted until it is unmounted")
    }

    pub fn unmount(mut self) -> anyhow::Result<()> {
        let at = self.at.take().context("mounted")?;
        Tool::new("umount").arg(&at).within(LIMIT).run().map(drop)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Some(at) = self.at.take() {
            let _unmounted = Tool::new("umount").arg("--lazy").arg(&at).outcome();
        }
    }
}
