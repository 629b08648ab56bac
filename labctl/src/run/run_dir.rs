//! The folder of one run: `.labctl/<lab>/run-NNNN/` under the current directory.
//!
//! Owns: choosing the number, giving what it made to the user behind sudo, and taking the folder away again
//! when the run came to no result. Does not own: what is written into it.
//!
//! It is written by root into folders that may be anybody's, such as a repository that was just cloned. So everything
//! goes through handles of folders: no symbolic link is followed, no file that exists is written, and only what this run
//! made itself is given away.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::fchown;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, open, openat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

/// The folder for evidence, under the current directory.
pub(super) const ROOT: &str = ".labctl";

/// Evidence holds the traffic of whoever typed the command.
const FILE_MODE: Mode = Mode::S_IRUSR.union(Mode::S_IWUSR);

/// Evidence could not be kept.
#[derive(Debug, thiserror::Error)]
#[error("write evidence to {}: {source}", path.display())]
pub(crate) struct EvidenceError {
    path: PathBuf,
    source: io::Error,
}

impl EvidenceError {
    /// With the path that could not be written.
    pub(crate) fn at(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self { path, source }
    }
}

/// A run's folder. Dropped before [`RunDir::keep`], it is removed with everything that was written into it.
#[derive(Debug)]
pub(crate) struct RunDir {
    path: PathBuf,
    /// `.labctl` and its parent, the lab's folder in it, the run's folder in that.
    base: OwnedFd,
    root: OwnedFd,
    lab: OwnedFd,
    /// Locked as long as this process lives: `gc` tells a killed run from one under way by it.
    run: Flock<OwnedFd>,
    written: RefCell<Vec<String>>,
    owner: Option<(u32, u32)>,
    kept: bool,
}

impl RunDir {
    /// Makes the next run's folder.
    ///
    /// # Errors
    /// When the current directory cannot be written, or a link or a file is where a folder should be.
    pub(crate) fn create(lab: &str) -> Result<Self, EvidenceError> {
        Self::create_in(Path::new("."), lab, behind_sudo())
    }

    fn create_in(base: &Path, lab: &str, owner: Option<(u32, u32)>) -> Result<Self, EvidenceError> {
        let at_root = root_below(base);
        let at_lab = at_root.join(lab);
        let folder = open(base, OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
        let base = folder.map_err(|e| EvidenceError::at(base)(e.into()))?;
        let root = enter(base.as_fd(), ROOT, owner).map_err(EvidenceError::at(&at_root))?;
        let inside = enter(root.as_fd(), lab, owner).map_err(EvidenceError::at(&at_lab))?;
        let last = last_number(inside.as_fd());
        for number in last..=u32::MAX {
            let Some(number) = number.checked_add(1) else { break };
            let name = format!("run-{number:04}");
            let path = at_lab.join(&name);
            match make(inside.as_fd(), &name, owner) {
                Ok(run) => {
                    let run = Flock::lock(run, FlockArg::LockExclusiveNonblock)
                        .map_err(|(_, error)| EvidenceError::at(&path)(error.into()))?;
                    let written = RefCell::default();
                    return Ok(Self { path, base, root, lab: inside, run, written, owner, kept: false });
                }
                // Another verify was quicker; making a folder is atomic, so each gets its own.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(EvidenceError::at(path)(error)),
            }
        }
        let full = format!("run-{last} leaves no number for another run; remove it");
        Err(EvidenceError::at(at_lab)(io::Error::other(full)))
    }

    /// Its path, relative to the current directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Its own name: `run-0007`.
    pub(crate) fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Writes a new file; a disk that is full shows here.
    ///
    /// # Errors
    /// When it exists, or cannot be written whole.
    pub(crate) fn write(
        &self,
        name: &str,
        content: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<PathBuf, EvidenceError> {
        let path = self.path.join(name);
        let written = || {
            let flags =
                OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let file = File::from(openat(self.run.as_fd(), name, flags, FILE_MODE)?);
            self.written.borrow_mut().push(name.to_owned());
            give_away(file.as_fd(), self.owner);
            let mut file = io::BufWriter::new(file);
            content(&mut file)?;
            file.flush()
        };
        written().map_err(EvidenceError::at(&path))?;
        Ok(path)
    }

    /// The run came to a result: the folder stays.
    pub(crate) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        // Nothing more can be done about a folder that does not want to go; and parents that hold earlier runs, or
        // anything else, are not empty and stay.
        for name in self.written.borrow().iter() {
            let _ = unlinkat(self.run.as_fd(), name.as_str(), UnlinkatFlags::NoRemoveDir);
        }
        let lab = self.path.parent().and_then(Path::file_name).unwrap_or_default();
        let _ = unlinkat(&self.lab, self.name().as_str(), UnlinkatFlags::RemoveDir);
        let _ = unlinkat(&self.root, lab, UnlinkatFlags::RemoveDir);
        let _ = unlinkat(&self.base, ROOT, UnlinkatFlags::RemoveDir);
    }
}

/// The path of the folder for evidence, as people write it.
pub(super) fn root_below(base: &Path) -> PathBuf {
    let path = base.join(ROOT).components().collect::<PathBuf>();
    path.strip_prefix(".").unwrap_or(&path).to_owned()
}

/// Opens a folder in a folder, and makes it if it is not there. A link is not followed.
fn enter(parent: BorrowedFd<'_>, name: &str, owner: Option<(u32, u32)>) -> io::Result<OwnedFd> {
    match make(parent, name, owner) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => open_folder(parent, name),
        made => made,
    }
}

