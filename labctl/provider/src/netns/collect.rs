//! Removing what killed commands left: `labctl gc`.
//!
//! Owns: deciding which labs nobody would miss. Does not own: removing one (`sweep`).

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::host_lock::{HostLock, names_in};
use super::mark::{self, Holding};
use super::namespace::{self, NETNS_DIR};
use super::state::{self, LabLock, LockError};
use super::sweep::{self, DownError, DownReport};
use super::{Problem, check, processes};
use crate::docker::EngineError;

/// Why nothing could be collected.
#[derive(Debug, thiserror::Error)]
pub enum GcError {
    /// The machine could not be searched.
    #[error("search {}: {source}; run as root", path.display())]
    Search {
        /// Where.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// A lab could not be locked for another reason than being in use.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// Docker cannot be asked.
    #[error("search Docker: {0}")]
    Engine(#[from] EngineError),
}

/// One lab that was removed, or should have been.
#[derive(Debug)]
pub struct GcSweep {
    /// The lab.
    pub lab: String,
    /// Why: `its up or down was killed`.
    pub reason: String,
    /// What was removed, or what stayed.
    pub outcome: Result<DownReport, DownError>,
}

/// What `gc` did.
#[derive(Debug, Default)]
pub struct GcReport {
    /// Labs that were not complete or not whole.
    pub swept: Vec<GcSweep>,
    /// Complete labs, left as they are.
    pub kept: Vec<String>,
    /// Labs that a command works on, with its process.
    pub busy: Vec<(String, Option<u32>)>,
    /// Things of no lab that were removed: `image labctl/node-role:0123456789ab`.
    pub removed: Vec<String>,
}

pub(super) fn run(run_dir: &Path) -> Result<GcReport, GcError> {
    let mut report = GcReport::default();
    for lab in candidates(run_dir)? {
        let lock = match LabLock::take(run_dir, &lab) {
            Ok(lock) => lock,
            Err(LockError::Busy { lab, pid }) => {
                report.busy.push((lab, pid));
                continue;
            }
            // A name that is no lab's is not ours to remove.
            Err(LockError::Name { .. }) => continue,
            Err(other) => return Err(other.into()),
        };
        match broken(&lock) {
            None => report.kept.push(lab),
            Some(reason) => {
                let outcome = sweep::sweep(run_dir, &lock, &mut |_| {});
                report.swept.push(GcSweep { lab, reason, outcome });
            }
        }
    }
    // A kill between the removal of the last name and of the folder around it.
    HostLock::take().and_then(|mut host| host.release_netns_dir()).map_err(search(NETNS_DIR))?;
    Ok(report)
}

fn search(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> GcError {
    let path = path.into();
    move |source| GcError::Search { path, source }
}

/// Every lab that left a folder, a namespace with its mark, or a process.
fn candidates(run_dir: &Path) -> Result<BTreeSet<String>, GcError> {
    let mut labs: BTreeSet<_> = state::labs(run_dir).map_err(search(run_dir))?.into_iter().collect();
    labs.extend(marked(run_dir).map_err(search(NETNS_DIR))?);
    labs.extend(processes::labs_with_roles(run_dir).map_err(search("/proc"))?);
    Ok(labs)
}

fn marked(run_dir: &Path) -> io::Result<Vec<String>> {
    let mut names = names_in(Path::new(NETNS_DIR))?;
    names.retain(|n| n.starts_with("labctl-"));
    // A name that vanishes meanwhile is another command's `down`.
    let files: Vec<_> = names.iter().filter_map(|n| File::open(namespace::path_of(n)).ok()).collect();
    let marks = mark::read_all(&files).into_iter().filter_map(|holding| match holding {
        Ok(Holding::Marked(mark)) if mark.run_dir == run_dir => Some(mark.lab),
        _ => None,
    });
    Ok(marks.collect())
}

/// Why the lab should go; `None` if it should stay.
fn broken(lock: &LabLock) -> Option<String> {
    match state::read(lock.dir()) {
        Ok(Some(lab)) => {
            let problems = check::lab(&lab);
            // A lost namespace takes interfaces of its neighbours with it: name the cause.
            let lost = problems.iter().find(|p| matches!(p, Problem::NamespaceMissing { .. }));
            lost.or_else(|| problems.iter().find(|p| p.is_fatal())).map(Problem::to_string)
        }
        Ok(None) => Some("the command that made or removed it was killed".to_owned()),
        Err(error) => Some(error.to_string()),
    }
}
