//! The plan: a lab with every default filled in and every name resolved. All later stages read this
//! and nothing else; providers store it as JSON beside the lab so that `verify` and `down` find it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How replies travel and which backends may serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Direct server return for TCP and UDP.
    Dsr,
    /// Source NAT at the ingress node, replies pass it again.
    Snat,
    /// TCP as dsr, UDP as snat.
    Hybrid,
    /// externalTrafficPolicy Local: only backends on the node that was asked.
    Local,
}

/// Byte order of the DSR option on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WireFormat {
    /// Big-endian.
    Network,
    /// As Cilium writes it on little-endian hosts.
    Cilium,
}

/// Where the lab runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ProviderKind {
    /// Network namespaces on this machine.
    Netns,
    /// A kind cluster.
    Kind,
    /// An existing cluster.
    Cluster,
}

/// A transport protocol of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// Kubernetes externalTrafficPolicy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TrafficPolicy {
    /// Any backend.
    Cluster,
    /// Only backends on the node that was asked.
    Local,
}

/// Kubernetes sessionAffinity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Affinity {
    /// Every flow chooses anew.
    None,
    /// A client address keeps its backend.
    ClientIP,
}

/// Kubernetes role of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NodeRole {
    /// Runs the control plane too.
    ControlPlane,
    /// Runs workloads only.
    Worker,
}

/// The whole lab, resolved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Lab name, `[a-z0-9-]`, at most 20 bytes, so that every derived name stays short.
    pub lab: String,
    /// Where it runs.
    pub provider: ProviderKind,
    /// Forwarding mode.
    pub mode: Mode,
    /// Option byte order.
    pub wire: WireFormat,
    /// The segment that client and nodes share.
    pub network: Ipv4Net,
    /// MTU of that segment in bytes.
    pub mtu: u16,
    /// Whether the links leave checksums and segmentation to the hardware, as virtual links do when nobody
    /// tells them otherwise. Without, every frame is one that a wire would carry.
    #[serde(default)]
    pub offloads: bool,
    /// All pod addresses lie in here (native routing).
    pub pod_cidr: Ipv4Net,
    /// The client.
    pub client: ClientPlan,
    /// Nodes in the order of the file.
    pub nodes: Vec<NodePlan>,
    /// The service under test.
    pub service: ServicePlan,
    /// What `verify` sends.
    pub traffic: TrafficPlan,
    /// Switches of the bundled datapath.
    pub datapath: DatapathPlan,
    /// Node image of the kind provider; `None` is kind's own default.
    pub image: Option<String>,
    /// Disturbances that the provider sets up after the nodes and before the datapath.
    #[serde(default)]
    pub faults: Vec<FaultPlan>,
    /// Checks whose expected outcome differs from the mode's own, by check name (one of
    /// [`crate::CHECK_NAMES`]).
    #[serde(default)]
    pub expect: BTreeMap<String, ExpectedStatus>,
}

/// The client host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientPlan {
    /// Host name.
    pub name: String,
    /// Address on the segment.
    pub address: Ipv4Addr,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodePlan {
    /// Node name.
    pub name: String,
    /// Kubernetes role.
    pub role: NodeRole,
    /// Address on the segment.
    pub address: Ipv4Addr,
    /// Addresses of its pods.
    pub pod_cidr: Ipv4Net,
    /// First address of `pod_cidr`: the pods' gateway, on the host side of every pod veth.
    pub pod_gateway: Ipv4Addr,
    /// Backend pods on this node.
    pub pods: Vec<PodPlan>,
}

/// One backend pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodPlan {
    /// Pod name, unique in the lab: `web-1`, `web-2`, ...
    pub name: String,
    /// Pod address; the node's address for a hostNetwork backend.
    pub address: Ipv4Addr,
    /// Runs in the node's own namespace.
    pub host_network: bool,
}

/// The service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePlan {
    /// Kubernetes name.
    pub name: String,
    /// Kubernetes namespace of a Service that somebody else made, with whatever pods it has; `None` for one that
    /// labctl makes, with backends that say whom they saw.
    #[serde(default)]
    pub foreign: Option<String>,
    /// ClusterIP frontend.
    pub cluster_ip: Ipv4Addr,
    /// Port of the ClusterIP frontend.
    pub port: u16,
    /// Port of the NodePort frontend on every node.
    pub node_port: u16,
    /// Port that backends listen on.
    pub target_port: u16,
    /// Protocols, sorted, at least one.
    pub protocols: Vec<Protocol>,
    /// externalTrafficPolicy; always Local in mode local.
    pub external_traffic_policy: TrafficPolicy,
    /// sessionAffinity.
    pub session_affinity: Affinity,
    /// Time-out of ClientIP affinity in seconds.
    pub affinity_seconds: u32,
}

