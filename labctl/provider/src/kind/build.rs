//! Making a kind lab, step by step, and taking everything away again when a step fails.
//!
//! Owns: the order of the steps and what runs beside what. Does not own: each step's work. What takes long is kind's
//! own: our image is made, loaded and copied into the nodes while kubeadm still works in them.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use labctl_model::{NodeRole, Plan};
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval};

use super::cli::{Create, CreateError};
use super::observe::{self, NODE_PROGRAM, ObserveError};
use super::preflight::{self, Fit, KindPreflightError};
use super::{KindProvider, config, kernel, names, subnet, sweep};
use crate::docker::{AgentImage, ContainerSpec, Engine, EngineError};
use crate::kubernetes::{Access, Cluster, ClusterError, ClusterNode, manifests};
use crate::lab::Lab;
use crate::netns::state::Phase;
use crate::netns::{DownError, LabLock};
use crate::steps::{Cancel, Cancelled, Step, StepEvent, Steps};
use crate::store::{self, Record, Store};

/// kind waits for the API server itself; this is for one that stops answering afterwards.
const API: Duration = Duration::from_secs(60);
/// kind itself gives workers a few minutes to join.
const JOIN: Duration = Duration::from_secs(5 * 60);
/// Ten times what each takes on a busy machine.
const READY: Duration = Duration::from_secs(120);
/// Only the taints that kubeadm puts on control planes, by their names before and since Kubernetes 1.24.
const TAINTS: [&str; 2] = ["node-role.kubernetes.io/master", "node-role.kubernetes.io/control-plane"];
/// kind's step in which every node runs, and containerd in it.
const NODES_RUN: &str = "Starting control-plane";
/// kind's steps after kubeadm has initialized the control plane.
const API_RUNS: [&str; 2] = ["Installing StorageClass", "Joining worker nodes"];
/// Port of the API server in its node.
const API_PORT: u16 = 6443;
/// Between two looks for nodes that have joined: the first looks fail while workers join.
const JOIN_GLANCE: Duration = Duration::from_millis(250);
/// What programs in the client's container may do: capture, and switch offloads off.
const CLIENT_CAPABILITIES: [&str; 2] = ["NET_ADMIN", "NET_RAW"];

/// Why a kind lab did not come up. Everything that was made is gone, unless the variant says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum KindUpError {
    /// The machine cannot run it, or kind cannot be what the lab file asks.
    #[error(transparent)]
    Preflight(#[from] KindPreflightError),
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
    /// The node image cannot be had.
    #[error(
        "get node image {image}: {}; look for one that is there with `docker images`, and give it with --image or \
         `image` in the lab file",
        said
    )]
    NodeImage {
        /// The image, or `kind's default`.
        image: String,
        /// Docker's words.
        said: String,
    },
    /// `kind create cluster` failed.
    #[error("create the cluster: kind ended with {status}; its last words:{}", indented(last))]
    Create {
        /// How it ended.
        status: String,
        /// The end of its output.
        last: Vec<String>,
    },
    /// It did not come to an end.
    #[error("create the cluster: kind has not ended within {} min", waited.as_secs() / 60)]
    CreateLate {
        /// How long was waited.
        waited: Duration,
    },
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
    /// The cluster lacks a node.
    #[error("find node {node} in the cluster: kind made {}", if made.is_empty() { "none".to_owned() } else { made.join(", ") })]
    NodeMissing {
        /// Its name in the cluster.
        node: String,
        /// What there is.
        made: Vec<String>,
    },
    /// The cluster refused, or did not become what it should.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// It is up and cannot be looked into.
    #[error(transparent)]
    Observe(#[from] ObserveError),
    /// The caller's cancel flag was set.
    #[error("make the lab: interrupted, and everything that was made is removed")]
    Cancelled,
    /// A step failed and everything was kept, as was asked.
    #[error("{cause}; what was made is kept: docker ps --filter name={cluster}; labctl down removes it")]
    Kept {
        /// The step's error.
        cause: Box<KindUpError>,
        /// Name of the cluster.
        cluster: String,
    },
    /// A step failed and so did its undo.
    #[error("{cause}; and then to undo it: {left}")]
    Undo {
        /// The step's error.
        cause: Box<KindUpError>,
        /// What stayed.
        left: DownError,
    },
}

fn indented(lines: &[String]) -> String {
    lines.iter().map(|line| format!("\n  {line}")).collect()
}

