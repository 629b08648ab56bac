//! What a provider says while it works, and how a caller stops it.
//!
//! Owns: the names of the steps and the cancel flag. Does not own: how either is shown. Between the
//! provider and the command line.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval};

/// Between two looks at the flag that a signal handler sets.
const GLANCE: Duration = Duration::from_millis(50);

/// A step of `up` or `down`, in the order in which it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Leftovers of a killed `up` of the same lab are removed, and the new names are written down.
    Prepare,
    /// One namespace a host.
    Namespaces,
    /// The bridge and a veth pair a host.
    Links,
    /// Addresses and routes.
    Addresses,
    /// Checksums and segmentation are no longer left to hardware that is not there.
    Offloads,
    /// Disturbances that the lab file asks for.
    Faults,
    /// The lab's own bpf file system.
    BpfFs,
    /// Waiting until every link carries packets.
    Ready,
    /// The state file that makes the lab findable.
    State,
    /// Clusters: the Docker network.
    Network,
    /// Clusters: the image with this program, in Docker.
    Image,
    /// `kind create cluster` itself: the only step that is not labctl's own time.
    CreateCluster,
    /// Clusters: the container that sends the requests.
    Client,
    /// Clusters: this program and its image on every node; runs beside [`Step::CreateCluster`] where it can.
    LoadNodes,
    /// Clusters: taints, pod CIDRs and manifests given to the API server.
    Deploy,
    /// Clusters: the agent has configured every node.
    Agent,
    /// Clusters: Kubernetes calls every node ready.
    Nodes,
    /// Clusters: every backend is ready.
    Backends,
    /// Clusters: names and addresses as they came out.
    Observe,
    /// `down`: processes of the lab end.
    Processes,
    /// `down`: namespaces go, and all links with them.
    RemoveNamespaces,
    /// `down`: what the lab deployed in a cluster goes.
    RemoveDeployed,
    /// `down`: nodes and client go.
    RemoveContainers,
    /// `down`: the Docker network goes.
    RemoveNetwork,
    /// `down`: images that no other lab uses go.
    RemoveImages,
    /// `down`: kernel settings that kubelets changed get their old values.
    RestoreKernel,
    /// `down`: mounts and files go.
    RemoveFiles,
}

impl Step {
    /// Whether the time is a tool's that labctl only waits for.
    pub fn is_foreign(self) -> bool {
        self == Self::CreateCluster
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Prepare => "prepare",
            Self::Namespaces | Self::RemoveNamespaces => "namespaces",
            Self::Links => "links",
            Self::Addresses => "addresses",
            Self::Offloads => "offloads",
            Self::Faults => "faults",
            Self::BpfFs => "bpf file system",
            Self::Ready => "links ready",
            Self::State => "state",
            Self::Network | Self::RemoveNetwork => "network",
            Self::Image => "image",
            Self::CreateCluster => "kind create cluster",
            Self::Client => "client",
            Self::LoadNodes => "load nodes",
            Self::Deploy => "deploy",
            Self::Agent => "agent",
            Self::Nodes => "nodes ready",
            Self::Backends => "backends ready",
            Self::Observe => "observe",
            Self::RemoveDeployed => "deployed objects",
            Self::RemoveContainers => "containers",
            Self::RemoveImages => "images",
            Self::RestoreKernel => "kernel settings",
            Self::Processes => "processes",
            Self::RemoveFiles => "files",
        })
    }
}

/// Progress of `up` and `down`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepEvent {
    /// The step begins.
    Began(Step),
    /// Something was made or removed: `namespace labctl-dsr-worker`.
    Did(Step, String),
    /// The step is complete.
    Ended(Step, Duration),
}

/// A flag that stops an `up`: it undoes what it made and returns [`crate::UpError::Cancelled`].
/// Clones share the flag; setting it is safe in a signal handler.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// A flag that is not set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Uses a flag that somebody else sets, such as a signal handler's.
    pub fn from_flag(flag: Arc<AtomicBool>) -> Self {
        Self(flag)
    }

    /// Sets the flag.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether the flag is set.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// Comes to an end when the flag is set. Signal handlers set it, which can wake nobody.
    pub(crate) async fn raised(&self) {
        let mut glance = interval(GLANCE);
        glance.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.is_cancelled() {
            glance.tick().await;
        }
    }
}

/// The steps of an asynchronous `up`. Those that run side by side all speak.
pub(crate) struct Steps<'a> {
    cancel: &'a Cancel,
    on_step: RefCell<&'a mut dyn FnMut(StepEvent)>,
}

/// The flag was set before a step began.
pub(crate) struct Cancelled;

impl<'a> Steps<'a> {
    /// Told to `on_step`, stopped by `cancel`.
    pub(crate) fn new(cancel: &'a Cancel, on_step: &'a mut dyn FnMut(StepEvent)) -> Self {
        Self { cancel, on_step: RefCell::new(on_step) }
    }

    /// Runs one step. A step that fails has no end.
    pub(crate) async fn run<T, E: From<Cancelled>>(
        &self,
        step: Step,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let began = Instant::now();
        self.say(StepEvent::Began(step));
        if self.cancel.is_cancelled() {
            return Err(Cancelled.into());
        }
        let made = work.await?;
        self.say(StepEvent::Ended(step, began.elapsed()));
        Ok(made)
    }

    /// Something was made.
    pub(crate) fn did(&self, step: Step, what: String) {
        self.say(StepEvent::Did(step, what));
    }

    fn say(&self, event: StepEvent) {
        let mut on_step = self.on_step.borrow_mut();
        (*on_step)(event);
    }
}
