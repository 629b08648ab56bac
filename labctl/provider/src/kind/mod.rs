//! The kind provider: nodes are containers that the real `kind` makes, on a Docker network of the lab's own.
//!
//! Owns: the calls that a command makes, and the order of their parts. Does not own: Docker's requests (`docker`),
//! Kubernetes' (`kubernetes`), the state file (`store`). Each part has its file: `preflight` looks, `build`
//! makes, `sweep` removes, `collect` finds what nobody would miss, `check` compares.
//!
//! A lab L consists of the kind cluster `labctl-L`, the network `labctl-L`, the container `labctl-L-client`, an image
//! that labs share, and the folder of its state. All of them are gone after `down`. `~/.kube/config` is never
//! read or written.

mod build;
pub(crate) mod check;
mod cli;
mod collect;
mod config;
mod kernel;
pub(crate) mod names;
mod observe;
mod preflight;
mod subnet;
mod sweep;

use std::path::{Path, PathBuf};

use labctl_model::{Plan, ProviderKind};

pub use build::KindUpError;
pub use cli::KindCliError;
pub use observe::ObserveError;
pub use preflight::KindPreflightError;

use crate::docker::Engine;
use crate::lab::{Lab, LabEntry};
use crate::netns::{DownError, DownReport, GcError, GcReport, LabLock, LockError, StateError};
use crate::steps::{Cancel, StepEvent};
use crate::store::{Record, Store};

/// Labs as kind clusters of this machine's Docker.
#[derive(Clone, Debug)]
pub struct KindProvider {
    store: Store,
    keep: bool,
    binary: Option<PathBuf>,
}

impl Default for KindProvider {
    fn default() -> Self {
        Self::new()
    }
}

impl KindProvider {
    /// With state in `$LABCTL_STATE_DIR`; else `/var/lib/labctl` for root; else `labctl` in `$XDG_STATE_HOME` or
    /// `~/.local/state`.
    pub fn new() -> Self {
        Self { store: Store::standard(), keep: false, binary: None }
    }

    /// With state in another folder, made when it is needed. Labs of other folders are foreign: they are
    /// never listed or removed, but share the names of clusters, networks and containers.
    pub fn in_dir(state_dir: impl Into<PathBuf>) -> Self {
        Self { store: Store::in_dir(state_dir), keep: false, binary: None }
    }

    /// Whether an `up` that fails leaves what it made, to look into; `down` and `gc` remove it. One that is
    /// cancelled never does.
    pub fn keep_failed(mut self, keep: bool) -> Self {
        self.keep = keep;
        self
    }

    /// Puts this program into the nodes, in place of the one that runs or that `LABCTL_AGENT_BINARY` names. It must
    /// be labctl, static.
    pub fn with_binary(mut self, program: impl Into<PathBuf>) -> Self {
        self.binary = Some(program.into());
        self
    }

    /// The folder with the state of all labs on clusters.
    pub fn state_dir(&self) -> &Path {
        self.store.root()
    }

    /// Whether this machine can run the plan: Docker, kind, image, names and limits, and whether a kind lab can be
    /// what the plan asks. Changes nothing.
    ///
    /// # Errors
    /// The first lack, with its fix.
    pub fn preflight(&self, plan: &Plan) -> Result<(), KindPreflightError> {
        crate::blocking::run(preflight::run(&self.store, plan, self.binary.clone())).map(drop)
    }

    /// Takes the lab's lock for as long as the value lives, also for a lab that is not up. Never waits.
    ///
    /// # Errors
    /// [`LockError::Busy`] with the process that holds it.
    pub fn lock(&self, lab: &str) -> Result<LabLock, LockError> {
        self.store.lock(lab)
    }

    /// Makes the lab, up to backends that are ready: network, cluster, image, agent, client. Leftovers of a killed
    /// `up` of the same name are removed first. On an error and when `cancel` is set, everything that was made is
    /// removed again. [`Lab::dir`] holds the `kubeconfig` and in `log/` what kind said.
    ///
    /// # Errors
    /// [`KindUpError::Exists`] for a lab that is complete (ask [`Self::find`] first); otherwise the step that
    /// failed, with what to do.
    pub fn up(
        &self,
        lock: &LabLock,
        plan: &Plan,
        cancel: &Cancel,
        on_step: &mut dyn FnMut(StepEvent),
    ) -> Result<Lab, KindUpError> {
        crate::blocking::run(build::up(self, lock, plan, cancel, on_step))
    }

    /// The complete lab with this name as it is now, `None` if nothing of it is known: addresses and pods are looked
    /// up anew each time, and offloads of pods that came since are switched off where the plan says so, so that
    /// captures may begin at once. Takes a fraction of a second; needs Docker.
    ///
    /// # Errors
    /// [`StateError::Incomplete`] for what a killed command left, [`StateError::Busy`] while a command makes it, an
    /// unreadable state file, and [`StateError::Observe`] for a lab whose cluster does not answer.
    pub fn find(&self, lab: &str) -> Result<Option<Lab>, StateError> {
        let look = async |engine: &Engine, record: &Record| {
            observe::observe(engine, &record.access, &record.asked).await
        };
        crate::blocking::run(self.store.find(lab, ProviderKind::Kind, look))
    }

    /// Every kind lab of the state folder, sorted by name, as it was when it was made. Asks neither Docker nor a
    /// cluster.
    ///
    /// # Errors
    /// When the state folder cannot be read.
    pub fn list(&self) -> Result<Vec<LabEntry>, StateError> {
        self.store.list(ProviderKind::Kind)
    }

    /// Removes the lab, complete or not, and returns when nothing of it can be found any more. Needs Docker, not
    /// kind. Clusters, networks and containers of the same name that this state folder did not make stay.
    ///
    /// # Errors
    /// [`DownError::NotUp`] when nothing was found; otherwise what could not be removed.
    pub fn down(&self, lock: LabLock, on_step: &mut dyn FnMut(StepEvent)) -> Result<DownReport, DownError> {
        crate::blocking::run(sweep::down(&self.store, lock, on_step))
    }

    /// Removes what no command would miss: labs whose `up` or `down` was killed, labs that lost a container,
    /// images that nothing uses. Complete labs and labs that a command works on stay.
    ///
    /// # Errors
    /// When the state folder cannot be read or Docker does not answer; a sweep that fails is part of the report.
    pub fn gc(&self) -> Result<GcReport, GcError> {
        crate::blocking::run(collect::run(&self.store))
    }
}
