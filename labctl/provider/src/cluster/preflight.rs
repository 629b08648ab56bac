//! Whether a cluster and this machine can run a plan.
//!
//! Owns: everything that can be known before something is made: the API server, the nodes, the way from the client
//! to them, labctl's image, names. Does not own: whether pods can be made there, which only making one shows.

use std::time::{Duration, Instant};

use labctl_model::{Plan, ServicePlan};

use super::placement::{self, PlacementError};
use crate::docker::{AgentBinary, AgentImage, BinaryError, Container, Engine, EngineError, STATE_LABEL};
use crate::kind::names;
use crate::kubernetes::{Access, Cluster, ClusterError, ClusterNode, ClusterPort, manifests};

use super::ClusterOptions;

/// A cluster that somebody uses answers at once.
const API: Duration = Duration::from_secs(10);

/// Why the plan cannot run there.
#[derive(Debug, thiserror::Error)]
pub enum ClusterPreflightError {
    /// A cluster cannot be what the lab file asks.
    #[error("run lab {lab} in a cluster: {field}: {reason}")]
    Unsupported {
        /// The lab.
        lab: String,
        /// The field of the lab file.
        field: &'static str,
        /// Why, and what to do.
        reason: String,
    },
    /// The cluster does not answer, or refuses.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The cluster has too few nodes.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// Docker cannot be used.
    #[error("run the client: {0}")]
    Engine(#[from] EngineError),
    /// This program cannot be put into the client or the nodes.
    #[error(transparent)]
    Binary(#[from] BinaryError),
    /// The client would have no way to the nodes.
    #[error(
        "run the client beside the nodes: no Docker network of this machine has the node addresses {}; labctl sends \
         from a container on the nodes' own network, so run it where the nodes are containers (kind, k3d, minikube \
         --driver=docker)",
        addresses.join(", ")
    )]
    NoNetwork {
        /// The nodes' addresses.
        addresses: Vec<String>,
    },
    /// The nodes cannot get the image.
    #[error(
        "get labctl's image to node {node}: it is no container of this machine's Docker; push the image to a \
         registry that the nodes pull from, and name it with --agent-image"
    )]
    NoImage {
        /// The node.
        node: String,
    },
    /// A name that the lab needs is taken.
    #[error("name {what} {name}: {owner} has it; {fix}")]
    NameTaken {
        /// `the namespace`, `the container`.
        what: &'static str,
        /// The name.
        name: String,
        /// Who has it.
        owner: String,
        /// What to do.
        fix: String,
    },
    /// `--service` names a Service that the cluster does not have.
    #[error(
        "find Service {namespace}/{name}: {}; name one of type NodePort with --service NAMESPACE/NAME",
        if there.is_empty() { format!("namespace {namespace} has none") }
        else { format!("namespace {namespace} has {}", there.join(", ")) }
    )]
    NoService {
        /// The namespace.
        namespace: String,
        /// The name.
        name: String,
        /// Those of the namespace.
        there: Vec<String>,
    },
    /// `--service` names a Service that cannot be asked.
    #[error("use Service {service}: {reason}")]
    Service {
        /// `namespace/name`.
        service: String,
        /// Why.
        reason: String,
    },
    /// Another Service has the lab's nodePort.
    #[error(
        "open nodePort {port}: Service {owner} has it; give service.nodePort in the lab file another number"
    )]
    NodePortTaken {
        /// The port.
        port: u16,
        /// `namespace/name`.
        owner: String,
    },
    /// Two agents would load their programs onto the same interfaces.
    #[error(
        "load the datapath: the agent of lab {lab} (namespace {namespace}) is on the nodes already; take that lab \
         down, or judge what is there with --datapath external"
    )]
    AgentThere {
        /// The lab that has it.
        lab: String,
        /// Its namespace.
        namespace: String,
    },
}

impl ClusterPreflightError {
    /// Whether the lab file or a flag is the cause, not the cluster or this machine.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Unsupported { .. } | Self::NoService { .. } | Self::Service { .. })
    }
}

