//! Processes inside a lab's namespaces: which are the lab's own, and ending those.
//!
//! Owns: reading `/proc`, the pidfds. Does not own: starting roles (`host.rs`). A process is the lab's own if
//! its words are `<program> node <role> ... --lab <lab>`, or if its parent is; all others are somebody's shell.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::mark::{self, Holding};

/// How long a role may take to end by itself after SIGTERM.
const GRACE: Duration = Duration::from_millis(500);
/// How long the kernel may take to end a process after SIGKILL.
const KILL_DEADLINE: Duration = Duration::from_secs(5);

/// Device and inode of a namespace.
pub(super) type NamespaceId = (u64, u64);

/// A process in a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessInfo {
    /// Its number.
    pub pid: u32,
    /// Its words, joined by spaces.
    pub command: String,
}

/// Processes inside a lab.
#[derive(Debug, Default)]
pub(super) struct Inside {
    pub(super) own: Vec<ProcessInfo>,
    pub(super) foreign: Vec<ProcessInfo>,
}

/// A process inside some namespace that is not the caller's.
struct Seen {
    pid: u32,
    parent: Option<u32>,
    words: Vec<String>,
    namespace: NamespaceId,
}

pub(super) fn id_of(file: &File) -> io::Result<NamespaceId> {
    file.metadata().map(|m| (m.dev(), m.ino()))
}

/// Processes in these namespaces, and roles of the lab in namespaces that lost their name but have its mark.
pub(super) fn inside(run_dir: &Path, lab: &str, namespaces: &HashSet<NamespaceId>) -> io::Result<Inside> {
    let seen = seen()?;
    let mut own: HashSet<u32> = HashSet::new();
    for process in &seen {
        if role_of(&process.words) == Some(lab)
            && (namespaces.contains(&process.namespace) || has_mark(process.pid, run_dir, lab))
        {
            own.insert(process.pid);
        }
    }
    // Children after parents, however the numbers lie.
    let known = |own: &HashSet<u32>, p: &Seen| p.parent.is_some_and(|parent| own.contains(&parent));
    let members: Vec<_> = seen.iter().filter(|p| namespaces.contains(&p.namespace)).collect();
    while let Some(child) = members.iter().find(|p| !own.contains(&p.pid) && known(&own, p)) {
        own.insert(child.pid);
    }
    let mut found = Inside::default();
    for process in &seen {
        let info = ProcessInfo { pid: process.pid, command: process.words.join(" ") };
        if own.contains(&process.pid) {
            found.own.push(info);
        } else if namespaces.contains(&process.namespace) {
            found.foreign.push(info);
        }
    }
    Ok(found)
}

/// Labs of the run directory that have a role running, found without any name or file.
pub(super) fn labs_with_roles(run_dir: &Path) -> io::Result<Vec<String>> {
    let seen = seen()?;
    let roles = seen.iter().filter_map(|p| role_of(&p.words).map(|lab| (p.pid, lab)));
    Ok(roles.filter(|(pid, lab)| has_mark(*pid, run_dir, lab)).map(|(_, lab)| lab.to_owned()).collect())
}

/// Every process whose network namespace can be read and is not the caller's.
fn seen() -> io::Result<Vec<Seen>> {
    let here = namespace_of("self")?;
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|n| n.parse().ok()) else { continue };
        // A process that ends meanwhile, or a kernel thread, has nothing to read.
        let Ok(namespace) = namespace_of(&format!("{pid}")) else { continue };
        if namespace != here {
            found.push(Seen { pid, parent: parent_of(pid), words: words_of(pid), namespace });
        }
    }
    Ok(found)
}

fn namespace_of(pid: &str) -> io::Result<NamespaceId> {
    fs::metadata(format!("/proc/{pid}/ns/net")).map(|m| (m.dev(), m.ino()))
}

fn words_of(pid: u32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = bytes.split(|b| *b == 0).map(|word| String::from_utf8_lossy(word).into_owned());
    let mut words: Vec<_> = words.collect();
    if words.last().is_some_and(String::is_empty) {
        words.pop();
    }
    words
}

/// The fourth field of `/proc/<pid>/stat`; the second, the name, may hold spaces and parentheses.
fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// The lab of a role's command line.
fn role_of(words: &[String]) -> Option<&str> {
    let [_, node, _role, rest @ ..] = words else { return None };
    if node != "node" {
        return None;
    }
    let at = rest.iter().position(|w| w == "--lab")?;
    rest.get(at + 1).map(String::as_str)
}

