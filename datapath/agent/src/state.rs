//! The desired state of one node's datapath, as the agent role reads it from stdin (JSON).

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// Everything that one node's datapath should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeState {
    /// This node's name.
    pub node: String,
    /// Uplink interface, for example `eth0`.
    pub uplink: String,
    /// This node's address on the uplink.
    pub node_address: Ipv4Addr,
    /// Addresses of all nodes, this one included.
    pub nodes: Vec<Ipv4Addr>,
    /// Native routing range of the pods: address and prefix length.
    pub pod_cidr: (Ipv4Addr, u8),
    /// Pods on this node.
    pub pods: Vec<LocalPod>,
    /// Services.
    pub services: Vec<ServiceState>,
    /// Mode and switches.
    pub options: DatapathOptions,
}

/// A pod on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalPod {
    /// Its address.
    pub address: Ipv4Addr,
    /// Host side of its veth.
    pub interface: String,
}

/// One service port in one protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceState {
    /// Number of the service, the same for all its ports and protocols; 1 or more.
    pub id: u32,
    /// `tcp` or `udp`.
    pub protocol: Proto,
    /// ClusterIP frontend.
    pub cluster_ip: Option<(Ipv4Addr, u16)>,
    /// NodePort frontend, on every node's address.
    pub node_port: Option<u16>,
    /// externalTrafficPolicy Local.
    pub local_only: bool,
    /// internalTrafficPolicy Local: the ClusterIP only has this node's backends.
    #[serde(default)]
    pub internal_local: bool,
    /// sessionAffinity ClientIP with its time-out in seconds.
    pub affinity_seconds: Option<u32>,
    /// Backends.
    pub backends: Vec<BackendState>,
}

/// Transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Proto {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// One backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendState {
    /// Pod address, or its node's for hostNetwork.
    pub address: Ipv4Addr,
    /// Port it listens on.
    pub port: u16,
    /// Address of the node that it runs on.
    pub node: Ipv4Addr,
    /// Keeps its flows, gets no new ones, unless all are terminating.
    pub terminating: bool,
    /// Keeps its TCP flows, never gets a new one: it is not ready, or has left the service. A datagram that
    /// another node sends all the same is answered.
    #[serde(default)]
    pub retired: bool,
}

/// Forwarding mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DatapathMode {
    /// TCP and UDP return directly.
    Dsr,
    /// Replies pass the ingress node.
    Snat,
    /// TCP as dsr, UDP as snat.
    Hybrid,
    /// Only local backends.
    Local,
}

/// How the TC programs are attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachMode {
    /// TCX where the kernel has it, else clsact.
    #[default]
    Auto,
    /// TCX (kernel 6.6 and newer).
    Tcx,
    /// The clsact qdisc.
    Clsact,
}

/// Mode and switches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatapathOptions {
    /// Forwarding mode.
    pub mode: DatapathMode,
    /// Write the option in Cilium's byte order.
    pub wire_cilium: bool,
    /// Strip the option before the pod.
    pub strip_option: bool,
    /// First and last SNAT source port.
    pub snat_ports: (u16, u16),
    /// Entries of the conntrack map.
    pub flows: u32,
    /// Write ring buffer events.
    pub events: bool,
    /// Processes of the node itself may ask ClusterIPs, through its default route.
    #[serde(default)]
    pub host_clients: bool,
    /// How to attach.
    #[serde(default)]
    pub attach: AttachMode,
    /// Room to grow into.
    #[serde(default)]
    pub room: MapRoom,
    /// Number of a [`datapath_types::Mutation`]; refused by objects built without feature `mutations`.
    #[serde(default)]
    pub mutation: u32,
}

/// Least sizes of the maps. A map keeps the size that it was made with as long as it is pinned, so who
/// expects services, pods or nodes to come asks for room at the start. The default is room for the state
/// itself and as much again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapRoom {
    /// Frontends: for each service port one of the ClusterIP and one of the NodePort on each node.
    pub frontends: u32,
    /// Backends of all services.
    pub backends: u32,
    /// Maglev tables: one for each service port, two where a traffic policy is Local.
    pub tables: u32,
    /// Pods of this node.
    pub pods: u32,
    /// Nodes.
    pub nodes: u32,
}

impl MapRoom {
    /// For a cluster whose services nobody knows beforehand: a thousand service ports, 20 MiB a node.
    pub const CLUSTER: Self =
        Self { frontends: 16384, backends: 8192, tables: 1024, pods: 1024, nodes: 1024 };
}
