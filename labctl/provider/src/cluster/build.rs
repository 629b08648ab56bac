//! Making a lab in a cluster, step by step, and taking everything away again when a step fails.
//!
//! Owns: the order of the steps. Does not own: each step's work.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use labctl_model::Plan;

use super::observe::{self, LookError};
use super::preflight::{self, ClusterPreflightError, Fit};
use super::{ClusterOptions, sweep};
use crate::docker::{ContainerSpec, EngineError};
use crate::kind::names;
use crate::kubernetes::{ClusterError, manifests};
use crate::lab::Lab;
use crate::netns::state::Phase;
use crate::netns::{DownError, LabLock};
use crate::steps::{Cancel, Cancelled, Step, StepEvent, Steps};
use crate::store::{self, Record, Store};

/// An image that must be pulled over a slow line takes a minute.
const READY: Duration = Duration::from_secs(120);
/// How long the slower ones of somebody else's pods are waited for.
const STRAGGLERS: Duration = Duration::from_secs(5);
/// What programs in the client's container may do: capture.
const CLIENT_CAPABILITIES: [&str; 2] = ["NET_ADMIN", "NET_RAW"];

/// Why a lab in a cluster did not come up. Everything that was made is gone, unless the variant says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum ClusterUpError {
    /// The cluster or this machine cannot run it, or a cluster cannot be what the lab file asks.
    #[error(transparent)]
    Preflight(#[from] ClusterPreflightError),
    /// It is up already.
    #[error("make lab {lab}: it is up; run `labctl down {lab}` first")]
    Exists {
        /// The lab.
        lab: String,
    },
    /// The lock is another lab's.
    #[error("make lab {lab} under the lock of lab {locked}: take the lab's own lock")]
    WrongLock {
        /// The lab of the plan.
        lab: String,
        /// The lab of the lock.
        locked: String,
    },
    /// Remains of an earlier `up` cannot be removed.
    #[error("remove what an earlier command left: {0}")]
    Leftovers(#[source] DownError),
    /// A file or folder could not be made.
    #[error("make {}: {source}", path.display())]
    Io {
        /// What.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// Docker refused.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A node did not take our image.
    #[error("load image {image} on node {node}: {said}")]
    LoadNode {
        /// The node's container.
        node: String,
        /// The image.
        image: String,
        /// The runtime's words.
        said: String,
    },
    /// The cluster refused, or did not become what it should.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// It is up and cannot be looked into.
    #[error(transparent)]
    Look(#[from] LookError),
    /// No pod serves the Service.
    #[error("find backends of Service {service}: none of its pods is ready")]
    NoBackend {
        /// `namespace/name`.
        service: String,
    },
    /// The caller's cancel flag was set.
    #[error("make the lab: interrupted, and everything that was made is removed")]
    Cancelled,
    /// A step failed and everything was kept, as was asked.
    #[error("{cause}; what was made is kept: kubectl get all -n {namespace}; labctl down removes it")]
    Kept {
        /// The step's error.
        cause: Box<ClusterUpError>,
        /// The lab's namespace.
        namespace: String,
    },
    /// A step failed and so did its undo.
    #[error("{cause}; and then to undo it: {left}")]
    Undo {
        /// The step's error.
        cause: Box<ClusterUpError>,
        /// What stayed.
        left: DownError,
    },
}

impl From<Cancelled> for ClusterUpError {
    fn from(_: Cancelled) -> Self {
        Self::Cancelled
    }
}

pub(super) async fn up(
    store: &Store,
    options: &ClusterOptions,
    lock: &LabLock,
    plan: &Plan,
    keep: bool,
    cancel: &Cancel,
    on_step: &mut dyn FnMut(StepEvent),
) -> Result<Lab, ClusterUpError> {
    if lock.lab() != plan.lab {
        return Err(ClusterUpError::WrongLock { lab: plan.lab.clone(), locked: lock.lab().to_owned() });
    }
    if let Ok(Some(record)) = store.read(&plan.lab)
        && record.phase == Phase::Ready
    {
        return Err(ClusterUpError::Exists { lab: plan.lab.clone() });
    }
    let build = Build { store, options, lock, plan, steps: Steps::new(cancel, on_step) };
    let fit = build.steps.run(Step::Prepare, build.prepare()).await?;
    let made = tokio::select! {
        biased;
        made = build.run(&fit) => made,
        () = cancel.raised() => Err(ClusterUpError::Cancelled),
    };
    match made {
        Ok(lab) => Ok(lab),
        Err(cause) if keep && !cancel.is_cancelled() => {
            Err(ClusterUpError::Kept { cause: Box::new(cause), namespace: manifests::namespace(plan) })
        }
        Err(cause) => match sweep::sweep(store, lock, &mut |_| {}).await {
            Ok(_) if cancel.is_cancelled() => Err(ClusterUpError::Cancelled),
            Ok(_) => Err(cause),
            Err(left) => Err(ClusterUpError::Undo { cause: Box::new(cause), left }),
        },
    }
}

struct Build<'a> {
    store: &'a Store,
    options: &'a ClusterOptions,
    lock: &'a LabLock,
    plan: &'a Plan,
    steps: Steps<'a>,
}

impl Build<'_> {
    async fn run(&self, fit: &Fit) -> Result<Lab, ClusterUpError> {
        let mut record = self.begin(fit)?;
        let client = async {
            self.steps.run(Step::Image, self.load_image(fit)).await?;
            self.steps.run(Step::Client, self.run_client(fit)).await
        };
        let nodes = async {
            self.steps.run(Step::LoadNodes, self.load_nodes(fit)).await?;
            self.steps.run(Step::Deploy, self.deploy(fit)).await?;
            self.steps.run(Step::Agent, self.agents_ready(fit)).await?;
            self.steps.run(Step::Backends, self.backends_ready(fit)).await
        };
        tokio::try_join!(client, nodes)?;
        let observed =
            async { Ok::<_, ClusterUpError>(observe::observe(&fit.engine, &fit.access, self.plan).await?) };
        let observed = self.steps.run(Step::Observe, observed).await?;
        if observed.plan.backends().next().is_none() {
            return Err(ClusterUpError::NoBackend { service: manifests::service_under_test(self.plan) });
        }
        record.observed = Some(observed.clone());
        record.phase = Phase::Ready;
        self.steps.run(Step::State, async { self.write(&record) }).await?;
        Ok(record.lab(observed, self.lock.dir()))
    }

    /// Looks before anything is made, except that what a killed command left goes first: its names are not free.
    async fn prepare(&self) -> Result<Fit, ClusterUpError> {
        if self.store.has_file(&self.plan.lab) {
            sweep::sweep(self.store, self.lock, &mut |_| {}).await.map_err(ClusterUpError::Leftovers)?;
        }
        let fit = preflight::run(self.options, self.plan).await?;
        for warning in &fit.warnings {
            self.steps.did(Step::Prepare, format!("warning: {warning}"));
        }
        Ok(fit)
    }

    /// Writes down what is about to be made.
    fn begin(&self, fit: &Fit) -> Result<Record, ClusterUpError> {
        let mut record = Record::intent(self.plan, fit.access.clone());
        record.image = Some(fit.image.reference.clone());
        record.loaded.clone_from(&fit.load);
        self.write(&record)?;
        Ok(record)
    }

    fn write(&self, record: &Record) -> Result<(), ClusterUpError> {
        let path = || self.lock.dir().to_owned();
        store::write(self.lock, record).map_err(|source| ClusterUpError::Io { path: path(), source })
    }

    async fn load_image(&self, fit: &Fit) -> Result<(), ClusterUpError> {
        let how = if fit.engine.load_image(&fit.image).await? { "loaded into" } else { "was in" };
        self.steps.did(Step::Image, format!("{} {how} Docker", fit.image.reference));
        Ok(())
    }

    async fn run_client(&self, fit: &Fit) -> Result<(), ClusterUpError> {
        let client = ContainerSpec {
            name: names::client(&self.plan.lab),
            image: &fit.image.reference,
            network: fit.network.clone(),
            arguments: ["node", "idle", "--lab", &self.plan.lab].map(str::to_owned).into(),
            capabilities: CLIENT_CAPABILITIES.map(str::to_owned).into(),
            labels: names::labels(&self.plan.lab, self.store.root()),
        };
        fit.engine.run(client).await?;
        self.steps.did(Step::Client, format!("{} on {}", names::client(&self.plan.lab), fit.network));
        Ok(())
    }

    async fn load_nodes(&self, fit: &Fit) -> Result<(), ClusterUpError> {
        try_join_all(fit.load.iter().map(|node| import(fit, node))).await?;
        if !fit.load.is_empty() {
            self.steps.did(Step::LoadNodes, format!("{} on {} nodes", fit.node_image, fit.load.len()));
        }
        Ok(())
    }

    async fn deploy(&self, fit: &Fit) -> Result<(), ClusterUpError> {
        let (plan, image) = (&fit.placed, &fit.node_image);
        fit.cluster.apply(&manifests::capture(plan, image)).await?;
        if !plan.datapath.external {
            let sets = try_join_all(fit.containers.iter().map(|node| fit.engine.bounding_set(node))).await?;
            let rights = manifests::Rights::of(sets);
            let agent = manifests::agent(plan, image, &fit.api_server, fit.agent_network, rights);
            fit.cluster.apply(&agent).await?;
        }
        if plan.service.foreign.is_none() {
            fit.cluster.apply(&manifests::backends(plan, image, str::to_owned)).await?;
        }
        self.steps.did(Step::Deploy, format!("namespace {}", manifests::namespace(plan)));
        Ok(())
    }

    async fn agents_ready(&self, fit: &Fit) -> Result<(), ClusterUpError> {
        let (namespace, deadline) = (manifests::namespace(self.plan), Instant::now() + READY);
        let capture = fit.cluster.wait_daemon_set(&namespace, manifests::CAPTURE, deadline);
        let agent = async {
            if self.plan.datapath.external {
                return Ok(());
            }
            fit.cluster.wait_daemon_set(&namespace, manifests::AGENT, deadline).await
        };
        Ok(tokio::try_join!(capture, agent).map(drop)?)
    }

    async fn backends_ready(&self, fit: &Fit) -> Result<(), ClusterUpError> {
        let deadline = Instant::now() + READY;
        if let (Some(namespace), Some(labels)) = (&self.plan.service.foreign, &fit.foreign_pods) {
            return Ok(fit.cluster.wait_pods(namespace, labels, deadline, STRAGGLERS).await?);
        }
        let (namespace, labels) = (manifests::namespace(self.plan), manifests::backend_labels(self.plan));
        Ok(fit.cluster.wait_deployments(&namespace, &labels, deadline).await?)
    }
}

/// Copies our image into the containerd of a node that is a container.
async fn import(fit: &Fit, node: &str) -> Result<(), ClusterUpError> {
    let argv = ["ctr", "--namespace=k8s.io", "images", "import", "--no-unpack", "-"];
    let imported = fit.engine.exec(node, &argv, Some(fit.image.archive.clone())).await?;
    if imported.is_success() {
        return Ok(());
    }
    let (node, said) = (node.to_owned(), imported.complaint());
    Err(ClusterUpError::LoadNode { node, image: fit.image.reference.clone(), said })
}