/// What `verify` sends and to whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficPlan {
    /// Node that the client talks to: the ingress node.
    pub via: String,
    /// TCP requests, each on its own connection; 0 without TCP.
    pub requests: u32,
    /// UDP datagrams, each from its own port; 0 without UDP.
    pub datagrams: u32,
    /// Bytes of each HTTP response body.
    pub response_bytes: u32,
}

/// Switches of the bundled datapath.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatapathPlan {
    /// The load balancer is the cluster's own: nothing is loaded, and of the other switches none has an effect.
    #[serde(default)]
    pub external: bool,
    /// Strip the option before the pod.
    pub strip_option: bool,
    /// First SNAT source port.
    pub snat_port_min: u16,
    /// Last SNAT source port, inclusive.
    pub snat_port_max: u16,
    /// Entries of the conntrack map.
    pub flows: u32,
    /// Write ring buffer events.
    pub events: bool,
}

/// One disturbance and where it is set up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultPlan {
    /// What is disturbed.
    pub fault: Fault,
    /// Where.
    pub on: FaultScope,
}

/// What a netns lab can disturb with sysctls, nftables and link settings alone. In JSON
/// `{"name": "pod-mtu", "mtu": 1280}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case")]
pub enum Fault {
    /// Strict reverse path filter: `net.ipv4.conf.{all,default,<every interface>}.rp_filter = 1`.
    /// Scope `All` includes the client.
    RpFilterStrict,
    /// A forward hook with `ct state invalid drop` on the nodes.
    DropInvalid,
    /// A forward hook with policy drop on the nodes, and no rule that accepts.
    ForwardDrop,
    /// The switch drops every IPv4 packet that carries header options (IHL above 5) on its way out to
    /// these nodes, as many routers and clouds do. Scope `All` includes the client's port.
    DropOptions,
    /// A smaller MTU on both ends of every pod's veth on the nodes.
    PodMtu {
        /// MTU in bytes; at least 576 and less than [`Plan::mtu`].
        mtu: u16,
    },
}

/// Where a fault is set up. In JSON `"all"` or `{"nodes": ["worker"]}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FaultScope {
    /// Everywhere that the fault's description names.
    All,
    /// On these nodes, which exist, each once, in the order of the file; nowhere else.
    Nodes(Vec<String>),
}

impl FaultScope {
    /// Whether this node is disturbed.
    pub fn covers(&self, node: &str) -> bool {
        match self {
            Self::All => true,
            Self::Nodes(names) => names.iter().any(|name| name == node),
        }
    }
}

/// What a lab expects of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ExpectedStatus {
    /// The check passes.
    Pass,
    /// The check fails: the lab shows what happens when it does.
    Fail,
}

impl Fault {
    /// The name that lab files use.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::RpFilterStrict => "rp-filter-strict",
            Self::DropInvalid => "drop-invalid",
            Self::ForwardDrop => "forward-drop",
            Self::DropOptions => "drop-options",
            Self::PodMtu { .. } => "pod-mtu",
        }
    }
}

impl Plan {
    /// The node with this name.
    pub fn node(&self, name: &str) -> Option<&NodePlan> {
        self.nodes.iter().find(|n| n.name == name)
    }

    /// The node that the client talks to.
    ///
    /// # Panics
    /// Never for a plan made by this crate: the lab file's validation resolves `traffic.via`.
    pub fn ingress(&self) -> &NodePlan {
        self.node(&self.traffic.via).expect("validation resolved traffic.via")
    }

    /// Every backend with its node.
    pub fn backends(&self) -> impl Iterator<Item = (&NodePlan, &PodPlan)> {
        self.nodes.iter().flat_map(|n| n.pods.iter().map(move |p| (n, p)))
    }

    /// Whether the bundled datapath answers this protocol directly from the backend's node.
    pub fn returns_directly(&self, protocol: Protocol) -> bool {
        match self.mode {
            Mode::Dsr | Mode::Local => true,
            Mode::Snat => false,
            Mode::Hybrid => protocol == Protocol::Tcp,
        }
    }
}

/// Shows the name that lab files use.
macro_rules! display_as {
    ($($t:ty { $($variant:ident => $text:literal),+ $(,)? })+) => {$(
        impl fmt::Display for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self { $(Self::$variant => $text),+ })
            }
        }
    )+};
}

display_as! {
    Mode { Dsr => "dsr", Snat => "snat", Hybrid => "hybrid", Local => "local" }
    WireFormat { Network => "network", Cilium => "cilium" }
    ProviderKind { Netns => "netns", Kind => "kind", Cluster => "cluster" }
    Protocol { Tcp => "tcp", Udp => "udp" }
    TrafficPolicy { Cluster => "Cluster", Local => "Local" }
    ExpectedStatus { Pass => "pass", Fail => "fail" }
    Affinity { None => "None", ClientIP => "ClientIP" }
    NodeRole { ControlPlane => "control-plane", Worker => "worker" }
}
