//! What a lab leaves on disk: `<run_dir>/<lab>/lab.json`, and the lock on its folder.
//!
//! Owns: the file's format and phases, the lock, finding labs. Does not own: what the names in it stand for.
//!
//! The file is written three times, each time by rename: before anything is made, with phase `creating` and the
//! names of all namespaces, with phase `ready` when all is made, and with phase `removing` when `down` begins. A
//! kill at any moment so leaves the list of what may exist, and never a half lab that looks whole. The lock is on the folder itself, so it needs no file and ends with its process.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use labctl_model::Plan;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::host_lock::{HostLock, names_in};
use super::mounts::{self, Device};
use super::topology::Topology;
use crate::host::{Host, HostKind};
use crate::lab::{Lab, LabEntry, LabState};

const SCHEMA: &str = "labctl.lab/v1";
pub(crate) const FILE: &str = "lab.json";
/// Not a lab name, so that it can lie beside labs.
const LOG_DIR: &str = "log";

/// Why a lab cannot be looked up.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A killed command left it so.
    #[error(
        "use lab {lab}: it is incomplete, the command that made or removed it failed or was killed; run \
         `labctl down {lab}`"
    )]
    Incomplete {
        /// The lab.
        lab: String,
    },
    /// A command is making or removing it.
    #[error("use lab {lab}: it is being made or removed by {}; try again when it has ended", holder(*pid))]
    Busy {
        /// The lab.
        lab: String,
        /// The command's process.
        pid: Option<u32>,
    },
    /// The state file is damaged or from another version.
    #[error("read {}: {reason}; remove the lab with `labctl down`", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The file system refused.
    #[error("read {}: {source}", path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// The lab is complete, and cannot be looked into now.
    #[error("look into lab {lab}: {reason}; `labctl down {lab}` removes it all the same")]
    Observe {
        /// The lab.
        lab: String,
        /// Whom labctl asked, and what went wrong.
        reason: String,
    },
}

/// Why a lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another command has it.
    #[error("lab {lab} is in use by {}; wait for it or end it", holder(*pid))]
    Busy {
        /// The lab.
        lab: String,
        /// The command's process.
        pid: Option<u32>,
    },
    /// The name cannot be a folder's.
    #[error("`{lab}` is not a lab name: use a-z, 0-9 and `-`")]
    Name {
        /// What was given.
        lab: String,
    },
    /// The file system refused.
    #[error("lock {}: {source}{}", path.display(), root_hint(source))]
    Io {
        /// The lab's folder.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// The state folder of clusters' labs cannot be used.
    #[error("lock {}: {source}; LABCTL_STATE_DIR names another folder", path.display())]
    StateDir {
        /// The lab's folder.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
}

/// Sends only those to root whom root would help: a read-only or full file system is the same for everybody.
fn root_hint(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::PermissionDenied { "; labs need root" } else { "" }
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}

/// How far a lab's `up` came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Phase {
    /// `up` has begun.
    Creating,
    /// `up` has ended well.
    Ready,
    /// `down` has begun.
    Removing,
}

/// The state file. Readers that only remove a lab need no more than the first fields: see [`Names`].
#[derive(Serialize)]
struct StateFile<'a> {
    schema: &'static str,
    lab: &'a str,
    version: &'static str,
    created: u64,
    phase: Phase,
    namespaces: Vec<String>,
    plan: &'a Plan,
    hosts: &'a [Host],
}

/// The part that every version keeps.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Names {
    pub(super) phase: Phase,
    pub(super) namespaces: Vec<String>,
}

#[derive(Deserialize)]
struct Stored {
    version: String,
    created: u64,
    plan: Plan,
    hosts: Vec<Host>,
}

/// The lock of one lab, held as long as the value lives.
#[derive(Debug)]
pub struct LabLock {
    lab: String,
    dir: PathBuf,
    guard: FolderGuard,
    // Held for its lock alone.
    _folder: Flock<File>,
}

/// What orders the making and removing of labs' folders among commands. Below it every lab's folder has a lock
/// of its own.
#[derive(Clone, Debug)]
pub(crate) enum FolderGuard {
    /// The machine's own lock, which needs root.
    Machine,
    /// The lock of the folder that holds the labs' folders; made when it is missing.
    Root(PathBuf),
}

