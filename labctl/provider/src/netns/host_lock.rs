//! The machine-wide lock of short steps, and `/run/netns` itself.
//!
//! Owns: one file, `/run/labctl.lock`: its lock orders the making and removing of names and folders among all
//! commands, its text remembers what we made of `/run/netns`. Does not own: the lock of a lab.
//!
//! Like `ip netns add`, we make `/run/netns` a shared mount, so that a name which is removed here also vanishes
//! from mount namespaces that were copied meanwhile; they would keep the namespace alive otherwise. Unlike
//! it, we take the folder and the mount away again with the last lab.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::mounts;
use super::namespace::NETNS_DIR;

const LOCK_FILE: &str = "/run/labctl.lock";
/// We made the folder.
const FOLDER: &str = "folder";
/// We made it a mount point.
const MOUNT: &str = "mount";

/// Held for a few milliseconds at most: while names are checked and written down, or removed.
pub(crate) struct HostLock {
    file: Flock<File>,
    made: Vec<String>,
}

impl HostLock {
    /// Waits for the lock. Its holders only make and remove files meanwhile.
    pub(super) fn take() -> io::Result<Self> {
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW)
                .open(LOCK_FILE)?;
            let mut file = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| io::Error::from(e))?;
            // The holder before us may have removed the file that we waited on.
            let current =
                fs::metadata(LOCK_FILE).is_ok_and(|m| file.metadata().is_ok_and(|f| f.ino() == m.ino()));
            if current {
                let mut text = String::new();
                file.read_to_string(&mut text)?;
                return Ok(Self { file, made: text.split_whitespace().map(str::to_owned).collect() });
            }
        }
    }

    /// Makes `/run/netns` fit for names.
    pub(super) fn prepare_netns_dir(&mut self) -> io::Result<()> {
        if !Path::new(NETNS_DIR).exists() {
            self.remember(FOLDER)?;
            fs::create_dir_all(NETNS_DIR)?;
        }
        if mounts::is_mount_point(Path::new(NETNS_DIR))? {
            return Ok(());
        }
        self.remember(MOUNT)?;
        let none = None::<&str>;
        mount(Some(NETNS_DIR), NETNS_DIR, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
        mount(none, NETNS_DIR, none, MsFlags::MS_SHARED | MsFlags::MS_REC, none)?;
        Ok(())
    }

    /// Gives `/run/netns` back when no lab needs it: removed if it is empty, else left to its new users.
    pub(super) fn release_netns_dir(&mut self) -> io::Result<()> {
        if self.made.is_empty() {
            return Ok(());
        }
        let names = names_in(Path::new(NETNS_DIR))?;
        if names.iter().any(|n| n.starts_with("labctl-")) {
            return Ok(());
        }
        if names.is_empty() {
            self.remove_netns_dir()?;
        }
        self.forget()
    }

    fn remove_netns_dir(&self) -> io::Result<()> {
        if self.made.iter().any(|m| m == MOUNT) && mounts::is_mount_point(Path::new(NETNS_DIR))? {
            umount2(NETNS_DIR, MntFlags::empty())?;
        }
        if self.made.iter().any(|m| m == FOLDER) {
            match fs::remove_dir(NETNS_DIR) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }

    /// Writes down what is about to be made, so that a kill leaves a trace of it.
    fn remember(&mut self, what: &str) -> io::Result<()> {
        if !self.made.iter().any(|m| m == what) {
            self.made.push(what.to_owned());
            writeln!(&*self.file, "{what}")?;
        }
        Ok(())
    }

    fn forget(&mut self) -> io::Result<()> {
        self.made.clear();
        self.file.set_len(0)?;
        self.file.rewind()
    }
}

impl Drop for HostLock {
    fn drop(&mut self) {
        if self.made.is_empty() {
            // Under the lock: whoever waits for it sees that its file is gone and makes a new one.
            let _ = fs::remove_file(LOCK_FILE);
        }
    }
}

/// Names in a folder, none if it does not exist.
pub(crate) fn names_in(dir: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}