impl KindUpError {
    fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

impl From<Cancelled> for KindUpError {
    fn from(_: Cancelled) -> Self {
        Self::Cancelled
    }
}

pub(super) async fn up(
    provider: &KindProvider,
    lock: &LabLock,
    plan: &Plan,
    cancel: &Cancel,
    on_step: &mut dyn FnMut(StepEvent),
) -> Result<Lab, KindUpError> {
    let (store, keep) = (&provider.store, provider.keep);
    if lock.lab() != plan.lab {
        return Err(KindUpError::WrongLock { lab: plan.lab.clone(), locked: lock.lab().to_owned() });
    }
    if let Ok(Some(record)) = store.read(&plan.lab)
        && record.phase == Phase::Ready
    {
        return Err(KindUpError::Exists { lab: plan.lab.clone() });
    }
    let build = Build { store, lock, plan, keep, steps: Steps::new(cancel, on_step) };
    let fit = build.steps.run(Step::Prepare, build.prepare(provider.binary.clone())).await?;
    let made = tokio::select! {
        biased;
        made = build.run(&fit) => made,
        () = cancel.raised() => Err(KindUpError::Cancelled),
    };
    match made {
        Ok(lab) => Ok(lab),
        Err(cause) if keep && !cancel.is_cancelled() => {
            Err(KindUpError::Kept { cause: Box::new(cause), cluster: names::cluster(&plan.lab) })
        }
        Err(cause) => match sweep::sweep(store, lock, &mut |_| {}).await {
            Ok(_) if cancel.is_cancelled() => Err(KindUpError::Cancelled),
            Ok(_) => Err(cause),
            Err(left) => Err(KindUpError::Undo { cause: Box::new(cause), left }),
        },
    }
}

/// How far kind is, for what can be done beside it.
#[derive(Default)]
struct Stage {
    /// Every node runs, and containerd in it.
    nodes_run: Notify,
    /// The API server answers.
    api_runs: Notify,
}

impl Stage {
    fn began(&self, step: &str) {
        if step.starts_with(NODES_RUN) {
            self.nodes_run.notify_one();
        }
        if API_RUNS.iter().any(|words| step.starts_with(words)) {
            self.nodes_run.notify_one();
            self.api_runs.notify_one();
        }
    }

    /// Also for a kind that calls its steps otherwise.
    fn ended(&self) {
        self.nodes_run.notify_one();
        self.api_runs.notify_one();
    }
}

struct Build<'a> {
    store: &'a Store,
    lock: &'a LabLock,
    plan: &'a Plan,
    /// Whether a failure leaves what was made.
    keep: bool,
    steps: Steps<'a>,
}