/// Held while folders are made or removed.
pub(crate) enum FoldersHeld {
    Machine { _lock: HostLock },
    Root { _lock: Flock<File> },
}

impl FolderGuard {
    /// Waits for the lock. Its holders only make and remove folders meanwhile.
    pub(crate) fn take(&self) -> io::Result<FoldersHeld> {
        let root = match self {
            Self::Machine => return HostLock::take().map(|_lock| FoldersHeld::Machine { _lock }),
            Self::Root(root) => root,
        };
        loop {
            fs::create_dir_all(root)?;
            let file = File::open(root)?;
            let lock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| io::Error::from(e))?;
            // The holder before us may have removed the folder that we waited on.
            let current = fs::metadata(root).is_ok_and(|m| lock.metadata().is_ok_and(|l| l.ino() == m.ino()));
            if current {
                return Ok(FoldersHeld::Root { _lock: lock });
            }
        }
    }

    fn refused(&self, path: &Path) -> impl Fn(io::Error) -> LockError + use<> {
        let (path, machine) = (path.to_owned(), matches!(self, Self::Machine));
        move |source| {
            let path = path.clone();
            if machine { LockError::Io { path, source } } else { LockError::StateDir { path, source } }
        }
    }
}

impl LabLock {
    pub(super) fn take(run_dir: &Path, lab: &str) -> Result<Self, LockError> {
        Self::take_below(run_dir, lab, FolderGuard::Machine)
    }

    /// Locks the lab's folder below `root`, made if it is missing.
    pub(crate) fn take_below(root: &Path, lab: &str, guard: FolderGuard) -> Result<Self, LockError> {
        if !is_name(lab) {
            return Err(LockError::Name { lab: lab.to_owned() });
        }
        let dir = root.join(lab);
        let io = guard.refused(&dir);
        // Folders come and go under this lock only: ours cannot vanish between the two calls.
        let held = guard.take().map_err(&io)?;
        fs::create_dir_all(&dir).map_err(&io)?;
        let folder = File::open(&dir).map_err(&io)?;
        match Flock::lock(folder, FlockArg::LockExclusiveNonblock) {
            Ok(folder) => {
                drop(held);
                Ok(Self { lab: lab.to_owned(), dir, guard, _folder: folder })
            }
            Err((_, nix::Error::EWOULDBLOCK)) => {
                Err(LockError::Busy { lab: lab.to_owned(), pid: lock_holder(&dir).flatten() })
            }
            Err((_, e)) => Err(io(e.into())),
        }
    }

