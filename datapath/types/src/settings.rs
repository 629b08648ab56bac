//! Settings of one node's datapath: a read-only global, so that the verifier prunes unused branches.

/// Values of [`Settings::mode`].
pub mod mode {
    /// TCP and UDP replies go straight back.
    pub const DSR: u32 = 0;
    /// Replies pass the ingress node.
    pub const SNAT: u32 = 1;
    /// TCP as DSR, UDP as SNAT.
    pub const HYBRID: u32 = 2;
    /// Only backends on the node that was asked.
    pub const LOCAL: u32 = 3;
}

/// Bits of [`Settings::flags`].
pub struct SettingsFlags;

impl SettingsFlags {
    /// Write the option in the byte order that Cilium uses on little-endian hosts.
    pub const WIRE_CILIUM: u32 = 1 << 0;
    /// Leave the option in the packet that the pod gets.
    pub const KEEP_OPTION: u32 = 1 << 1;
    /// Write one ring buffer record per rewrite.
    pub const EVENTS: u32 = 1 << 2;
}

/// A wrong behaviour on purpose, compiled in only by the eBPF crate's feature `mutations`. Each one
/// exists to show that a check of the verdict can fail.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// Behave.
    None = 0,
    /// Rewrite no reply: it leaves with the pod's address.
    LeakPodAddress = 1,
    /// Rewrite only the SYN-ACK, not what follows.
    OnlySynAck = 2,
    /// Tag every TCP packet, not only the SYN.
    TagEveryPacket = 3,
    /// Write a wrong port into the option, though the backend's node still knows the right one.
    WrongOptionPort = 4,
    /// Do not strip the option.
    KeepOption = 5,
    /// Spoil the TCP or UDP checksum of replies.
    BadL4Checksum = 6,
    /// Spoil the IPv4 header checksum of forwarded packets.
    BadIpChecksum = 7,
    /// Do not decrement the TTL.
    KeepTtl = 8,
    /// Rewrite the source of requests although the mode is dsr.
    SnatInDsr = 9,
    /// Drop every fourth packet of a reply without counting it.
    SilentDrop = 10,
    /// Answer the client's data with the connection's RST bit set.
    ForgeReset = 11,
    /// Send replies with the source MAC address of nobody.
    WrongSourceMac = 12,
    /// Insert the option although the packet becomes larger than the MTU.
    IgnoreMtu = 13,
    /// Send replies back through the ingress node although the mode is dsr.
    ReplyThroughIngress = 14,
    /// Under externalTrafficPolicy Local, forward to a backend of another node.
    IgnoreLocalPolicy = 15,
}

/// The read-only global `SETTINGS` of the eBPF object, one per node.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// [`mode`].
    pub mode: u32,
    /// [`SettingsFlags`].
    pub flags: u32,
    /// This node's address on the uplink, packet order.
    pub node_addr: u32,
    /// Interface index of the uplink.
    pub uplink: u32,
    /// MTU of the uplink in bytes, without the Ethernet header.
    pub mtu: u32,
    /// Network address of the pods' native routing range, packet order.
    pub pod_net: u32,
    /// Mask of that range, packet order.
    pub pod_mask: u32,
    /// First source port of SNAT, host order.
    pub snat_min: u16,
    /// Last source port of SNAT, host order, inclusive.
    pub snat_max: u16,
    /// [`Mutation`]; read only by objects built with feature `mutations`.
    pub mutation: u32,
}

const _: () = assert!(size_of::<Settings>() == 36);

impl Settings {
    /// All zero: what the object holds before the loader overrides it.
    pub const fn zeroed() -> Self {
        Self {
            mode: 0,
            flags: 0,
            node_addr: 0,
            uplink: 0,
            mtu: 0,
            pod_net: 0,
            pod_mask: 0,
            snat_min: 0,
            snat_max: 0,
            mutation: 0,
        }
    }
}

crate::pod!(Settings);