/// What a fit cluster has.
pub(super) struct Fit {
    pub(super) access: Access,
    pub(super) cluster: Cluster,
    pub(super) engine: Engine,
    /// The asked plan with the cluster's nodes.
    pub(super) placed: Plan,
    /// Label selector of the pods of somebody else's Service; `None` where the Service is the lab's own.
    pub(super) foreign_pods: Option<String>,
    /// The image that the client runs, made of this program.
    pub(super) image: AgentImage,
    /// The image that the nodes run.
    pub(super) node_image: String,
    /// The nodes that are containers of this machine.
    pub(super) containers: Vec<String>,
    /// Those into which the image is copied.
    pub(super) load: Vec<String>,
    /// Docker network that the nodes are on.
    pub(super) network: String,
    /// What the agent does for the pods' network.
    pub(super) agent_network: manifests::Network,
    /// URL of the API server at a node's address.
    pub(super) api_server: String,
    pub(super) warnings: Vec<String>,
}

pub(super) async fn run(options: &ClusterOptions, plan: &Plan) -> Result<Fit, ClusterPreflightError> {
    supported(plan)?;
    let binary = AgentBinary::read()?;
    let engine = Engine::connect().await?;
    let access = options.access.pinned()?;
    let cluster = Cluster::connect(&access).await?;
    cluster.wait_for_api(Instant::now() + API).await?;
    let nodes = cluster.nodes().await?;
    let placed = placement::plan(plan, &nodes)?;
    let containers = engine.containers(&[]).await?;
    let network = network(&nodes, &engine).await?;
    free_names(&cluster, &engine, plan).await?;
    let foreign_pods = service_under_test(&cluster, &plan.service).await?;
    let warnings = if plan.datapath.external {
        Vec::new()
    } else {
        alone(&cluster).await?;
        other_balancers(&cluster).await?
    };
    let image = AgentImage::of(&binary);
    let (found, missing) = containers_of(&nodes, &network, &containers);
    let load = match (&options.agent_image, missing) {
        (Some(_), _) => Vec::new(),
        (None, Some(node)) => return Err(ClusterPreflightError::NoImage { node }),
        (None, None) => found.clone(),
    };
    Ok(Fit {
        node_image: options.agent_image.clone().unwrap_or_else(|| image.reference.clone()),
        agent_network: agent_network(&nodes),
        api_server: cluster.api_endpoint().await?,
        access,
        cluster,
        engine,
        placed,
        foreign_pods,
        image,
        containers: found,
        load,
        network,
        warnings,
    })
}

fn supported(plan: &Plan) -> Result<(), ClusterPreflightError> {
    let unsupported = |field, reason: &str| {
        Err(ClusterPreflightError::Unsupported { lab: plan.lab.clone(), field, reason: reason.to_owned() })
    };
    if !plan.faults.is_empty() {
        return unsupported(
            "faults",
            "somebody else's nodes are not disturbed; run it with --provider netns",
        );
    }
    Ok(())
}

/// The Docker network that has every node.
async fn network(nodes: &[ClusterNode], engine: &Engine) -> Result<String, ClusterPreflightError> {
    let addresses: Vec<_> = nodes.iter().filter_map(|node| node.address).collect();
    let networks = engine.networks().await?;
    let has_all = |subnet: &ipnet::Ipv4Net| addresses.iter().all(|address| subnet.contains(address));
    let found = networks.into_iter().find(|network| network.subnets.iter().any(has_all));
    match found {
        Some(network) if !addresses.is_empty() => Ok(network.name),
        _ => Err(ClusterPreflightError::NoNetwork {
            addresses: addresses.iter().map(ToString::to_string).collect(),
        }),
    }
}