    /// The lab that is locked.
    pub fn lab(&self) -> &str {
        &self.lab
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for LabLock {
    fn drop(&mut self) {
        // A lab that is not up leaves no folder. It is empty then, and removing it fails if it is not.
        let Ok(_held) = self.guard.take() else { return };
        if !self.dir.join(FILE).exists() && fs::remove_dir(&self.dir).is_ok() {
            remove_if_empty(self.dir.parent());
        }
    }
}

/// Removes the run directory when the last lab is gone.
fn remove_if_empty(run_dir: Option<&Path>) {
    if let Some(run_dir) = run_dir {
        let _ = fs::remove_dir(run_dir);
    }
}

/// Keeps folder names inside the run directory.
pub(crate) fn is_name(lab: &str) -> bool {
    !lab.is_empty() && lab.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// Who holds the lock of a folder: `None` if nobody does, `Some(None)` if the kernel does not say who.
/// Reading the kernel's table, unlike trying the lock, never disturbs anybody.
pub(crate) fn lock_holder(dir: &Path) -> Option<Option<u32>> {
    let folder = File::open(dir).ok()?;
    let (device, inode) = (mounts::device_of(&folder).ok()?, folder.metadata().ok()?.ino());
    let table = fs::read_to_string("/proc/locks").ok()?;
    table.lines().find_map(|line| locked_by(line, device, inode))
}

/// `1: FLOCK  ADVISORY  WRITE 4242 fe:00:131 0 EOF` (proc_locks(5)): the device in hexadecimal, the inode in
/// decimal digits; waiters have `->` after the number.
fn locked_by(line: &str, device: Device, inode: u64) -> Option<Option<u32>> {
    let fields: Vec<_> = line.split_whitespace().collect();
    let [_, "FLOCK", _, "WRITE", pid, place, ..] = fields[..] else { return None };
    let (place, number) = place.rsplit_once(':')?;
    let (major, minor) = place.split_once(':')?;
    let hex = |digits| u32::from_str_radix(digits, 16).ok();
    let found = (hex(major)?, hex(minor)?) == device && number.parse() == Ok(inode);
    found.then(|| pid.parse().ok().filter(|pid| *pid > 0))
}

/// The folder as an absolute path with symbolic links resolved as far as it exists: marks compare it.
pub(crate) fn absolute(dir: PathBuf) -> PathBuf {
    let dir = std::path::absolute(&dir).unwrap_or(dir);
    let mut missing = Vec::new();
    let mut known = dir.as_path();
    loop {
        if let Ok(real) = known.canonicalize() {
            return missing.iter().rev().fold(real, |path, name| path.join(name));
        }
        let (Some(parent), Some(name)) = (known.parent(), known.file_name()) else { return dir };
        missing.push(name);
        known = parent;
    }
}

/// Folder of the lab's bpf file system.
pub(super) fn bpf_dir(lab_dir: &Path) -> PathBuf {
    lab_dir.join("bpf")
}

/// Writes down what is about to be made.
pub(super) fn write_intent(lock: &LabLock, plan: &Plan, topology: &Topology) -> io::Result<()> {
    write(lock, plan, &topology.hosts, Phase::Creating, now())?;
    match fs::create_dir(lock.dir().join(LOG_DIR)) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => Ok(()),
    }
}

/// Makes the lab findable.
pub(super) fn write_ready(lock: &LabLock, plan: &Plan, hosts: Vec<Host>) -> io::Result<Lab> {
    let created = now();
    write(lock, plan, &hosts, Phase::Ready, created)?;
    Ok(Lab {
        asked: plan.clone(),
        plan: plan.clone(),
        hosts,
        dir: lock.dir().to_owned(),
        created,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    })
}

/// Ends the lab's being found as complete, so that a kill in the middle of `down` leaves no lab that looks
/// whole. A full disk must not keep a lab up: then the missing namespaces tell.
pub(super) fn write_removing(lock: &LabLock) {
    if let Ok(Some(lab)) = read(lock.dir()) {
        let _ = write(lock, &lab.plan, &lab.hosts, Phase::Removing, lab.created);
    }
}

fn write(lock: &LabLock, plan: &Plan, hosts: &[Host], phase: Phase, created: u64) -> io::Result<()> {
    let state = StateFile {
        schema: SCHEMA,
        lab: &plan.lab,
        version: env!("CARGO_PKG_VERSION"),
        created,
        phase,
        namespaces: hosts.iter().map(|h| h.namespace().to_owned()).collect(),
        plan,
        hosts,
    };
    // `list` and `status` work without root.
    let readable = Permissions::from_mode(0o644);
    let file = tempfile::Builder::new().permissions(readable).tempfile_in(lock.dir())?;
    (&file).write_all(&serde_json::to_vec(&state)?)?;
    file.persist(lock.dir().join(FILE)).map_err(|e| e.error)?;
    Ok(())
}

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Names that the lab's state file lists; `None` without a file, or with one that cannot be read.
pub(super) fn names(lab_dir: &Path) -> Option<Names> {
    serde_json::from_slice(&fs::read(lab_dir.join(FILE)).ok()?).ok()
}

/// Names of all folders in the run directory that can be labs, sorted.
pub(super) fn labs(run_dir: &Path) -> io::Result<Vec<String>> {
    let mut names = names_in(run_dir)?;
    names.retain(|n| is_name(n) && run_dir.join(n).is_dir());
    Ok(names)
}

pub(super) fn find(run_dir: &Path, lab: &str) -> Result<Option<Lab>, StateError> {
    if !is_name(lab) {
        return Ok(None);
    }
    let dir = run_dir.join(lab);
    match read(&dir)? {
        Some(found) => Ok(Some(found)),
        None => match (dir.exists(), lock_holder(&dir)) {
            // A command that only asks locks the folder as well: without a state file there is no lab.
            (false, _) => Ok(None),
            (true, Some(_)) if !dir.join(FILE).exists() => Ok(None),
            (true, Some(pid)) => Err(StateError::Busy { lab: lab.to_owned(), pid }),
            (true, None) => Err(StateError::Incomplete { lab: lab.to_owned() }),
        },
    }
}

pub(super) fn list(run_dir: &Path) -> Result<Vec<LabEntry>, StateError> {
    let names = labs(run_dir).map_err(|source| StateError::Io { path: run_dir.to_owned(), source })?;
    let entries = names.into_iter().filter_map(|name| {
        let state = match find(run_dir, &name) {
            Ok(Some(lab)) => LabState::Ready(Box::new(lab)),
            Ok(None) => return None,
            Err(StateError::Busy { pid, .. }) => LabState::Busy { pid },
            Err(StateError::Incomplete { .. }) => LabState::Incomplete,
            Err(other) => LabState::Unreadable { reason: other.to_string() },
        };
        Some(LabEntry { name, state })
    });
    Ok(entries.collect())
}

/// The complete lab in this folder; `None` if there is none or it is not complete.
pub(super) fn read(dir: &Path) -> Result<Option<Lab>, StateError> {
    let path = dir.join(FILE);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(source) => return Err(StateError::Io { path, source }),
    };
    parse(&bytes, dir).map_err(|reason| StateError::Unreadable { path, reason })
}

fn parse(bytes: &[u8], dir: &Path) -> Result<Option<Lab>, String> {
    let value: Value = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    match value.get("schema").and_then(Value::as_str) {
        Some(SCHEMA) => {}
        other => return Err(format!("its schema is {}, not {SCHEMA}", other.unwrap_or("missing"))),
    }
    let names = Names::deserialize(&value).map_err(|e| e.to_string())?;
    if names.phase != Phase::Ready {
        return Ok(None);
    }
    let Stored { version, created, plan, hosts } =
        serde_json::from_value(value).map_err(|e| e.to_string())?;
    for kind in [HostKind::Client, HostKind::Switch] {
        if !hosts.iter().any(|h| h.kind == kind) {
            return Err(format!("it lists no {kind:?}").to_lowercase());
        }
    }
    Ok(Some(Lab { asked: plan.clone(), plan, hosts, dir: dir.to_owned(), created, version }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_table_lines_are_read() {
        let (line, device) = ("3: FLOCK  ADVISORY  WRITE 4242 fe:10:131 0 EOF", (254, 16));
        assert_eq!(locked_by(line, device, 131), Some(Some(4242)));
        assert_eq!(locked_by(line, device, 132), None);
        assert_eq!(locked_by(line, (0, 16), 131), None, "another file system has that inode too");
        assert_eq!(locked_by("3: -> FLOCK  ADVISORY  WRITE 4242 fe:10:131 0 EOF", device, 131), None);
        assert_eq!(locked_by("1: POSIX  ADVISORY  WRITE 4242 fe:10:131 0 EOF", device, 131), None);
        // A holder in another process namespace has no number here.
        assert_eq!(locked_by("3: FLOCK  ADVISORY  WRITE 0 fe:10:131 0 EOF", device, 131), Some(None));
    }

    #[test]
    fn lab_names_stay_inside_the_run_directory() {
        for bad in ["", "..", "a/b", "A", "a b", ".hidden"] {
            assert!(!is_name(bad), "{bad}");
        }
        assert!(is_name("dsr-2"));
    }

    #[test]
    fn state_of_another_version_is_told() {
        let error = parse(br#"{"schema":"labctl.lab/v9"}"#, Path::new("/x")).unwrap_err();
        assert_eq!(error, "its schema is labctl.lab/v9, not labctl.lab/v1");
        assert!(parse(b"{", Path::new("/x")).is_err());
    }
}
