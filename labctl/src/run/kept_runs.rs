//! Runs that are kept: which of them `labctl gc` removes.
//!
//! Owns: finding them under the current directory, telling a killed run from one under way, and removing the oldest beyond
//! a limit. Does not own: making runs ([`super::run_dir`]) or reading them ([`super::record`]). As there, everything goes
//! through handles of folders, and only files that a run writes are removed: what somebody else put there stays.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::record::{FILES, RESULTS};
use super::run_dir::{ROOT, open_folder, root_below};

/// How much may stay.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Retention {
    /// Runs of each lab.
    pub(crate) runs: Option<usize>,
    /// Bytes of all runs together. The newest run of each lab stays, however large it is.
    pub(crate) bytes: Option<u64>,
}

/// What became of a run.
#[derive(Debug)]
pub(crate) enum Collected {
    /// It is gone.
    Removed {
        /// `.labctl/dsr/run-0001`.
        path: PathBuf,
        /// Why: `its verify was killed`.
        why: &'static str,
    },
    /// It could not be removed.
    Kept {
        /// `.labctl/dsr/run-0001`.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
}

/// A run's folder that no process works on.
struct Run {
    number: u32,
    path: PathBuf,
    folder: Flock<OwnedFd>,
    bytes: u64,
    /// When its last file was written; `None` for a run that never came to that.
    completed: Option<SystemTime>,
}

/// Removes runs whose `verify` was killed, and the oldest beyond the limits.
pub(crate) fn collect(base: &Path, retention: Retention) -> Vec<Collected> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = open(base, flags, Mode::empty()).map_err(io::Error::from);
    let Ok(root) = root.and_then(|base| open_folder(base.as_fd(), ROOT)) else { return Vec::new() };
    let mut collected = Vec::new();
    let mut labs = Vec::new();
    for lab in names(root.as_fd()) {
        let Ok(folder) = open_folder(root.as_fd(), &lab) else { continue };
        let path = root_below(base).join(&lab);
        let (complete, killed): (Vec<_>, Vec<_>) =
            runs(folder.as_fd(), &path).into_iter().partition(|run| run.completed.is_some());
        killed
            .into_iter()
            .for_each(|run| collected.push(remove(folder.as_fd(), run, "its verify was killed")));
        labs.push((folder, complete));
    }
    if let Some(most) = retention.runs {
        for (folder, runs) in &mut labs {
            let beyond = runs.len().saturating_sub(most);
            let old = runs.drain(..beyond);
            old.for_each(|run| collected.push(remove(folder.as_fd(), run, "newer ones are enough")));
        }
    }
    if let Some(most) = retention.bytes {
        shrink(labs, most, &mut collected);
    }
    collected
}

/// Removes the oldest runs of all labs until the rest is small enough.
fn shrink(mut labs: Vec<(OwnedFd, Vec<Run>)>, most: u64, collected: &mut Vec<Collected>) {
    let mut total: u64 = labs.iter().flat_map(|(_, runs)| runs).map(|run| run.bytes).sum();
    let mut old = Vec::new();
    for (lab, (_, runs)) in labs.iter().enumerate() {
        old.extend(runs.iter().rev().skip(1).map(|run| (run.completed, lab, run.number)));
    }
    old.sort_unstable();
    for (_, lab, number) in old {
        if total <= most {
            break;
        }
        let (folder, runs) = &mut labs[lab];
        let Some(index) = runs.iter().position(|run| run.number == number) else { continue };
        let run = runs.remove(index);
        total -= run.bytes;
        collected.push(remove(folder.as_fd(), run, "all runs together are too large"));
    }
}

/// A lab's runs, the oldest first; those that a process works on are left out.
fn runs(lab: BorrowedFd<'_>, path: &Path) -> Vec<Run> {
    let run = |name: String| {
        let number = name.strip_prefix("run-")?.parse().ok()?;
        let folder = open_folder(lab, &name).ok()?;
        let folder = Flock::lock(folder, FlockArg::LockExclusiveNonblock).ok()?;
        let completed = size(folder.as_fd(), RESULTS).map(|(_, at)| at);
        let bytes = FILES.iter().filter_map(|file| size(folder.as_fd(), file)).map(|(bytes, _)| bytes).sum();
        Some(Run { number, path: path.join(&name), folder, bytes, completed })
    };
    let mut runs: Vec<_> = names(lab).into_iter().filter_map(run).collect();
    runs.sort_by_key(|run| run.number);
    runs
}

/// Size and time of a plain file in a folder.
fn size(folder: BorrowedFd<'_>, name: &str) -> Option<(u64, SystemTime)> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let file = File::from(nix::fcntl::openat(folder, name, flags, Mode::empty()).ok()?);
    let meta = file.metadata().ok().filter(std::fs::Metadata::is_file)?;
    Some((meta.len(), meta.modified().ok()?))
}

