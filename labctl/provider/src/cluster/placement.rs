//! Which node of the cluster stands for which node of the lab file.
//!
//! Owns: the choice, and the plan that follows from it. Does not own: what runs there. Pure.
//!
//! A node of the same name stands for itself. The others are taken by role in the order of their names: the lab
//! file's first worker is the cluster's first worker. Nodes that are left over have no backends, but are watched.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use labctl_model::{NodePlan, NodeRole, Plan, PodPlan};

use crate::kubernetes::ClusterNode;

/// The cluster cannot be the lab file's.
#[derive(Debug, thiserror::Error)]
#[error(
    "place node {node} of the lab file: the cluster has {} node{} only ({}); use a lab file with as many",
    there.len(), if there.len() == 1 { "" } else { "s" }, there.join(", ")
)]
pub struct PlacementError {
    /// The node of the lab file.
    pub node: String,
    /// The cluster's.
    pub there: Vec<String>,
}

/// Names of the lab file's nodes, each with that of the cluster's that stands for it.
pub(super) type Placement = Vec<(String, String)>;

/// Whether a node may stand for one of the lab file's.
type Rule = dyn Fn(&NodePlan, &ClusterNode) -> bool;

/// Finds a node for each of the lab file's, as far as there are any.
pub(super) fn place(asked: &Plan, nodes: &[ClusterNode]) -> Placement {
    let mut free: Vec<&ClusterNode> = nodes.iter().collect();
    free.sort_by_key(|node| natural(&node.name));
    let mut taken: Vec<Option<String>> = vec![None; asked.nodes.len()];
    let same_name = |wanted: &NodePlan, node: &ClusterNode| node.name == wanted.name;
    let same_role = |wanted: &NodePlan, node: &ClusterNode| node.role == wanted.role;
    let any = |_: &NodePlan, _: &ClusterNode| true;
    let rules: [&Rule; 3] = [&same_name, &same_role, &any];
    for fits in rules {
        for (wanted, slot) in asked.nodes.iter().zip(&mut taken).filter(|(_, slot)| slot.is_none()) {
            if let Some(at) = free.iter().position(|node| fits(wanted, node)) {
                *slot = Some(free.remove(at).name.clone());
            }
        }
    }
    let names = asked.nodes.iter().zip(taken);
    names.filter_map(|(node, taken)| Some((node.name.clone(), taken?))).collect()
}

/// `worker10` after `worker2`.
fn natural(name: &str) -> (String, usize, String) {
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let number = name[stem.len()..].trim_start_matches('0').to_owned();
    (stem.to_owned(), number.len(), number)
}

/// The asked plan with the cluster's nodes and the backends on them: what is deployed.
///
/// # Errors
/// A node that has backends, or that the client asks, and for which there is none.
pub(super) fn plan(asked: &Plan, nodes: &[ClusterNode]) -> Result<Plan, PlacementError> {
    let placement = place(asked, nodes);
    let here = |name: &str| {
        let found = placement.iter().find(|(lab, _)| lab == name);
        found.map(|(_, cluster)| cluster.clone()).ok_or_else(|| PlacementError {
            node: name.to_owned(),
            there: nodes.iter().map(|node| node.name.clone()).collect(),
        })
    };
    let mut plan = asked.clone();
    plan.traffic.via = here(&asked.traffic.via)?;
    plan.nodes = nodes.iter().map(node_plan).collect();
    // Somebody else's Service has its pods where they are.
    let ours = asked.nodes.iter().filter(|_| asked.service.foreign.is_none());
    for node in ours.filter(|node| !node.pods.is_empty()) {
        let cluster = here(&node.name)?;
        let pods: Vec<PodPlan> = node.pods.clone();
        plan.nodes.iter_mut().filter(|n| n.name == cluster).for_each(|n| n.pods.clone_from(&pods));
    }
    if let Some(range) = pod_range(nodes) {
        plan.pod_cidr = range;
    }
    Ok(plan)
}

fn node_plan(node: &ClusterNode) -> NodePlan {
    let pod_cidr = node.pod_cidr.unwrap_or(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 32));
    NodePlan {
        name: node.name.clone(),
        role: node.role,
        address: node.address.unwrap_or(Ipv4Addr::UNSPECIFIED),
        pod_cidr,
        pod_gateway: pod_cidr.hosts().next().unwrap_or(pod_cidr.addr()),
        pods: Vec::new(),
    }
}

