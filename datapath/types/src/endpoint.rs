//! Sockets, local pods and the cluster's nodes.

/// Key of maps `FRONTENDS` and `BACKEND_SOCKETS`: one listening socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketKey {
    /// Address, packet order.
    pub addr: u32,
    /// Port, packet order.
    pub port: u16,
    /// IPv4 protocol number.
    pub proto: u8,
    /// Must be zero.
    pub pad: u8,
}

const _: () = assert!(size_of::<SocketKey>() == 8);

impl SocketKey {
    /// A key with its padding set.
    #[inline(always)]
    pub const fn new(addr: u32, port: u16, proto: u8) -> Self {
        Self { addr, port, proto, pad: 0 }
    }
}

/// Value of map `ENDPOINTS`, keyed by a local pod's address: how to reach it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// Interface index of the host side of the pod's veth.
    pub ifindex: u32,
    /// MTU of that veth in bytes, without the Ethernet header.
    pub mtu: u32,
}

const _: () = assert!(size_of::<Endpoint>() == 8);

/// Value of map `NODES`, keyed by a node's address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeEntry {
    /// 1 for this node, 0 for the others.
    pub is_self: u32,
    /// Must be zero.
    pub pad: u32,
    /// Link address of the neighbour on the way to the node, its six bytes in packet order and two zeros; 0 as long
    /// as it is not known. The datapath learns it from the kernel, the agent never writes it over.
    pub mac: u64,
}

const _: () = assert!(size_of::<NodeEntry>() == 16);

crate::pod!(SocketKey, Endpoint, NodeEntry);