/// Makes a folder in a folder.
fn make(parent: BorrowedFd<'_>, name: &str, owner: Option<(u32, u32)>) -> io::Result<OwnedFd> {
    mkdirat(parent, name, Mode::from_bits_truncate(0o777))?;
    let folder = open_folder(parent, name)?;
    give_away(folder.as_fd(), owner);
    Ok(folder)
}

pub(super) fn open_folder(parent: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(parent, name, flags, Mode::empty()).map_err(|error| match error {
        Errno::ELOOP | Errno::ENOTDIR => io::Error::new(
            io::ErrorKind::NotADirectory,
            "it is a link or no folder, and evidence is written through neither; move it out of the way",
        ),
        error => error.into(),
    })
}

/// The highest number of a run in this folder, 0 without any.
fn last_number(parent: BorrowedFd<'_>) -> u32 {
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.strip_prefix("run-")?.parse().ok();
    // The handle's own name in /proc: the folder itself, whatever has been put in its place meanwhile.
    let entries = fs::read_dir(format!("/proc/self/fd/{}", parent.as_raw_fd()));
    entries.into_iter().flatten().flatten().filter_map(number).max().unwrap_or(0)
}

/// Under sudo, whoever typed the command.
fn behind_sudo() -> Option<(u32, u32)> {
    let id = |name: &str| std::env::var(name).ok().and_then(|id| id.parse::<u32>().ok());
    id("SUDO_UID").zip(id("SUDO_GID"))
}

/// What a run makes belongs to whoever will want to read and delete it.
fn give_away(made: BorrowedFd<'_>, owner: Option<(u32, u32)>) {
    if let Some((user, group)) = owner {
        // Without the right to give files away they stay root's, which is the usual state of things.
        let _ = fchown(made, Some(user), Some(group));
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    #[test]
    fn runs_are_numbered_and_a_run_without_result_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join(ROOT);
        let first = RunDir::create_in(dir.path(), "dsr", None).unwrap();
        assert_eq!(first.name(), "run-0001");
        let file = first.write("results.json", |out| out.write_all(b"{}")).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        first.keep();
        let second = RunDir::create_in(dir.path(), "dsr", None).unwrap();
        assert_eq!(second.name(), "run-0002");
        second.write("results.json", |out| out.write_all(b"{}")).unwrap();
        drop(second);
        assert!(root.join("dsr/run-0001/results.json").exists());
        assert!(!root.join("dsr/run-0002").exists());
        fs::remove_dir_all(root.join("dsr/run-0001")).unwrap();
        drop(RunDir::create_in(dir.path(), "dsr", None).unwrap());
        assert!(!root.exists(), "an empty evidence folder stayed");
    }

    #[test]
    fn a_path_that_cannot_be_made_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(ROOT), "").unwrap();
        let error = RunDir::create_in(dir.path(), "dsr", None).unwrap_err().to_string();
        let path = dir.path().join(ROOT);
        assert!(
            error.starts_with(&format!("write evidence to {}: it is a link or no folder", path.display())),
            "{error}"
        );
    }

    #[test]
    fn links_are_not_followed() {
        let (dir, victim) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        symlink(victim.path(), dir.path().join(ROOT)).unwrap();
        let refused = |lab| RunDir::create_in(dir.path(), lab, None).unwrap_err().to_string();
        assert!(refused("dsr").contains("is a link or no folder"));
        fs::remove_file(dir.path().join(ROOT)).unwrap();
        fs::create_dir(dir.path().join(ROOT)).unwrap();
        symlink(victim.path(), dir.path().join(ROOT).join("dsr")).unwrap();
        assert!(refused("dsr").contains("is a link or no folder"));
        let run = RunDir::create_in(dir.path(), "snat", None).unwrap();
        let target = victim.path().join("file");
        symlink(&target, run.path().join("results.json")).unwrap();
        run.write("results.json", |out| out.write_all(b"x")).unwrap_err();
        assert!(
            fs::read_dir(victim.path()).unwrap().next().is_none(),
            "something was written through a link"
        );
    }

    #[test]
    fn only_what_a_run_made_is_given_away() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(ROOT)).unwrap();
        let owner = |path: &Path| fs::metadata(path).map(|m| (m.uid(), m.gid())).unwrap();
        let own = owner(&dir.path().join(ROOT));
        // Only root gives files away; for anybody else they stay their own.
        let expected = if nix::unistd::geteuid().is_root() { (1234, 1235) } else { own };
        let run = RunDir::create_in(dir.path(), "dsr", Some((1234, 1235))).unwrap();
        let file = run.write("results.json", |out| out.write_all(b"x")).unwrap();
        assert_eq!(owner(&dir.path().join(ROOT)), own, "it was there before");
        assert_eq!([owner(&file), owner(run.path())], [expected; 2]);
    }

    #[test]
    fn the_last_number_is_the_end() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join(ROOT).join("dsr/run-4294967295")).unwrap();
        let error = RunDir::create_in(dir.path(), "dsr", None).unwrap_err().to_string();
        assert!(error.ends_with("run-4294967295 leaves no number for another run; remove it"), "{error}");
        fs::create_dir_all(dir.path().join(ROOT).join("snat/run-42949672960")).unwrap();
        let run = RunDir::create_in(dir.path(), "snat", None).unwrap();
        assert_eq!(run.name(), "run-0001", "what is no number of a run counts for nothing");
    }
}