impl Build<'_> {
    async fn run(&self, fit: &Fit) -> Result<Lab, KindUpError> {
        let engine = &fit.engine;
        let image = AgentImage::of(&fit.binary);
        let mut record = self.begin(engine, &image).await?;
        self.steps.run(Step::Network, self.make_network(engine)).await?;
        let stage = Stage::default();
        let create = async {
            let created = self.steps.run(Step::CreateCluster, self.create_cluster(fit, &stage)).await;
            stage.ended();
            created
        };
        let client = async {
            self.steps.run(Step::Image, self.load_image(engine, &image)).await?;
            self.steps.run(Step::Client, self.run_client(engine, &image)).await
        };
        let deploy = async {
            stage.nodes_run.notified().await;
            self.steps.run(Step::LoadNodes, self.load_nodes(engine, &image)).await?;
            stage.api_runs.notified().await;
            self.steps.run(Step::Deploy, self.deploy(engine, &image)).await
        };
        let ((), (), cluster) = tokio::try_join!(create, client, deploy)?;

        self.steps.run(Step::Agent, self.agent_ready(&cluster)).await?;
        self.steps
            .run(Step::Nodes, async {
                Ok::<_, KindUpError>(cluster.wait_nodes_ready(Instant::now() + READY).await?)
            })
            .await?;
        self.steps.run(Step::Backends, self.backends_ready(&cluster)).await?;
        let observed =
            async { Ok::<_, KindUpError>(observe::observe(engine, &record.access, self.plan).await?) };
        record.observed = Some(self.steps.run(Step::Observe, observed).await?);
        record.phase = Phase::Ready;
        self.steps.run(Step::State, async { self.write(&record) }).await?;
        let observed = record.observed.clone();
        observed.map(|observed| record.lab(observed, self.lock.dir())).ok_or(KindUpError::Cancelled)
    }

    /// Looks before anything is made, except that what a killed command left goes first: its names are not free.
    async fn prepare(&self, binary: Option<PathBuf>) -> Result<Fit, KindUpError> {
        if self.has_leftovers().await? {
            sweep::sweep(self.store, self.lock, &mut |_| {}).await.map_err(KindUpError::Leftovers)?;
        }
        let fit = preflight::run(self.store, self.plan, binary).await?;
        for warning in &fit.warnings {
            self.steps.did(Step::Prepare, format!("warning: {warning}"));
        }
        Ok(fit)
    }

    async fn has_leftovers(&self) -> Result<bool, KindUpError> {
        if self.store.has_file(&self.plan.lab) {
            return Ok(true);
        }
        let Ok(engine) = Engine::connect().await else { return Ok(false) };
        let networks = engine.networks_named(&names::cluster(&self.plan.lab)).await?;
        let own = |network| names::is_own_network(network, &self.plan.lab, self.store.root());
        if networks.iter().any(own) {
            return Ok(true);
        }
        Ok(!sweep::containers(&engine, &self.plan.lab, self.store.root()).await?.is_empty())
    }

    /// Writes down what is about to be made.
    async fn begin(&self, engine: &Engine, image: &AgentImage) -> Result<Record, KindUpError> {
        let access = Access { kubeconfig: store::kubeconfig(self.lock.dir()), context: None };
        let mut record = Record::intent(self.plan, access);
        record.image = Some(image.reference.clone());
        // A lab in this cluster with the same image must leave it on the nodes.
        record.loaded = names::nodes(self.plan).into_iter().map(|(_, container)| container).collect();
        self.write(&record)?;
        // Settings that cannot be noted cannot be put back: no reason to make no lab.
        let others = sweep::kubelets_run(engine).await?;
        if let Err(error) = kernel::save(self.lock.dir(), others) {
            let text = format!("warning: the kernel settings that kubelets change will stay: {error}");
            self.steps.did(Step::Prepare, text);
        }
        Ok(record)
    }

    fn write(&self, record: &Record) -> Result<(), KindUpError> {
        store::write(self.lock, record).map_err(KindUpError::io(self.lock.dir()))
    }

    async fn make_network(&self, engine: &Engine) -> Result<(), KindUpError> {
        let name = names::cluster(&self.plan.lab);
        let labels = || names::labels(&self.plan.lab, self.store.root());
        let taken = match subnet::is_free(self.plan.network, &engine.networks().await?) {
            Ok(subnet) => {
                let made = engine.make_network(&name, Some(subnet), self.plan.mtu, labels()).await;
                match made {
                    // Docker knows of clashes that its list and the routes do not show.
                    Err(error) if error.status() == Some(403) => error.to_string(),
                    made => return Ok(made?),
                }
            }
            Err(taken) => taken,
        };
        self.steps.did(
            Step::Network,
            format!("{} is not free ({taken}): Docker chooses the lab's addresses", self.plan.network),
        );
        Ok(engine.make_network(&name, None, self.plan.mtu, labels()).await?)
    }

    async fn load_image(&self, engine: &Engine, image: &AgentImage) -> Result<(), KindUpError> {
        let loaded = engine.load_image(image).await?;
        let how = if loaded { "loaded into" } else { "was in" };
        self.steps.did(Step::Image, format!("{} {how} Docker", image.reference));
        Ok(())
    }

    async fn run_client(&self, engine: &Engine, image: &AgentImage) -> Result<(), KindUpError> {
        match engine.run(self.client(image)).await {
            // Another lab's end took the image between our look and now.
            Err(error) if error.status() == Some(404) => {
                engine.load_image(image).await?;
                Ok(engine.run(self.client(image)).await?)
            }
            ran => Ok(ran?),
        }
    }

    fn client<'s>(&'s self, image: &'s AgentImage) -> ContainerSpec<'s> {
        ContainerSpec {
            name: names::client(&self.plan.lab),
            image: &image.reference,
            network: names::cluster(&self.plan.lab),
            arguments: ["node", "idle", "--lab", &self.plan.lab].map(str::to_owned).into(),
            capabilities: CLIENT_CAPABILITIES.map(str::to_owned).into(),
            labels: names::labels(&self.plan.lab, self.store.root()),
        }
    }

    async fn create_cluster(&self, fit: &Fit, stage: &Stage) -> Result<(), KindUpError> {
        let config = self.lock.dir().join("kind.yaml");
        fs::write(&config, config::render(self.plan)).map_err(KindUpError::io(&config))?;
        let log = store::log_dir(self.lock.dir()).join(names::KIND_LOG);
        let create = Create {
            docker_host: fit.engine.host(),
            network: &names::cluster(&self.plan.lab),
            config: &config,
            kubeconfig: &store::kubeconfig(self.lock.dir()),
            image: self.plan.image.as_deref(),
            log: &log,
            retain: self.keep,
        };
        self.steps.did(Step::CreateCluster, format!("kind {}", fit.kind.version));
        let mut on_progress = |step: &str| {
            stage.began(step);
            self.steps.did(Step::CreateCluster, step.to_owned());
        };
        let created = fit.kind.create(create, &mut on_progress).await;
        created.map_err(|error| self.create_failed(error, &log))
    }

    fn create_failed(&self, error: CreateError, log: &Path) -> KindUpError {
        match error {
            CreateError::Io(source) => KindUpError::Io { path: log.to_owned(), source },
            CreateError::Late(waited) => KindUpError::CreateLate { waited },
            CreateError::Failed { last, .. }
                if last.iter().any(|line| line.contains("failed to pull image")) =>
            {
                let image =
                    self.plan.image.clone().unwrap_or_else(|| "that kind has as its default".to_owned());
                let said = last.iter().rev().find(|line| line.contains("Error") || line.contains("failed"));
                KindUpError::NodeImage { image, said: said.cloned().unwrap_or_default() }
            }
            CreateError::Failed { status, last } => KindUpError::Create { status: status.to_string(), last },
        }
    }

    async fn load_nodes(&self, engine: &Engine, image: &AgentImage) -> Result<(), KindUpError> {
        let nodes = names::nodes(self.plan);
        try_join_all(nodes.iter().map(|(_, container)| load_node(engine, container, image))).await?;
        self.steps.did(Step::LoadNodes, format!("{} on {} nodes", image.reference, nodes.len()));
        Ok(())
    }

    /// Gives the API server all that is needed, and each node its settings as it joins; from here on there is only
    /// waiting. Begins while kind still joins the workers: each finds its agent waiting for it.
    async fn deploy(&self, engine: &Engine, image: &AgentImage) -> Result<Cluster, KindUpError> {
        let names = names::nodes(self.plan);
        let (server, access) = self.control_plane(engine, &names).await?;
        let connected = Cluster::connect(&access).await;
        fs::remove_file(&access.kubeconfig).map_err(KindUpError::io(&access.kubeconfig))?;
        let cluster = connected?;
        cluster.wait_for_api(Instant::now() + API).await?;
        let sets = try_join_all(names.iter().map(|(_, container)| engine.bounding_set(container))).await?;
        let (network, rights) = (manifests::Network::Full, manifests::Rights::of(sets));
        let agent = manifests::agent(self.plan, &image.reference, &server, network, rights);
        let container_of = |node: &str| {
            let known = names.iter().find(|(name, _)| name == node);
            known.map_or_else(String::new, |(_, container)| container.clone())
        };
        let backends = manifests::backends(self.plan, &image.reference, container_of);
        let apply = async { Ok(cluster.apply(&agent).await?) };
        tokio::try_join!(self.set_nodes(&cluster, &names), apply)?;
        // After the nodes: a pod for a node that nobody knows is taken for an orphan.
        cluster.apply(&backends).await?;
        Ok(cluster)
    }

    /// The API server's URL by its node's address, and how this machine reaches it. kind writes the lab's
    /// kubeconfig only at its end; until then there is kubeadm's own in the node.
    async fn control_plane(
        &self,
        engine: &Engine,
        names: &[(String, String)],
    ) -> Result<(String, Access), KindUpError> {
        let mut planned = self.plan.nodes.iter().zip(names);
        let planned = planned.find(|(node, _)| node.role == NodeRole::ControlPlane);
        let name = planned.map_or_else(String::new, |(_, (_, container))| container.clone());
        let all = sweep::containers(engine, &self.plan.lab, self.store.root()).await?;
        let found = all.iter().find(|container| container.name == name);
        let address = found.and_then(|c| c.networks.get(&names::cluster(&self.plan.lab)).copied().flatten());
        let port = found.and_then(|c| c.published.get(&API_PORT).copied());
        let (Some(address), Some(port)) = (address, port) else {
            let made = all.into_iter().map(|container| container.name).collect();
            return Err(KindUpError::NodeMissing { node: name, made });
        };
        let read = engine.exec(&name, &["cat", "/etc/kubernetes/admin.conf"], None).await?;
        let kubeconfig = self.lock.dir().join("kubeconfig.kubeadm");
        write_private(&kubeconfig, &with_server(&String::from_utf8_lossy(&read.stdout), port))
            .map_err(KindUpError::io(&kubeconfig))?;
        Ok((format!("https://{address}:{API_PORT}"), Access { kubeconfig, context: None }))
    }

    /// Gives every node its settings as soon as the cluster knows it.
    async fn set_nodes(&self, cluster: &Cluster, names: &[(String, String)]) -> Result<(), KindUpError> {
        let deadline = Instant::now() + JOIN;
        let mut glance = interval(JOIN_GLANCE);
        glance.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut waiting: Vec<_> = self.plan.nodes.iter().zip(names).collect();
        loop {
            glance.tick().await;
            let nodes = cluster.nodes().await?;
            let mut joined = Vec::new();
            waiting.retain(|(planned, (_, container))| {
                let known = nodes.iter().find(|node| node.name == *container);
                joined.extend(known.map(|known| (known, *planned)));
                known.is_none()
            });
            try_join_all(joined.into_iter().map(|(known, planned)| self.set_node(cluster, known, planned)))
                .await?;
            let Some((_, (_, missing))) = waiting.first() else { return Ok(()) };
            if Instant::now() > deadline {
                let made = nodes.into_iter().map(|node| node.name).collect();
                return Err(KindUpError::NodeMissing { node: missing.clone(), made });
            }
        }
    }

    async fn set_node(
        &self,
        cluster: &Cluster,
        known: &ClusterNode,
        planned: &labctl_model::NodePlan,
    ) -> Result<(), KindUpError> {
        let pod_cidr = async {
            // A control plane that hands out ranges all the same has the last word: it cannot be changed.
            if known.pod_cidr.is_none() {
                cluster.set_pod_cidr(&known.name, planned.pod_cidr.trunc()).await?;
            }
            Ok(())
        };
        let taints = async {
            if planned.role == NodeRole::ControlPlane {
                try_join_all(TAINTS.iter().map(|key| cluster.remove_taint(&known.name, key))).await?;
            }
            Ok(())
        };
        tokio::try_join!(pod_cidr, taints).map(drop)
    }

    async fn agent_ready(&self, cluster: &Cluster) -> Result<(), KindUpError> {
        let namespace = manifests::namespace(self.plan);
        Ok(cluster.wait_daemon_set(&namespace, manifests::AGENT, Instant::now() + READY).await?)
    }

    async fn backends_ready(&self, cluster: &Cluster) -> Result<(), KindUpError> {
        let (namespace, labels) = (manifests::namespace(self.plan), manifests::backend_labels(self.plan));
        Ok(cluster.wait_deployments(&namespace, &labels, Instant::now() + READY).await?)
    }
}

