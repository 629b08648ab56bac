//! The cluster provider: a lab in a cluster that is there already, by a context of a kubeconfig.
//!
//! Owns: the calls that a command makes, and the order of their parts. Does not own: Docker's requests (`docker`),
//! Kubernetes' (`kubernetes`), the state file (`store`). Each part has its file: `preflight` looks, `placement` finds
//! nodes for those of the lab file, `build` makes, `observe` asks, `sweep` removes, `collect` finds what nobody
//! would miss, `check` compares.
//!
//! A lab L has in the cluster the namespace `labctl-L` with everything in it, in Docker the client's container
//! `labctl-L-client` on the network of the nodes, and the folder of its state. All of them are gone after `down`.
//! Nothing else of the cluster is changed: with an external datapath not even a node, without one the service
//! under test alone is served by the lab's agent.

mod build;
pub(crate) mod check;
mod collect;
mod observe;
mod placement;
mod preflight;
mod sweep;

use std::path::{Path, PathBuf};

use labctl_model::{Plan, ProviderKind};

pub use build::ClusterUpError;
pub use observe::LookError;
pub use preflight::ClusterPreflightError;

use crate::docker::Engine;
use crate::kubernetes::{Access, Cluster, ClusterError};
use crate::lab::{Lab, LabEntry, LabState};
use crate::netns::{DownError, DownReport, GcError, GcReport, LabLock, LockError, StateError};
use crate::steps::{Cancel, StepEvent};
use crate::store::{Record, Store};

/// Which cluster, and how its nodes get labctl's image. `up` and `preflight` need it; later commands find it in the
/// lab's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterOptions {
    /// How to reach the cluster.
    pub access: Access,
    /// Image with labctl at `/labctl` that the nodes can pull. Without, the image is made of this program and
    /// copied into the nodes, which must be containers of this machine's Docker then.
    pub agent_image: Option<String>,
}

/// Labs in clusters that are there already.
#[derive(Clone, Debug)]
pub struct ClusterProvider {
    store: Store,
    keep: bool,
}

impl Default for ClusterProvider {
    fn default() -> Self {
        Self::new()
    }
}

impl ClusterProvider {
    /// With state where [`crate::KindProvider::new`] has it.
    pub fn new() -> Self {
        Self { store: Store::standard(), keep: false }
    }

    /// With state in another folder, made when it is needed. Labs of other folders are foreign: they are
    /// never listed or removed, but share the names of namespaces and containers.
    pub fn in_dir(state_dir: impl Into<PathBuf>) -> Self {
        Self { store: Store::in_dir(state_dir), keep: false }
    }

    /// A failed `up` leaves what it made, to look into.
    pub fn keep_failed(mut self, keep: bool) -> Self {
        self.keep = keep;
        self
    }

    /// The folder with the state of all labs on clusters.
    pub fn state_dir(&self) -> &Path {
        self.store.root()
    }

    /// Name of the context and URL of the API server: what a person is asked about before `up`.
    ///
    /// # Errors
    /// An unusable kubeconfig. The cluster is not asked.
    pub fn target(access: &Access) -> Result<(String, String), ClusterError> {
        let pinned = access.pinned()?;
        let cluster = crate::blocking::run(Cluster::connect(&pinned))?;
        Ok((pinned.context.unwrap_or_default(), cluster.server().to_owned()))
    }

    /// How the lab of this name reaches its cluster; `None` if nothing of it is known.
    ///
    /// # Errors
    /// An unreadable state file.
    pub fn access(&self, lab: &str) -> Result<Option<Access>, StateError> {
        let record = self.store.complete(lab, ProviderKind::Cluster)?;
        Ok(record.map(|record| record.access))
    }

    /// Whether the cluster and this machine can run the plan: an API server that answers, nodes enough, a way for
    /// the client to reach them, names that are free. Changes nothing.
    ///
    /// # Errors
    /// The first lack, with its fix.
    pub fn preflight(&self, options: &ClusterOptions, plan: &Plan) -> Result<(), ClusterPreflightError> {
        crate::blocking::run(preflight::run(options, plan)).map(drop)
    }

    /// Takes the lab's lock for as long as the value lives, also for a lab that is not up. Never waits.
    ///
    /// # Errors
    /// [`LockError::Busy`] with the process that holds it.
    pub fn lock(&self, lab: &str) -> Result<LabLock, LockError> {
        self.store.lock(lab)
    }

    /// Makes the lab, up to backends that are ready. Leftovers of a killed `up` of the same name are removed first. On
    /// an error and when `cancel` is set, everything that was made is removed again.
    ///
    /// # Errors
    /// [`ClusterUpError::Exists`] for a lab that is complete (ask [`Self::find`] first); otherwise the step that
    /// failed, with what to do.
    pub fn up(
        &self,
        options: &ClusterOptions,
        lock: &LabLock,
        plan: &Plan,
        cancel: &Cancel,
        on_step: &mut dyn FnMut(StepEvent),
    ) -> Result<Lab, ClusterUpError> {
        crate::blocking::run(build::up(&self.store, options, lock, plan, self.keep, cancel, on_step))
    }

    /// The complete lab with this name as it is now, `None` if nothing of it is known: nodes, addresses and pods are
    /// looked up anew each time. Takes a fraction of a second; needs Docker and the cluster.
    ///
    /// # Errors
    /// [`StateError::Incomplete`] for what a killed command left, [`StateError::Busy`] while a command makes it, an
    /// unreadable state file, and [`StateError::Observe`] for a lab whose cluster does not answer.
    pub fn find(&self, lab: &str) -> Result<Option<Lab>, StateError> {
        let look = async |engine: &Engine, record: &Record| {
            observe::observe(engine, &record.access, &record.asked).await
        };
        crate::blocking::run(self.store.find(lab, ProviderKind::Cluster, look))
    }

    /// Every lab of the state folder in somebody else's cluster, sorted by name, as it was when it was made. Asks
    /// neither Docker nor a cluster.
    ///
    /// # Errors
    /// When the state folder cannot be read.
    pub fn list(&self) -> Result<Vec<LabEntry>, StateError> {
        let mut entries = self.store.list(ProviderKind::Cluster)?;
        // Every provider of this folder would list it.
        entries.retain(|entry| !matches!(entry.state, LabState::Unreadable { .. }));
        Ok(entries)
    }

    /// Removes the lab, complete or not, and returns when nothing of it can be found any more. Namespaces and
    /// containers of the same name that this state folder did not make stay.
    ///
    /// # Errors
    /// [`DownError::NotUp`] when nothing was found; otherwise what could not be removed.
    pub fn down(&self, lock: LabLock, on_step: &mut dyn FnMut(StepEvent)) -> Result<DownReport, DownError> {
        crate::blocking::run(sweep::down(&self.store, lock, on_step))
    }

    /// Removes what no command would miss: labs whose `up` or `down` was killed, labs that lost their namespace or
    /// their client. Complete labs, labs that a command works on and labs whose cluster does not answer stay.
    ///
    /// # Errors
    /// When the state folder cannot be read or Docker does not answer; a sweep that fails is part of the report.
    pub fn gc(&self) -> Result<GcReport, GcError> {
        crate::blocking::run(collect::run(&self.store))
    }
}