fn remove(lab: BorrowedFd<'_>, run: Run, why: &'static str) -> Collected {
    let Run { path, folder, .. } = run;
    for name in FILES {
        let _ = unlinkat(folder.as_fd(), name, UnlinkatFlags::NoRemoveDir);
    }
    let name = path.file_name().unwrap_or_default();
    match unlinkat(lab, name, UnlinkatFlags::RemoveDir) {
        Ok(()) => Collected::Removed { path, why },
        Err(Errno::ENOTEMPTY | Errno::EEXIST) => {
            let error = io::Error::other("it holds files that no run writes");
            Collected::Kept { path, error }
        }
        Err(error) => Collected::Kept { path, error: error.into() },
    }
}

/// Names in a folder, by its handle: whatever has been put in its place meanwhile.
fn names(folder: BorrowedFd<'_>) -> Vec<String> {
    let entries = std::fs::read_dir(format!("/proc/self/fd/{}", folder.as_raw_fd()));
    let names = entries.into_iter().flatten().flatten().filter_map(|e| e.file_name().into_string().ok());
    let mut names: Vec<_> = names.collect();
    names.sort_unstable();
    names
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn keep(base: &Path, lab: &str, number: u32, bytes: usize) -> PathBuf {
        let run = base.join(ROOT).join(lab).join(format!("run-{number:04}"));
        fs::create_dir_all(&run).unwrap();
        fs::write(run.join(RESULTS), vec![b'x'; bytes]).unwrap();
        let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000 + u64::from(number));
        File::options().append(true).open(run.join(RESULTS)).unwrap().set_modified(at).unwrap();
        run
    }

    fn removed(collected: &[Collected]) -> Vec<(String, &'static str)> {
        let name = |c: &Collected| match c {
            Collected::Removed { path, why } => {
                let mut parts: Vec<_> = path.iter().map(|p| p.to_string_lossy().into_owned()).collect();
                Some((parts.split_off(parts.len() - 2).join("/"), *why))
            }
            Collected::Kept { .. } => None,
        };
        collected.iter().filter_map(name).collect()
    }

    #[test]
    fn a_killed_run_goes_and_one_under_way_stays() {
        let dir = tempfile::tempdir().unwrap();
        assert!(collect(dir.path(), Retention::default()).is_empty());
        keep(dir.path(), "dsr", 1, 10);
        let killed = dir.path().join(ROOT).join("dsr/run-0002");
        fs::create_dir_all(&killed).unwrap();
        fs::write(killed.join("flow.pcapng"), "half").unwrap();
        let working = dir.path().join(ROOT).join("dsr/run-0003");
        fs::create_dir_all(&working).unwrap();
        let lock = Flock::lock(File::open(&working).unwrap(), FlockArg::LockExclusiveNonblock).unwrap();
        let collected = collect(dir.path(), Retention::default());
        assert_eq!(removed(&collected), [("dsr/run-0002".to_owned(), "its verify was killed")]);
        assert!(working.exists() && !killed.exists());
        drop(lock);
        assert_eq!(removed(&collect(dir.path(), Retention::default())).len(), 1);
    }

    #[test]
    fn the_oldest_go_first_and_each_lab_keeps_its_newest() {
        let dir = tempfile::tempdir().unwrap();
        for number in [1, 2, 9, 10] {
            keep(dir.path(), "dsr", number, 100);
        }
        keep(dir.path(), "snat", 5, 5_000);
        let runs = Retention { runs: Some(3), bytes: None };
        assert_eq!(
            removed(&collect(dir.path(), runs)),
            [("dsr/run-0001".to_owned(), "newer ones are enough")]
        );
        let bytes = Retention { runs: None, bytes: Some(5_200) };
        let expected = [("dsr/run-0002".to_owned(), "all runs together are too large")];
        assert_eq!(removed(&collect(dir.path(), bytes)), expected);
        let nothing = Retention { runs: None, bytes: Some(0) };
        assert_eq!(removed(&collect(dir.path(), nothing)).len(), 1);
        assert!(dir.path().join(ROOT).join("dsr/run-0010").exists());
        assert!(dir.path().join(ROOT).join("snat/run-0005").exists());
    }

    #[test]
    fn what_no_run_wrote_is_not_touched() {
        let (dir, victim) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let run = keep(dir.path(), "dsr", 1, 10);
        fs::write(run.join("notes.txt"), "mine").unwrap();
        keep(dir.path(), "dsr", 2, 10);
        let precious = keep(victim.path(), "x", 1, 10);
        symlink(precious.parent().unwrap(), dir.path().join(ROOT).join("link")).unwrap();
        fs::create_dir(dir.path().join(ROOT).join("dsr/results")).unwrap();
        let collected = collect(dir.path(), Retention { runs: Some(0), bytes: None });
        assert_eq!(removed(&collected).len(), 1);
        assert!(
            matches!(&collected[..], [Collected::Kept { error, .. }, _]
            if error.to_string() == "it holds files that no run writes"),
            "{collected:?}"
        );
        assert!(run.join("notes.txt").exists() && precious.join(RESULTS).exists());
    }
}