/// A kubeconfig whose cluster is reached by a port of this machine: kind has the API server's certificate made for it.
fn with_server(kubeconfig: &str, port: u16) -> String {
    let line = |line: &str| match line.split_once("server:") {
        Some((indent, _)) if indent.trim().is_empty() => {
            format!("{indent}server: https://127.0.0.1:{port}\n")
        }
        _ => format!("{line}\n"),
    };
    kubeconfig.lines().map(line).collect()
}

/// A file that holds a key.
fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())
}

/// Copies this program into a node, and its image into the node's containerd.
async fn load_node(engine: &Engine, node: &str, image: &AgentImage) -> Result<(), KindUpError> {
    let folder = Path::new(NODE_PROGRAM).parent().map_or("/".into(), Path::to_string_lossy);
    let copy = async { Ok(engine.upload(node, &folder, image.layer.clone()).await?) };
    tokio::try_join!(copy, import(engine, node, image)).map(drop)
}

async fn import(engine: &Engine, node: &str, image: &AgentImage) -> Result<(), KindUpError> {
    // Not unpacked here: containerd's CRI does that for its own snapshotter, whichever the node uses.
    let argv = ["ctr", "--namespace=k8s.io", "images", "import", "--no-unpack", "-"];
    let said = match engine.exec(node, &argv, Some(image.archive.clone())).await {
        Ok(imported) if imported.is_success() => return Ok(()),
        Ok(imported) => imported.complaint(),
        Err(error) => error.to_string(),
    };
    Err(KindUpError::LoadNode { node: node.to_owned(), image: image.reference.clone(), said })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubeadms_kubeconfig_is_pointed_here() {
        let theirs = "clusters:\n- cluster:\n    server: https://lab-control-plane:6443\n  name: lab\n";
        let ours = "clusters:\n- cluster:\n    server: https://127.0.0.1:40001\n  name: lab\n";
        assert_eq!(with_server(theirs, 40001), ours);
    }
}
