//! Nodes of a cluster: reading them, and the two things that a lab sets on nodes of its own cluster.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, ListParams, Patch, PatchParams};
use labctl_model::NodeRole;
use serde_json::json;

use super::connect::Cluster;
use super::error::ClusterError;

/// Labels that kubeadm puts on control planes: the first since 1.20, the second until 1.23.
const CONTROL_PLANE: [&str; 2] = ["node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master"];

/// A node as the API server knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterNode {
    /// Its name.
    pub name: String,
    /// Its first InternalIP that is IPv4; `None` for one that has none yet.
    pub address: Option<Ipv4Addr>,
    /// Its first IPv4 podCIDR; `None` where none was given.
    pub pod_cidr: Option<Ipv4Net>,
    /// By its labels.
    pub role: NodeRole,
    /// Whether its condition Ready is True.
    pub ready: bool,
    /// What the condition Ready says.
    pub message: String,
}

impl Cluster {
    /// Every node, sorted by name.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn nodes(&self) -> Result<Vec<ClusterNode>, ClusterError> {
        let api: Api<Node> = Api::all(self.client());
        let params = ListParams::default();
        let list = self.ask("list the nodes", || api.list(&params)).await?;
        let mut nodes: Vec<_> = list.items.iter().map(describe).collect();
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(nodes)
    }

    /// Gives a node its pod addresses, where no controller does. The same range again is no change.
    ///
    /// # Errors
    /// When the API server refuses, as it does when the node has another range already.
    pub async fn set_pod_cidr(&self, node: &str, cidr: Ipv4Net) -> Result<(), ClusterError> {
        let api: Api<Node> = Api::all(self.client());
        let params = PatchParams::default();
        let patch =
            Patch::Merge(json!({"spec": {"podCIDR": cidr.to_string(), "podCIDRs": [cidr.to_string()]}}));
        let doing = format!("give node {node} the pod range {cidr}");
        self.ask(&doing, || api.patch(node, &params, &patch)).await.map(drop)
    }

    /// Takes the taint with this key off a node; one that is not there is no error.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn remove_taint(&self, node: &str, key: &str) -> Result<(), ClusterError> {
        let api: Api<Node> = Api::all(self.client());
        let (api, params) = (&api, &PatchParams::default());
        let remove = || async move {
            let found = api.get(node).await?;
            let mut taints = found.spec.and_then(|spec| spec.taints).unwrap_or_default();
            let before = taints.len();
            taints.retain(|taint| taint.key != key);
            if taints.len() == before {
                return Ok(());
            }
            // A patch replaces the whole list. The version makes it fail, and be tried again, when a controller
            // changed the list meanwhile.
            let version = found.metadata.resource_version;
            let patch = json!({"metadata": {"resourceVersion": version}, "spec": {"taints": taints}});
            api.patch(node, params, &Patch::Merge(patch)).await.map(drop)
        };
        self.ask(&format!("take the taint {key} off node {node}"), remove).await
    }
}

/// What is read of a node.
pub(super) fn describe(node: &Node) -> ClusterNode {
    let status = node.status.as_ref();
    let addresses = status.and_then(|s| s.addresses.as_ref()).into_iter().flatten();
    let internal = addresses.filter(|a| a.type_ == "InternalIP").find_map(|a| a.address.parse().ok());
    let ready = status
        .and_then(|s| s.conditions.as_ref())
        .and_then(|conditions| conditions.iter().find(|c| c.type_ == "Ready"));
    ClusterNode {
        name: node.metadata.name.clone().unwrap_or_default(),
        address: internal,
        pod_cidr: pod_cidr(node),
        role: role(node),
        ready: ready.is_some_and(|c| c.status == "True"),
        message: ready.and_then(|c| c.message.clone()).unwrap_or_default(),
    }
}

fn pod_cidr(node: &Node) -> Option<Ipv4Net> {
    let spec = node.spec.as_ref()?;
    let several = spec.pod_cidrs.iter().flatten();
    several.chain(&spec.pod_cidr).find_map(|cidr| cidr.parse().ok())
}

fn role(node: &Node) -> NodeRole {
    let labels = node.metadata.labels.iter().flatten();
    let control_plane = labels.into_iter().any(|(key, _)| CONTROL_PLANE.contains(&key.as_str()));
    if control_plane { NodeRole::ControlPlane } else { NodeRole::Worker }
}
