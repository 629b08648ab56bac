//! Taking a lab away, whole or in pieces: the undo of `up`, the work of `down` and of `gc`.
//!
//! Owns: finding everything that belongs to one lab, and the order of its removal. Does not own: how each
//! kind of thing is removed. It trusts the infrastructure more than the state file, so it works after a kill at
//! any moment, and twice in a row.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::host_lock::{HostLock, names_in};
use super::mark::{self, Holding};
use super::mounts;
use super::namespace::{self, NETNS_DIR};
use super::processes::{self, NamespaceId, ProcessInfo};
use super::state::{self, LabLock, Names, Phase};
use crate::docker::EngineError;
use crate::steps::{Step, StepEvent};

/// Why a lab is not gone.
#[derive(Debug, thiserror::Error)]
pub enum DownError {
    /// There is nothing of that name.
    #[error("find lab {lab}: nothing of it is up; `labctl list` shows all labs")]
    NotUp {
        /// The lab.
        lab: String,
    },
    /// The machine could not be searched.
    #[error("search {what} for lab {lab}: {source}; run as root")]
    Search {
        /// The lab.
        lab: String,
        /// Where.
        what: &'static str,
        /// The system's words.
        source: io::Error,
    },
    /// Something stayed. All else was removed.
    #[error("remove all of lab {lab}: {}; run `labctl gc` as root when the cause is gone", left.join("; "))]
    Left {
        /// The lab.
        lab: String,
        /// What stayed and why.
        left: Vec<String>,
    },
    /// Docker cannot be asked, so nothing was removed.
    #[error("remove lab {lab}: {source}")]
    Engine {
        /// The lab.
        lab: String,
        /// What is wrong with Docker.
        source: EngineError,
    },
    /// Something of a lab on a cluster stayed. All else was removed.
    #[error("remove all of lab {lab}: {}; run `labctl gc` when the cause is gone", left.join("; "))]
    Remains {
        /// The lab.
        lab: String,
        /// What stayed and why.
        left: Vec<String>,
    },
}

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DownReport {
    /// The lab.
    pub lab: String,
    /// Namespaces that lost their name, and went with it unless a process was spared.
    pub namespaces: Vec<String>,
    /// Processes of the lab that were ended.
    pub processes: Vec<ProcessInfo>,
    /// Processes inside the lab that are not its own; they keep their namespace alive, without a name.
    pub spared: Vec<ProcessInfo>,
    /// Mounts that were removed.
    pub mounts: Vec<PathBuf>,
    /// What else was removed, each with its kind: `container labctl-dsr-worker`, `network labctl-dsr`.
    pub removed: Vec<String>,
    /// What to tell: kernel settings that could not be put back, things of others that were left alone.
    pub notes: Vec<String>,
    /// How long it took.
    pub took: Duration,
}

/// A name in `/run/netns` that belongs to the lab.
struct Owned {
    name: String,
    /// `None` for a file that never became a namespace.
    id: Option<NamespaceId>,
}

pub(super) fn down(
    run_dir: &Path,
    lock: LabLock,
    on_step: &mut dyn FnMut(StepEvent),
) -> Result<DownReport, DownError> {
    let known = names_in(lock.dir()).is_ok_and(|files| !files.is_empty());
    state::write_removing(&lock);
    let report = sweep(run_dir, &lock, on_step)?;
    if !known && report.namespaces.is_empty() && report.processes.is_empty() {
        return Err(DownError::NotUp { lab: report.lab });
    }
    Ok(report)
}

/// Removes everything of the lab but its folder, which goes with the lock.
pub(super) fn sweep(
    run_dir: &Path,
    lock: &LabLock,
    on_step: &mut dyn FnMut(StepEvent),
) -> Result<DownReport, DownError> {
    let started = Instant::now();
    let lab = lock.lab();
    let search = |what, source| DownError::Search { lab: lab.to_owned(), what, source };
    let mut left = Vec::new();
    let mut report = DownReport { lab: lab.to_owned(), ..DownReport::default() };

    let owned = owned(run_dir, lock).map_err(|e| search("/run/netns", e))?;
    let ids: HashSet<_> = owned.iter().filter_map(|o| o.id).collect();

    step(Step::Processes, on_step, |on_step| {
        let inside = processes::inside(run_dir, lab, &ids).map_err(|e| search("/proc", e))?;
        end_processes(inside, &mut report, &mut left, on_step);
        Ok(())
    })?;
    step(Step::RemoveNamespaces, on_step, |on_step| {
        remove_names(owned, &mut report, &mut left, on_step);
        Ok(())
    })?;
    step(Step::RemoveFiles, on_step, |on_step| {
        let mounts = mounts::below(lock.dir()).map_err(|e| search("mounts", e))?;
        remove_mounts(mounts, &mut report, &mut left, on_step);
        remove_files(lock.dir(), &mut left);
        if let Err(e) = HostLock::take().and_then(|mut host| host.release_netns_dir()) {
            left.push(format!("{NETNS_DIR}: {e}"));
        }
        Ok(())
    })?;

    if !left.is_empty() {
        return Err(DownError::Left { lab: lab.to_owned(), left });
    }
    report.took = started.elapsed();
    Ok(report)
}