/// Whether the process is in a namespace with the lab's mark, and the lab is one of ours.
fn has_mark(pid: u32, run_dir: &Path, lab: &str) -> bool {
    if !shares_files(pid, run_dir) {
        return false;
    }
    let Ok(file) = File::open(PathBuf::from(format!("/proc/{pid}/ns/net"))) else { return false };
    let holdings = mark::read_all([&file]);
    matches!(holdings.first(), Some(Ok(Holding::Marked(mark))) if mark.is_of(run_dir, lab))
}

/// Whether a process sees our run directory, or the nearest folder above it that exists. A container's labs
/// lie under the same path in a file system of its own, and their processes are in our /proc all the same.
fn shares_files(pid: u32, run_dir: &Path) -> bool {
    let id = |path: &Path| fs::metadata(path).map(|m| (m.dev(), m.ino()));
    let Some((folder, ours)) = run_dir.ancestors().find_map(|f| Some((f, id(f).ok()?))) else { return false };
    let theirs = Path::new(&format!("/proc/{pid}/root")).join(folder.strip_prefix("/").unwrap_or(folder));
    id(&theirs).is_ok_and(|theirs| theirs == ours)
}

/// Every process of this machine that has exactly this word among its arguments.
pub(crate) fn with_word(word: &str) -> io::Result<Vec<ProcessInfo>> {
    let pids = fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let found = pids.filter_map(|pid| {
        let words = words_of(pid);
        words.iter().any(|w| w == word).then(|| ProcessInfo { pid, command: words.join(" ") })
    });
    Ok(found.collect())
}

/// Ends these processes: SIGTERM, then SIGKILL for those that stay. Returns those that did not end.
pub(crate) fn end(processes: &[ProcessInfo]) -> Vec<ProcessInfo> {
    let mut alive: Vec<_> = processes.iter().filter_map(|p| Some((p, open_same(p)?))).collect();
    for (signal, deadline) in [(libc::SIGTERM, GRACE), (libc::SIGKILL, KILL_DEADLINE)] {
        for (_, pidfd) in &alive {
            send(pidfd, signal);
        }
        wait_ended(&mut alive, deadline);
    }
    alive.into_iter().map(|(process, _)| process.clone()).collect()
}

/// A handle on the process, unless it ended and its number went to another one meanwhile.
fn open_same(process: &ProcessInfo) -> Option<OwnedFd> {
    let pidfd = pidfd_open(process.pid)?;
    (words_of(process.pid).join(" ") == process.command).then_some(pidfd)
}

fn pidfd_open(pid: u32) -> Option<OwnedFd> {
    // SAFETY: the call takes two integers; a result that is not negative is a new descriptor that nobody owns.
    unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0);
        (fd >= 0).then(|| OwnedFd::from_raw_fd(fd as i32))
    }
}

fn send(pidfd: &OwnedFd, signal: i32) {
    // SAFETY: the descriptor is open, the signal information may be null (pidfd_send_signal(2)). A process
    // that ended meanwhile is an error that the wait then sees as an end.
    unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, std::ptr::null::<u8>(), 0);
    }
}

/// Drops those that ended before the deadline.
fn wait_ended(alive: &mut Vec<(&ProcessInfo, OwnedFd)>, deadline: Duration) {
    let end = Instant::now() + deadline;
    while !alive.is_empty() {
        let left = end.saturating_duration_since(Instant::now());
        let mut fds: Vec<_> =
            alive.iter().map(|(_, fd)| PollFd::new(fd.as_fd(), PollFlags::POLLIN)).collect();
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, timeout) {
            Ok(0) => return,
            Err(Errno::EINTR) => continue,
            Err(_) => return,
            Ok(_) => {}
        }
        // A pidfd becomes readable when its process ends (pidfd_open(2)).
        let mut ended = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect::<Vec<_>>().into_iter();
        alive.retain(|_| !ended.next().unwrap_or(false));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn roles_are_told_from_shells() {
        assert_eq!(role_of(&words("labctl node serve --lab dsr --port 8080")), Some("dsr"));
        assert_eq!(role_of(&words("labctl node serve --port 8080 --lab dsr")), Some("dsr"));
        for foreign in ["bash", "labctl verify dsr", "node server.js --lab dsr", "vi node serve --lab"] {
            assert_eq!(role_of(&words(foreign)), None, "{foreign}");
        }
    }
}
