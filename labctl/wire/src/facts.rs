//! What a host is made of, as its own kernel says at one moment.
//!
//! Owns: the form. Does not own: asking (the provider and the datapath's agent do), or what it means for a verdict. Each host
//! of a run is observed before its traffic and after it.

use std::net::{Ipv4Addr, SocketAddrV4};

use serde::{Deserialize, Serialize};

use crate::packet::Mac;

/// A host's network namespace, loopback left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    /// Every interface, by index.
    pub interfaces: Vec<InterfaceFacts>,
    /// Neighbour entries for IPv4 addresses that have an Ethernet address.
    pub neighbours: Vec<NeighbourFacts>,
    /// Inode of its network namespace (`stat /proc/self/ns/net`).
    #[serde(default)]
    pub netns: u32,
    /// Which run of which kernel it is on (`/proc/sys/kernel/random/boot_id`).
    #[serde(default)]
    pub boot: String,
}

/// One IPv4 packet that a host's kernel dropped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DroppedPacket {
    /// `CLOCK_REALTIME`, ns.
    pub time_ns: u64,
    /// The host in whose namespace it happened.
    pub host: String,
    /// The kernel's name of the reason: `NETFILTER_DROP`. `TC_INGRESS` and `TC_EGRESS` are programs' doing.
    pub reason: String,
    /// IPv4 protocol number.
    pub protocol: u8,
    /// Source; port 0 without one.
    pub src: SocketAddrV4,
    /// Destination; port 0 without one.
    pub dst: SocketAddrV4,
    /// IP identification.
    pub id: u16,
    /// Offset of a fragment in bytes.
    pub fragment_offset: u16,
    /// TCP sequence number; 0 for others.
    pub seq: u32,
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceFacts {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Its Ethernet address.
    pub mac: Option<Mac>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Switched on.
    pub up: bool,
    /// `veth`, `bridge`, `vxlan`.
    pub kind: Option<String>,
    /// Index of the bridge or bond that it is a port of.
    pub master: Option<u32>,
    /// IPv4 addresses with their prefix lengths.
    pub addresses: Vec<(Ipv4Addr, u8)>,
    /// Programs that see its frames.
    pub programs: Vec<ProgramFacts>,
}

/// An eBPF program at an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramFacts {
    /// Where.
    pub hook: Hook,
    /// The kernel's number of it.
    pub id: u32,
    /// Its name; empty where the kernel does not say.
    pub name: String,
}

/// A place where a program may see frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hook {
    /// Before everything else, captures too (`netif_receive_skb` comes behind it).
    Xdp,
    /// tc ingress: behind the captures' tap.
    Ingress,
    /// tc egress: before the captures' tap.
    Egress,
}

impl std::fmt::Display for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Xdp => "xdp",
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

/// Where a host sends frames for an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NeighbourFacts {
    /// By which interface.
    pub interface: u32,
    /// The address.
    pub address: Ipv4Addr,
    /// The Ethernet address that it is believed to have.
    pub mac: Mac,
}

impl HostFacts {
    /// The interface of this name.
    pub fn interface(&self, name: &str) -> Option<&InterfaceFacts> {
        self.interfaces.iter().find(|interface| interface.name == name)
    }
}
