//! Whether this machine can run a plan as a kind cluster, and whether a kind cluster can be what the plan asks.
//!
//! Owns: everything that can be known before something is made: Docker, kind, this program, names, limits of the
//! kernel. Does not own: pulling a node image, which kind does.

use std::fs;
use std::path::{Path, PathBuf};

use labctl_model::{NodeRole, Plan};

use super::cli::{Kind, KindCliError};
use super::names::{self, CLUSTER_LABEL};
use super::{config, sweep};
use crate::docker::{AgentBinary, BinaryError, Engine, EngineError, Network, STATE_LABEL};
use crate::store::Store;

/// Below `/proc/sys`: limits that systemd, containerd and a kubelet in each of a few nodes use up, what they take
/// at least, and what kind's documentation suggests
/// (<https://kind.sigs.k8s.io/docs/user/known-issues/#pod-errors-due-to-too-many-open-files>).
const LIMITS: [(&str, u64, u64); 2] =
    [("fs/inotify/max_user_instances", 512, 1024), ("fs/inotify/max_user_watches", 65_536, 524_288)];
/// A node takes 100 to 270 MiB; three with their image's page cache fit in this much each.
const NODE_MEMORY: u64 = 300 << 20;
/// Where Docker keeps images by default, and what three nodes write there.
const DOCKER_DIR: &str = "/var/lib/docker";
const DISK: u64 = 2 << 30;

/// Which host addresses of the service subnet kubeadm gives to Services of its own.
const KUBERNETES_SERVICES: [(usize, &str); 2] = [(0, "API server"), (9, "cluster DNS")];

/// Why this machine cannot run the plan as a kind cluster.
#[derive(Debug, thiserror::Error)]
pub enum KindPreflightError {
    /// A kind cluster cannot be what the lab file asks.
    #[error("run lab {lab} on kind: {field}: {reason}")]
    Unsupported {
        /// The lab.
        lab: String,
        /// The field of the lab file.
        field: &'static str,
        /// Why, and what to do.
        reason: String,
    },
    /// Docker cannot be used.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// kind cannot be used.
    #[error(transparent)]
    Kind(#[from] KindCliError),
    /// This program cannot be put into nodes.
    #[error(transparent)]
    Binary(#[from] BinaryError),
    /// A name that the lab needs is taken.
    #[error("name {what} {name}: {owner} has it; {fix}")]
    NameTaken {
        /// `the kind cluster`, `the Docker network`, `the container`.
        what: &'static str,
        /// The name.
        name: String,
        /// Who has it.
        owner: String,
        /// What to do.
        fix: String,
    },
    /// A limit of the kernel is too low for several nodes.
    #[error(
        "run {nodes} nodes: {key} is {value}, they need {needed} or more; raise it: sudo sysctl -w {key}={suggested} (and \
         in /etc/sysctl.conf to keep it)"
    )]
    Limit {
        /// How many nodes.
        nodes: usize,
        /// The sysctl.
        key: String,
        /// Its value.
        value: u64,
        /// What it must be at least.
        needed: u64,
        /// What it should be.
        suggested: u64,
    },
}

impl KindPreflightError {
    /// Whether the lab file is the cause, not this machine.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Unsupported { .. })
    }
}

/// What a fit machine has.
pub(super) struct Fit {
    pub(super) engine: Engine,
    pub(super) kind: Kind,
    pub(super) binary: AgentBinary,
    /// What may go wrong all the same.
    pub(super) warnings: Vec<String>,
}

pub(super) async fn run(
    store: &Store,
    plan: &Plan,
    binary: Option<PathBuf>,
) -> Result<Fit, KindPreflightError> {
    supported(plan)?;
    let engine = Engine::connect().await?;
    let kind = Kind::find()?;
    let binary = match binary {
        Some(path) => AgentBinary::read_from(Some(path)),
        None => AgentBinary::read(),
    }?;
    limits(plan)?;
    free_names(&engine, store.root(), plan).await?;
    let warnings = [memory(plan), disk()].into_iter().flatten().collect();
    Ok(Fit { engine, kind, binary, warnings })
}

/// What the lab file asks that only namespaces can give.
fn supported(plan: &Plan) -> Result<(), KindPreflightError> {
    let refuse =
        |field, reason: String| Err(KindPreflightError::Unsupported { lab: plan.lab.clone(), field, reason });
    if let Some(fault) = plan.faults.first() {
        let name = fault.fault.name();
        return refuse(
            "faults",
            format!("{name} can be set up in netns labs only; add --provider netns, or remove it"),
        );
    }
    let services = config::service_subnet(plan);
    for (number, owner) in KUBERNETES_SERVICES {
        if services.hosts().nth(number) == Some(plan.service.cluster_ip) {
            let address = plan.service.cluster_ip;
            return refuse(
                "service.clusterIP",
                format!("{address} is the address of Kubernetes' own {owner}; choose another"),
            );
        }
    }
    let control_planes = plan.nodes.iter().filter(|node| node.role == NodeRole::ControlPlane).count();
    match control_planes {
        1 => Ok(()),
        0 => refuse(
            "nodes",
            "a cluster needs a node with `role: control-plane`; give one of them that role".into(),
        ),
        several => refuse(
            "nodes",
            format!(
                "{several} of them are control planes, and one is all that a lab can have on kind; make the others workers"
            ),
        ),
    }
}