/// The smallest range that has every node's pods.
fn pod_range(nodes: &[ClusterNode]) -> Option<Ipv4Net> {
    let known: Vec<_> = nodes.iter().filter_map(|node| node.pod_cidr).collect();
    let mut all = *known.first()?;
    while let Some(wider) = all.supernet().filter(|_| !known.iter().all(|net| all.contains(net))) {
        all = wider;
    }
    Some(all)
}

/// Node that the client asks about somebody else's Service: the lab file's, unless a backend runs there and
/// another node has none, or the other way round where only nodes with a backend answer.
pub(super) fn via(placed: &Plan, with_backend: &[String], local_only: bool) -> String {
    let suits = |name: &String| with_backend.contains(name) == local_only;
    let wanted = &placed.traffic.via;
    if placed.service.foreign.is_none() || suits(wanted) {
        return wanted.clone();
    }
    let workers_first = [NodeRole::Worker, NodeRole::ControlPlane];
    let mut others = workers_first.iter().flat_map(|role| placed.nodes.iter().filter(|n| n.role == *role));
    others.find(|node| suits(&node.name)).map_or_else(|| wanted.clone(), |node| node.name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use labctl_model::{builtin_lab, parse};

    fn asked() -> Plan {
        parse("dsr", builtin_lab("dsr").unwrap()).unwrap()
    }

    fn nodes(names: &[&str]) -> Vec<ClusterNode> {
        let node = |(number, name): (usize, &&str)| ClusterNode {
            name: (*name).to_owned(),
            address: Some(Ipv4Addr::new(172, 18, 0, 10 + number as u8)),
            pod_cidr: format!("10.244.{number}.0/24").parse().ok(),
            role: if name.contains("control") { NodeRole::ControlPlane } else { NodeRole::Worker },
            ready: true,
            message: String::new(),
        };
        names.iter().enumerate().map(node).collect()
    }

    fn placed(names: &[&str]) -> Vec<(String, String)> {
        place(&asked(), &nodes(names))
    }

    fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    }

    #[test]
    fn nodes_are_taken_by_name_then_by_role_then_as_they_come() {
        assert_eq!(
            placed(&["x-worker2", "x-worker", "x-control-plane"]),
            pairs(&[("control-plane", "x-control-plane"), ("worker", "x-worker"), ("worker2", "x-worker2")])
        );
        assert_eq!(
            placed(&["worker2", "a-worker", "control"]),
            pairs(&[("control-plane", "control"), ("worker", "a-worker"), ("worker2", "worker2")])
        );
        assert_eq!(placed(&["n10", "n9", "n2"])[0], ("control-plane".to_owned(), "n10".to_owned()));
        assert_eq!(placed(&["n10", "n9", "n2"])[1], ("worker".to_owned(), "n2".to_owned()));
    }

    #[test]
    fn backends_move_to_the_clusters_nodes() {
        let plan =
            plan(&asked(), &nodes(&["x-control-plane", "x-worker", "x-worker2", "x-worker3"])).unwrap();
        assert_eq!(plan.traffic.via, "x-worker");
        let backends: Vec<_> = plan.backends().map(|(node, _)| node.name.as_str()).collect();
        assert_eq!(backends, ["x-worker2"]);
        assert_eq!(plan.nodes.len(), 4);
        assert_eq!(plan.pod_cidr, "10.244.0.0/22".parse().unwrap());
    }

    #[test]
    fn a_cluster_that_is_too_small_is_told() {
        let error = plan(&asked(), &nodes(&["x-control-plane", "x-worker"])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "place node worker2 of the lab file: the cluster has 2 nodes only (x-control-plane, x-worker); \
             use a lab file with as many"
        );
        let mut foreign = asked();
        foreign.service.foreign = Some("shop".into());
        assert!(
            plan(&foreign, &nodes(&["x-control-plane", "x-worker"])).is_ok(),
            "its pods are where they are"
        );
    }

    #[test]
    fn a_foreign_service_is_asked_where_it_shows_most() {
        let mut asked = asked();
        let names = ["x-control-plane", "x-worker", "x-worker2"];
        let on = |node: &str| vec![node.to_owned()];
        let own = plan(&asked, &nodes(&names)).unwrap();
        assert_eq!(via(&own, &on("x-worker"), false), "x-worker", "the lab file decides about its own");
        asked.service.foreign = Some("shop".into());
        let plan = plan(&asked, &nodes(&names)).unwrap();
        assert_eq!(via(&plan, &on("x-worker2"), false), "x-worker");
        assert_eq!(via(&plan, &on("x-worker"), false), "x-worker2");
        assert_eq!(via(&plan, &on("x-worker2"), true), "x-worker2", "nobody else answers");
        assert_eq!(via(&plan, &names.map(str::to_owned), false), "x-worker", "every node has one");
    }
}