/// The containers that nodes are, and a node that is none.
fn containers_of(
    nodes: &[ClusterNode],
    network: &str,
    containers: &[Container],
) -> (Vec<String>, Option<String>) {
    let container_of = |node: &ClusterNode| {
        let is_it = |container: &&Container| {
            let address = container.networks.get(network).copied().flatten();
            address.is_some() && address == node.address
        };
        containers.iter().find(is_it).map(|container| container.name.clone())
    };
    let missing = nodes.iter().find(|node| container_of(node).is_none());
    (nodes.iter().filter_map(container_of).collect(), missing.map(|node| node.name.clone()))
}

async fn free_names(cluster: &Cluster, engine: &Engine, plan: &Plan) -> Result<(), ClusterPreflightError> {
    let namespace = manifests::namespace(plan);
    let fix = "bring this lab up under another name: labctl up --name ...".to_owned();
    if let Some(owner) = cluster.owner_of(&namespace).await? {
        let owner = match owner {
            Some(lab) => format!("lab {lab} of another machine or state folder"),
            None => "somebody else".to_owned(),
        };
        return Err(ClusterPreflightError::NameTaken { what: "the namespace", name: namespace, owner, fix });
    }
    let client = names::client(&plan.lab);
    if let Some(found) = engine.containers(&[]).await?.into_iter().find(|found| found.name == client) {
        let state = found.labels.get(STATE_LABEL);
        let owner = state.map_or("somebody else".to_owned(), |dir| format!("a lab whose state is in {dir}"));
        return Err(ClusterPreflightError::NameTaken { what: "the container", name: client, owner, fix });
    }
    Ok(())
}

/// Somebody else's Service is there and can be asked; the lab's own can have its nodePort. Gives the label selector of
/// somebody else's pods.
async fn service_under_test(
    cluster: &Cluster,
    service: &ServicePlan,
) -> Result<Option<String>, ClusterPreflightError> {
    let Some(namespace) = &service.foreign else {
        let all = cluster.services(None).await?;
        let port = service.node_port;
        let same = |p: &ClusterPort| p.node_port == Some(port) && service.protocols.contains(&p.protocol);
        let owner = all.iter().find(|other| other.ports.iter().any(same));
        return match owner {
            Some(owner) => Err(ClusterPreflightError::NodePortTaken { port, owner: owner.full_name() }),
            None => Ok(None),
        };
    };
    let there = cluster.services(Some(namespace)).await?;
    let Some(found) = there.iter().find(|other| other.name == service.name) else {
        return Err(ClusterPreflightError::NoService {
            namespace: namespace.clone(),
            name: service.name.clone(),
            there: there.into_iter().map(|other| other.name).collect(),
        });
    };
    let usable = found.reachable().and_then(|_| found.pod_selector());
    let unusable = |reason| ClusterPreflightError::Service { service: found.full_name(), reason };
    usable.map(Some).map_err(unusable)
}

/// One agent at most on each node.
async fn alone(cluster: &Cluster) -> Result<(), ClusterPreflightError> {
    match cluster.daemon_sets(manifests::AGENT).await?.into_iter().next() {
        Some((namespace, lab)) => Err(ClusterPreflightError::AgentThere { lab, namespace }),
        None => Ok(()),
    }
}

/// Who else looks after Services.
async fn other_balancers(cluster: &Cluster) -> Result<Vec<String>, ClusterError> {
    let mut found = Vec::new();
    for name in ["kube-proxy", "cilium", "calico-node"] {
        if cluster.has_daemon_set("kube-system", name).await? {
            found.push(format!(
                "{name} serves the lab's Service as well; labctl's programs come first on the nodes' uplinks, so \
                 requests from outside are theirs"
            ));
        }
    }
    Ok(found)
}

/// A node that waits for a network plugin says so.
fn agent_network(nodes: &[ClusterNode]) -> manifests::Network {
    let waits = |node: &ClusterNode| {
        let message = node.message.to_lowercase();
        !node.ready && (message.contains("cni") || message.contains("network plugin"))
    };
    if nodes.iter().any(waits) { manifests::Network::Full } else { manifests::Network::None }
}
