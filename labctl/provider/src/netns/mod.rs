//! The netns provider: every host is a network namespace on this machine.
//!
//! Owns: the calls that a command makes, and the order of their parts. Does not own: each part, which has its
//! file: `topology` decides, `build` makes, `ready` waits, `sweep` removes, `state` remembers.
//!
//! Nothing is made in the caller's own network namespace. A lab's traces outside its namespaces are the files
//! `/run/netns/labctl-<lab>-*` and the folder `<run_dir>/<lab>`, both gone after `down`.

mod build;
pub(crate) mod check;
mod collect;
pub(crate) mod ethtool;
mod faults;
pub(crate) mod host_lock;
mod mark;
mod mounts;
pub(crate) mod namespace;
pub(crate) mod netlink;
mod offloads;
mod preflight;
pub(crate) mod processes;
mod ready;
pub(crate) mod state;
mod sweep;
mod topology;

use std::path::{Path, PathBuf};

use labctl_model::Plan;

pub use build::UpError;
pub use check::Problem;
pub use collect::{GcError, GcReport, GcSweep};
pub use namespace::BrokenNamespace;
pub use netlink::NetlinkError;
pub use preflight::PreflightError;
pub use processes::ProcessInfo;
pub use state::{LabLock, LockError, StateError};
pub use sweep::{DownError, DownReport};

use crate::lab::{Lab, LabEntry};
use crate::steps::{Cancel, StepEvent};

/// Where labs keep their state by default.
const RUN_DIR: &str = "/run/labctl";

/// Labs as network namespaces of this machine.
#[derive(Clone, Debug)]
pub struct NetnsProvider {
    run_dir: PathBuf,
}

impl Default for NetnsProvider {
    fn default() -> Self {
        Self::new()
    }
}

impl NetnsProvider {
    /// With state in `/run/labctl`.
    pub fn new() -> Self {
        Self::in_dir(RUN_DIR)
    }

    /// With state in another folder, made when it is needed. Labs of other folders are foreign: they
    /// are never listed or removed, but share the names of namespaces.
    pub fn in_dir(run_dir: impl Into<PathBuf>) -> Self {
        Self { run_dir: state::absolute(run_dir.into()) }
    }

    /// The folder with the state of all labs.
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// Whether this machine can run the plan: privileges, kernel, tools that its faults need, names not
    /// taken by somebody else. Changes nothing.
    ///
    /// # Errors
    /// The first lack, with its fix.
    pub fn preflight(&self, plan: &Plan) -> Result<(), PreflightError> {
        preflight::run(&self.run_dir, plan)
    }

    /// Takes the lab's lock for as long as the value lives, also for a lab that is not up. Never waits.
    ///
    /// # Errors
    /// [`LockError::Busy`] with the process that holds it.
    pub fn lock(&self, lab: &str) -> Result<LabLock, LockError> {
        LabLock::take(&self.run_dir, lab)
    }

    /// Makes the lab. Leftovers of a killed `up` of the same name are removed first. On an error, when
    /// `cancel` is set and when `on_step` panics, everything that was made is removed again.
    ///
    /// # Errors
    /// [`UpError::Exists`] for a lab that is complete (ask [`Self::find`] first); otherwise the step that
    /// failed, with host and interface.
    pub fn up(
        &self,
        lock: &LabLock,
        plan: &Plan,
        cancel: &Cancel,
        on_step: &mut dyn FnMut(StepEvent),
    ) -> Result<Lab, UpError> {
        build::up(&self.run_dir, lock, plan, cancel, on_step)
    }

    /// The complete lab with this name, `None` if nothing of it is known. Needs no lock and no root.
    ///
    /// # Errors
    /// [`StateError::Incomplete`] for what a killed command left, [`StateError::Busy`] while a command
    /// makes it, and an unreadable state file.
    pub fn find(&self, lab: &str) -> Result<Option<Lab>, StateError> {
        state::find(&self.run_dir, lab)
    }

    /// Every lab of the run directory, sorted by name. Needs no lock and no root.
    ///
    /// # Errors
    /// When the run directory cannot be read.
    pub fn list(&self) -> Result<Vec<LabEntry>, StateError> {
        state::list(&self.run_dir)
    }

    /// Removes the lab, complete or not, and returns when nothing of it can be found any more. Processes
    /// that are not the lab's own (a user's shell) are reported and left alone.
    ///
    /// # Errors
    /// [`DownError::NotUp`] when nothing was found; otherwise what could not be removed.
    pub fn down(&self, lock: LabLock, on_step: &mut dyn FnMut(StepEvent)) -> Result<DownReport, DownError> {
        sweep::down(&self.run_dir, lock, on_step)
    }

    /// Whether there may be something of a lab here. Needs no root.
    pub fn has_traces(&self) -> bool {
        let named = host_lock::names_in(Path::new(namespace::NETNS_DIR)).unwrap_or_default();
        self.run_dir.exists() || named.iter().any(|name| name.starts_with("labctl-"))
    }

    /// Removes what no command would miss: labs whose `up` or `down` was killed, labs that lost a namespace,
    /// namespaces and processes without a lab. Complete labs and labs that a command works on stay.
    ///
    /// # Errors
    /// When the run directory cannot be read; a sweep that fails is part of the report.
    pub fn gc(&self) -> Result<GcReport, GcError> {
        collect::run(&self.run_dir)
    }
}
