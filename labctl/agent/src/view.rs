//! The few fields of Kubernetes objects that a datapath depends on. Pure.
//!
//! Owns: the difference between discovery.k8s.io/v1 and v1beta1. Does not own: watching, or what follows
//! from the fields.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::{Node, Service};
use kube::ResourceExt as _;
use kube::api::DynamicObject;
use serde::Deserialize;

/// Label of a slice that names its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Where v1beta1 of clusters before 1.21 says which node an endpoint is on.
const HOSTNAME: &str = "kubernetes.io/hostname";

/// All objects at one moment.
#[derive(Clone, Debug, Default)]
pub struct ClusterView {
    /// Nodes that have an IPv4 address.
    pub nodes: Vec<ClusterNode>,
    /// Services.
    pub services: Vec<Arc<Service>>,
    /// EndpointSlices of addressType IPv4.
    pub slices: Vec<Slice>,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterNode {
    /// Name of the Node object.
    pub name: String,
    /// Its InternalIP.
    pub address: Ipv4Addr,
    /// IPv4 range of its pods, once it was given one.
    pub pod_cidr: Option<Ipv4Net>,
}

/// What is ours of a Node; `None` without an IPv4 InternalIP.
pub fn cluster_node(node: &Node) -> Option<ClusterNode> {
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    let internal = addresses.iter().filter(|address| address.type_ == "InternalIP");
    let address = internal.filter_map(|address| address.address.parse().ok()).next()?;
    let ranges = node
        .spec
        .iter()
        .flat_map(|spec| spec.pod_cidrs.as_deref().unwrap_or(&[]).iter().chain(spec.pod_cidr.as_ref()));
    let pod_cidr = ranges.filter_map(|range| range.parse().ok()).next();
    Some(ClusterNode { name: node.name_any(), address, pod_cidr })
}

/// One EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Namespace of slice and Service.
    pub namespace: String,
    /// Name of the Service.
    pub service: String,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
    /// The port numbers of all its endpoints.
    pub ports: Vec<SlicePort>,
}

/// One endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address. More than one would be interchangeable, so the first does.
    pub address: Ipv4Addr,
    /// The node it is on, where the cluster knows.
    pub node: Option<String>,
    /// Takes new connections.
    pub ready: bool,
    /// Answers, even if it should get no new connections.
    pub serving: bool,
    /// Is being deleted.
    pub terminating: bool,
}

/// One port of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// Name of the Service's port, empty where it has one port without a name.
    pub name: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// The number, named target ports resolved.
    pub port: u16,
}

/// The body of an EndpointSlice in both versions: v1 has `nodeName` and `zone` where v1beta1 had `topology`
/// (<https://kubernetes.io/docs/reference/using-api/deprecation-guide/#endpointslice-v125>).
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    address_type: String,
    #[serde(default)]
    endpoints: Option<Vec<BodyEndpoint>>,
    #[serde(default)]
    ports: Option<Vec<BodyPort>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct BodyEndpoint {
    #[serde(default)]
    addresses: Vec<String>,
    #[serde(default)]
    conditions: Option<Conditions>,
    #[serde(default)]
    node_name: Option<String>,
    #[serde(default)]
    topology: Option<BTreeMap<String, String>>,
}

/// Absent conditions mean: ready, serving as much as ready, not terminating
/// (<https://kubernetes.io/docs/concepts/services-networking/endpoint-slices/#conditions>).
#[derive(Debug, Default, Deserialize)]
struct Conditions {
    #[serde(default)]
    ready: Option<bool>,
    #[serde(default)]
    serving: Option<bool>,
    #[serde(default)]
    terminating: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct BodyPort {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    protocol: Option<String>,
    #[serde(default)]
    port: Option<i32>,
}

/// What is ours of an EndpointSlice of either version; `None` if it is of no Service, not of IPv4, or not
/// an EndpointSlice.
pub fn slice(object: &DynamicObject) -> Option<Slice> {
    let service = object.labels().get(SERVICE_NAME)?.clone();
    let body = Body::deserialize(&object.data).ok()?;
    if body.address_type != "IPv4" {
        return None;
    }
    Some(Slice {
        namespace: object.namespace()?,
        service,
        endpoints: body.endpoints.unwrap_or_default().into_iter().filter_map(endpoint).collect(),
        ports: body.ports.unwrap_or_default().into_iter().filter_map(port).collect(),
    })
}

fn endpoint(body: BodyEndpoint) -> Option<Endpoint> {
    let conditions = body.conditions.unwrap_or_default();
    let ready = conditions.ready.unwrap_or(true);
    Some(Endpoint {
        address: body.addresses.first()?.parse().ok()?,
        node: body.node_name.or_else(|| body.topology?.remove(HOSTNAME)),
        ready,
        serving: conditions.serving.unwrap_or(ready),
        terminating: conditions.terminating.unwrap_or(false),
    })
}

/// A port without a number stands for all ports, which no Service asks for.
fn port(body: BodyPort) -> Option<SlicePort> {
    Some(SlicePort {
        name: body.name.unwrap_or_default(),
        protocol: body.protocol.unwrap_or_else(|| "TCP".to_owned()),
        port: u16::try_from(body.port?).ok()?,
    })
}
