//! Services of a cluster, as far as a lab looks at them.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::{Api, ListParams};
use labctl_model::{Affinity, Protocol, TrafficPolicy};

use super::connect::Cluster;
use super::error::ClusterError;
use super::pods;

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterService {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `ClusterIP`, `NodePort`, `LoadBalancer` or `ExternalName`.
    pub kind: String,
    /// Its ClusterIP; `None` for a headless one.
    pub cluster_ip: Option<Ipv4Addr>,
    /// Its TCP and UDP ports.
    pub ports: Vec<ClusterPort>,
    /// Labels of its pods; empty for one whose endpoints somebody else writes.
    pub selector: BTreeMap<String, String>,
    /// externalTrafficPolicy.
    pub external_traffic_policy: TrafficPolicy,
    /// sessionAffinity.
    pub session_affinity: Affinity,
    /// Time-out of ClientIP affinity in seconds.
    pub affinity_seconds: Option<u32>,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterPort {
    /// Its name; empty where it has none.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// Port of the ClusterIP.
    pub port: u16,
    /// Port of every node, where it has one.
    pub node_port: Option<u16>,
    /// Port of the pods.
    pub target: TargetPort,
}

/// Port of the pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    /// The same for every pod.
    Number(u16),
    /// Each pod says which.
    Named(String),
}

impl Cluster {
    /// The Service, `None` if there is none of this name.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn service(&self, namespace: &str, name: &str) -> Result<Option<ClusterService>, ClusterError> {
        let api: Api<Service> = Api::namespaced(self.client(), namespace);
        let doing = format!("read Service {namespace}/{name}");
        Ok(self.ask(&doing, || api.get_opt(name)).await?.as_ref().map(describe))
    }

    /// The Services of a namespace, or of all.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn services(&self, namespace: Option<&str>) -> Result<Vec<ClusterService>, ClusterError> {
        let client = self.client();
        let api: Api<Service> = match namespace {
            Some(namespace) => Api::namespaced(client, namespace),
            None => Api::all(client),
        };
        let all = ListParams::default();
        let found = self.ask("list Services", || api.list(&all)).await?;
        Ok(found.items.iter().map(describe).collect())
    }
}

impl ClusterService {
    /// `namespace/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// The port that a client outside can ask by HTTP, and its nodePort; or why there is none.
    pub(crate) fn reachable(&self) -> Result<(&ClusterPort, u16), String> {
        let tcp = self.ports.iter().filter(|port| port.protocol == Protocol::Tcp);
        tcp.filter_map(|port| Some((port, port.node_port?))).next().ok_or_else(|| {
            let kind = &self.kind;
            format!(
                "it is of type {kind} and has no TCP port with a nodePort; labctl asks HTTP at a NodePort"
            )
        })
    }

    /// The label selector that finds its pods; or why there is none.
    pub(crate) fn pod_selector(&self) -> Result<String, String> {
        if self.selector.is_empty() {
            return Err("it has no selector, so its pods are not known".to_owned());
        }
        Ok(pods::selector(&self.selector))
    }
}

fn describe(service: &Service) -> ClusterService {
    let spec = service.spec.clone().unwrap_or_default();
    let local = spec.external_traffic_policy.as_deref() == Some("Local");
    let sticky = spec.session_affinity.as_deref() == Some("ClientIP");
    let seconds = spec.session_affinity_config.and_then(|c| c.client_ip).and_then(|c| c.timeout_seconds);
    ClusterService {
        namespace: service.metadata.namespace.clone().unwrap_or_default(),
        name: service.metadata.name.clone().unwrap_or_default(),
        kind: spec.type_.unwrap_or_else(|| "ClusterIP".to_owned()),
        cluster_ip: spec.cluster_ip.and_then(|ip| ip.parse().ok()),
        ports: spec.ports.iter().flatten().filter_map(port).collect(),
        selector: spec.selector.unwrap_or_default(),
        external_traffic_policy: if local { TrafficPolicy::Local } else { TrafficPolicy::Cluster },
        session_affinity: if sticky { Affinity::ClientIP } else { Affinity::None },
        affinity_seconds: seconds.and_then(|s| u32::try_from(s).ok()),
    }
}

/// `None` for a protocol that labctl does not look at (SCTP).
fn port(port: &ServicePort) -> Option<ClusterPort> {
    let protocol = match port.protocol.as_deref() {
        None | Some("TCP") => Protocol::Tcp,
        Some("UDP") => Protocol::Udp,
        Some(_) => return None,
    };
    let number = |n: i32| u16::try_from(n).ok().filter(|n| *n > 0);
    let own = number(port.port)?;
    let target = match &port.target_port {
        None => TargetPort::Number(own),
        Some(IntOrString::Int(n)) => TargetPort::Number(number(*n).unwrap_or(own)),
        Some(IntOrString::String(name)) => TargetPort::Named(name.clone()),
    };
    let name = port.name.clone().unwrap_or_default();
    Some(ClusterPort { name, protocol, port: own, node_port: port.node_port.and_then(number), target })
}