fn step(
    step: Step,
    on_step: &mut dyn FnMut(StepEvent),
    work: impl FnOnce(&mut dyn FnMut(StepEvent)) -> Result<(), DownError>,
) -> Result<(), DownError> {
    let began = Instant::now();
    on_step(StepEvent::Began(step));
    work(on_step)?;
    on_step(StepEvent::Ended(step, began.elapsed()));
    Ok(())
}

/// Names that are this lab's: by the mark inside, by an intent whose file never became a namespace, or, for a
/// complete lab whose mark a user wiped, by the state file alone.
fn owned(run_dir: &Path, lock: &LabLock) -> io::Result<Vec<Owned>> {
    let listed = state::names(lock.dir());
    let prefix = format!("labctl-{}-", lock.lab());
    let is_listed = |name: &str| listed.as_ref().is_some_and(|n| n.namespaces.iter().any(|l| l == name));
    let mut names = names_in(Path::new(NETNS_DIR))?;
    names.retain(|n| n.starts_with(&prefix) || is_listed(n));

    let mut files = Vec::with_capacity(names.len());
    for name in names {
        match File::open(namespace::path_of(&name)) {
            Ok(file) => files.push((name, file)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    let holdings = mark::read_all(files.iter().map(|(_, file)| file).collect::<Vec<_>>());
    let mut owned = Vec::new();
    for ((name, file), holding) in files.into_iter().zip(holdings) {
        let ours = match holding? {
            Holding::Marked(mark) => mark.is_of(run_dir, lock.lab()),
            Holding::Unmarked => is_listed(&name) && was_whole(listed.as_ref()),
            Holding::Nothing if is_listed(&name) => {
                owned.push(Owned { name, id: None });
                continue;
            }
            Holding::Nothing => false,
        };
        if ours {
            owned.push(Owned { id: Some(processes::id_of(&file)?), name });
        }
    }
    Ok(owned)
}

/// Whether each listed name was ours once; before that, it may be of somebody who came first.
fn was_whole(names: Option<&Names>) -> bool {
    names.is_some_and(|n| n.phase != Phase::Creating)
}

fn end_processes(
    inside: processes::Inside,
    report: &mut DownReport,
    left: &mut Vec<String>,
    on_step: &mut dyn FnMut(StepEvent),
) {
    let stayed = processes::end(&inside.own);
    for process in inside.own {
        if stayed.contains(&process) {
            left.push(format!("process {} ({}) does not end", process.pid, process.command));
        } else {
            on_step(StepEvent::Did(Step::Processes, format!("process {}", process.pid)));
            report.processes.push(process);
        }
    }
    report.spared = inside.foreign;
}

fn remove_names(
    owned: Vec<Owned>,
    report: &mut DownReport,
    left: &mut Vec<String>,
    on_step: &mut dyn FnMut(StepEvent),
) {
    // The names go one after the other, the namespaces behind them all at once: the kernel takes every
    // namespace that waits for its end in one round of grace periods (`cleanup_net`).
    for Owned { name, .. } in owned {
        let path = namespace::path_of(&name);
        match namespace::remove_name(&path) {
            Ok(()) => {
                on_step(StepEvent::Did(Step::RemoveNamespaces, format!("namespace {name}")));
                report.namespaces.push(name);
            }
            Err(e) => left.push(format!("{}: {e}", path.display())),
        }
    }
}

fn remove_mounts(
    mounts: Vec<PathBuf>,
    report: &mut DownReport,
    left: &mut Vec<String>,
    on_step: &mut dyn FnMut(StepEvent),
) {
    for path in mounts {
        match mounts::unmount(&path) {
            Ok(()) => {
                on_step(StepEvent::Did(Step::RemoveFiles, format!("mount {}", path.display())));
                report.mounts.push(path);
            }
            Err(e) => left.push(format!("{}: {e}", path.display())),
        }
    }
}

/// Empties the lab's folder. The state file goes last: until then the lab can be found.
fn remove_files(dir: &Path, left: &mut Vec<String>) {
    if !left.is_empty() || mounts::below(dir).is_ok_and(|m| !m.is_empty()) {
        return;
    }
    let mut names = names_in(dir).unwrap_or_default();
    names.sort_by_key(|name| name == state::FILE);
    for name in names {
        let path = dir.join(name);
        let is_dir = fs::symlink_metadata(&path).is_ok_and(|m| m.is_dir());
        let removed = if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        match removed {
            Err(e) if e.kind() != io::ErrorKind::NotFound => left.push(format!("{}: {e}", path.display())),
            _ => {}
        }
    }
}
