//! Pods of a cluster, as far as a lab looks at them.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::{Container, Pod};
use kube::api::{Api, ListParams};

use super::connect::Cluster;
use super::error::ClusterError;

/// A pod that runs or will.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterPod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The node that it is on; `None` before it is scheduled.
    pub node: Option<String>,
    /// Its address, the node's for a hostNetwork pod; `None` before it has one.
    pub address: Option<Ipv4Addr>,
    /// Shares the node's network namespace.
    pub host_network: bool,
    /// Whether its condition Ready is True.
    pub ready: bool,
    /// It was told to end.
    pub terminating: bool,
    /// Its containers' named ports.
    pub ports: BTreeMap<String, u16>,
}

impl Cluster {
    /// The pods of a namespace that a label selector (`app=web,tier=front`) chooses, sorted by name. Those that
    /// have ended are left out.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn pods(&self, namespace: &str, labels: &str) -> Result<Vec<ClusterPod>, ClusterError> {
        let found = self.raw_pods(namespace, labels).await?;
        let mut pods: Vec<_> = found.iter().filter(|pod| !has_ended(pod)).map(describe).collect();
        pods.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(pods)
    }

    pub(super) async fn raw_pods(&self, namespace: &str, labels: &str) -> Result<Vec<Pod>, ClusterError> {
        let api: Api<Pod> = Api::namespaced(self.client(), namespace);
        let params = ListParams::default().labels(labels);
        let doing = format!("list the pods of namespace {namespace} with {labels}");
        Ok(self.ask(&doing, || api.list(&params)).await?.items)
    }
}

fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn describe(pod: &Pod) -> ClusterPod {
    let (spec, status) = (pod.spec.as_ref(), pod.status.as_ref());
    ClusterPod {
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        name: pod.metadata.name.clone().unwrap_or_default(),
        node: spec.and_then(|s| s.node_name.clone()),
        address: status.and_then(|s| s.pod_ip.as_ref()).and_then(|ip| ip.parse().ok()),
        host_network: spec.and_then(|s| s.host_network).unwrap_or(false),
        ready: is_ready(pod),
        terminating: pod.metadata.deletion_timestamp.is_some(),
        ports: spec.map(|s| s.containers.iter().flat_map(named_ports).collect()).unwrap_or_default(),
    }
}

fn named_ports(container: &Container) -> impl Iterator<Item = (String, u16)> {
    let ports = container.ports.iter().flatten();
    ports.filter_map(|port| Some((port.name.clone()?, u16::try_from(port.container_port).ok()?)))
}

/// The label selector `app=web,tier=front` of these labels.
pub(super) fn selector(labels: &BTreeMap<String, String>) -> String {
    let pairs: Vec<_> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    pairs.join(",")
}

/// Whether the pod has ended or was told to.
pub(super) fn is_leaving(pod: &Pod) -> bool {
    has_ended(pod) || pod.metadata.deletion_timestamp.is_some()
}

/// Whether the pod's condition Ready is True.
pub(super) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
}