async fn free_names(engine: &Engine, state_dir: &Path, plan: &Plan) -> Result<(), KindPreflightError> {
    let (lab, cluster) = (&plan.lab, names::cluster(&plan.lab));
    let taken = |what, name: &str, owner: String, fix: String| {
        Err(KindPreflightError::NameTaken { what, name: name.to_owned(), owner, fix })
    };
    let other_name = || format!("or bring the lab up under another name: --name {lab}-2");
    // What a killed command left of this lab is in nobody's way: `up` removes it first.
    let is_own = |network: &Network| names::is_own_network(network, lab, state_dir);
    if let Some(network) = engine.networks_named(&cluster).await?.into_iter().find(|n| !is_own(n)) {
        let (owner, fix) = match network.labels.get(STATE_LABEL) {
            Some(dir) => {
                (format!("a lab of state folder {dir}"), format!("LABCTL_STATE_DIR={dir} labctl down {lab}"))
            }
            None => ("somebody else's network".to_owned(), format!("docker network rm {cluster}")),
        };
        return taken("the Docker network", &cluster, owner, format!("{fix}, {}", other_name()));
    }
    let own = sweep::containers(engine, lab, state_dir).await?;
    let is_own = |name: &str| own.iter().any(|container| container.name == name);
    let nodes = engine.containers(&[format!("{CLUSTER_LABEL}={cluster}")]).await?;
    if let Some(node) = nodes.iter().find(|node| !is_own(&node.name)) {
        let owner = format!("a kind cluster that is no lab's (its node {})", node.name);
        return taken(
            "the kind cluster",
            &cluster,
            owner,
            format!("kind delete cluster --name {cluster}, {}", other_name()),
        );
    }
    let containers = names::nodes(plan).into_iter().map(|(_, container)| container);
    for name in containers.chain([names::client(lab)]) {
        if !is_own(&name) && engine.has_container(&name).await? {
            let owner = "somebody else's container".to_owned();
            return taken("the container", &name, owner, format!("docker rm {name}, {}", other_name()));
        }
    }
    Ok(())
}

fn limits(plan: &Plan) -> Result<(), KindPreflightError> {
    for (key, needed, suggested) in LIMITS {
        let path: PathBuf = Path::new("/proc/sys").join(key);
        // Where the kernel does not say it, kind may try.
        let Some(value) = fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()) else {
            continue;
        };
        if value < needed {
            let (nodes, key) = (plan.nodes.len(), key.replace('/', "."));
            return Err(KindPreflightError::Limit { nodes, key, value, needed, suggested });
        }
    }
    Ok(())
}

fn memory(plan: &Plan) -> Option<String> {
    let table = fs::read_to_string("/proc/meminfo").ok()?;
    let line = table.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let available = line.trim().trim_end_matches(" kB").parse::<u64>().ok()? << 10;
    let needed = NODE_MEMORY * plan.nodes.len() as u64;
    let nodes = plan.nodes.len();
    (available < needed).then(|| {
        format!(
            "only {} MiB of memory are available; {nodes} nodes may take {} MiB",
            available >> 20,
            needed >> 20
        )
    })
}

fn disk() -> Option<String> {
    let stat = nix::sys::statvfs::statvfs(DOCKER_DIR).ok()?;
    #[expect(clippy::useless_conversion, reason = "the width of these fields depends on the target")]
    let free = u64::from(stat.blocks_available()).saturating_mul(u64::from(stat.fragment_size()));
    (free < DISK)
        .then(|| format!("only {} MiB are free in {DOCKER_DIR}; a kind cluster may take 2 GiB", free >> 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        labctl_model::parse("dsr.yaml", include_str!("../../../../labs/dsr.yaml")).expect("the lab is valid")
    }

    #[test]
    fn what_only_namespaces_can_do_is_refused() {
        let mut plan = plan();
        assert!(supported(&plan).is_ok());
        plan.nodes[1].role = NodeRole::ControlPlane;
        let error = supported(&plan).expect_err("two control planes");
        assert!(error.is_usage());
        assert_eq!(
            error.to_string(),
            "run lab dsr on kind: nodes: 2 of them are control planes, and one is all that a lab can have on kind; \
             make the others workers"
        );
    }
}
