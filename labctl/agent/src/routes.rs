//! Which routes lead to the other nodes' pods. Pure; `netlink` brings them into the kernel.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::view::ClusterView;

/// The pods of another node, by way of its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeRoute {
    /// Pods.
    pub pods: Ipv4Net,
    /// Node.
    pub node: Ipv4Addr,
}

/// A route to each other node that has been given a range for its pods.
pub fn node_routes(view: &ClusterView, own: &str) -> Vec<NodeRoute> {
    let others = view.nodes.iter().filter(|node| node.name != own);
    let mut routes: Vec<NodeRoute> = others
        .filter_map(|node| node.pod_cidr.map(|pods| NodeRoute { pods: pods.trunc(), node: node.address }))
        .collect();
    routes.sort();
    // Two nodes that were given the same range cannot both be right; the cluster shows one of them.
    routes.dedup_by_key(|route| route.pods);
    routes
}
