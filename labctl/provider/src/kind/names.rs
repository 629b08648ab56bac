//! What the parts of a lab are called in Docker and in kind.

use std::collections::HashMap;
use std::path::Path;

use labctl_model::{NodeRole, Plan};

use crate::docker::{Container, LAB_LABEL, Network, STATE_LABEL};

/// kind's own label on its nodes: the cluster's name.
pub(super) const CLUSTER_LABEL: &str = "io.x-k8s.kind.cluster";

/// What `kind create cluster` said, among the lab's logs; there from the moment it begins.
pub(super) const KIND_LOG: &str = "kind.log";

/// Name of a lab's cluster and of its network.
pub(crate) fn cluster(lab: &str) -> String {
    format!("labctl-{lab}")
}

/// Name of the client's container.
pub(crate) fn client(lab: &str) -> String {
    format!("labctl-{lab}-client")
}

/// Labels of what a lab owns in Docker.
pub(crate) fn labels(lab: &str, state_dir: &Path) -> HashMap<String, String> {
    HashMap::from([
        (LAB_LABEL.to_owned(), lab.to_owned()),
        (STATE_LABEL.to_owned(), state_dir.display().to_string()),
    ])
}

/// The same as filters for a listing.
pub(crate) fn label_filters(lab: &str, state_dir: &Path) -> Vec<String> {
    labels(lab, state_dir).into_iter().map(|(key, value)| format!("{key}={value}")).collect()
}

/// Container of every node, in the order of the plan. kind numbers the nodes of each role in the order of its
/// configuration: `<cluster>-worker`, `<cluster>-worker2`, ...
pub(crate) fn nodes(plan: &Plan) -> Vec<(String, String)> {
    let cluster = cluster(&plan.lab);
    let mut seen: HashMap<String, u32> = HashMap::new();
    let mut container = |role: NodeRole| {
        let number = seen.entry(role.to_string()).or_insert(0);
        *number += 1;
        if *number == 1 { format!("{cluster}-{role}") } else { format!("{cluster}-{role}{number}") }
    };
    plan.nodes.iter().map(|node| (node.name.clone(), container(node.role))).collect()
}

/// Whether the network is this lab's: its name may be anybody's, its labels are ours alone.
pub(super) fn is_own_network(network: &Network, lab: &str, state_dir: &Path) -> bool {
    labels(lab, state_dir).iter().all(|(key, value)| network.labels.get(key) == Some(value))
}

/// Whether a node of a cluster of the lab's name is on the lab's own network: a cluster that somebody else made
/// under this name is on another one.
pub(super) fn is_on(container: &Container, network: &str) -> bool {
    container.networks.contains_key(network)
}
