//! A bpf filesystem of a test's own, gone with the value.

use std::path::Path;

use anyhow::{Context as _, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

/// A mounted bpffs below a temporary folder.
#[derive(Debug)]
pub struct BpfFs {
    folder: TempDir,
}

impl BpfFs {
    /// Mounts one. Needs root.
    ///
    /// # Errors
    /// If the folder cannot be made or the mount is refused.
    pub fn mount() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("labctl-bpf-").tempdir()?;
        mount(Some("bpf"), folder.path(), Some("bpf"), MsFlags::empty(), Some("mode=0700"))
            .context("mount a bpffs; these tests need root")?;
        Ok(Self { folder })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for BpfFs {
    fn drop(&mut self) {
        // Nothing to do about a failure here; the folder then stays for somebody to see.
        let _ = umount2(self.folder.path(), MntFlags::MNT_DETACH);
    }
}
