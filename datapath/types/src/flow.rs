//! Conntrack: one value per flow, and the fragment table that lends later fragments their ports.
//!
//! A flow has up to two entries, one per direction that this node sees, and both hold the *same whole*
//! value: whichever survives LRU eviction can rebuild the other, and no state is ever half there
//! (Cilium keeps conntrack and NAT in two independent LRUs; when one goes, replies leave with the pod's
//! address: `bpf/lib/nodeport.h`, `snat_v4_rewrite_egress`).

/// Which direction of which role a [`FlowKey`] names.
pub struct FlowKind;

impl FlowKind {
    /// Client to frontend, as the client sent it.
    pub const FORWARD: u8 = 1;
    /// Backend to client (or to the SNAT address), as the backend sends it.
    pub const REPLY: u8 = 2;
}

/// Key of map `FLOWS`: the 5-tuple as it stands in the packet, and the kind.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowKey {
    /// Source address, packet order.
    pub src: u32,
    /// Destination address, packet order.
    pub dst: u32,
    /// Source port, packet order.
    pub sport: u16,
    /// Destination port, packet order.
    pub dport: u16,
    /// IPv4 protocol number.
    pub proto: u8,
    /// [`FlowKind`].
    pub kind: u8,
    /// Must be zero.
    pub pad: u16,
}

const _: () = assert!(size_of::<FlowKey>() == 16);

/// Bits of [`Flow::flags`].
pub struct FlowFlags;

impl FlowFlags {
    /// The reply leaves from the backend's node with the frontend's address (DSR).
    pub const DSR: u32 = 1 << 0;
    /// Source was rewritten too; `snat_addr`/`snat_port` are set.
    pub const SNAT: u32 = 1 << 1;
    /// The backend runs on the node that was asked.
    pub const LOCAL: u32 = 1 << 2;
    /// The flow was opened by something other than a SYN, so the backend's node may never have seen
    /// the frontend: every packet carries the option (Cilium `need_dsr_info`, pull request 48254).
    pub const NEED_OPTION: u32 = 1 << 3;
    /// A pod or this host opened the flow, not a client on the uplink.
    pub const INSIDE: u32 = 1 << 4;
    /// A reply has been seen.
    pub const REPLIED: u32 = 1 << 5;
    /// FIN from the client has been seen.
    pub const FIN_CLIENT: u32 = 1 << 6;
    /// FIN from the backend has been seen.
    pub const FIN_BACKEND: u32 = 1 << 7;
    /// RST from either side has been seen.
    pub const RST: u32 = 1 << 8;
    /// The uplink's egress program, not a pod's veth, sees the replies (hostNetwork backend).
    pub const HOST: u32 = 1 << 9;
    /// How often in a row the client has sent again what it had sent before, up to 7.
    pub const REPEATS: u32 = 7 * Self::REPEAT;
    /// Once of [`Self::REPEATS`].
    pub const REPEAT: u32 = 1 << 24;
}

/// Value of map `FLOWS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// When a packet last used the entry, ns.
    pub last_seen: u64,
    /// The client's next sequence number, host order: the end of what was seen of it. 0 for UDP.
    pub client_next: u32,
    /// The backend's, as far as its packets or what the client acknowledges are seen here.
    pub backend_next: u32,
    /// Client address, packet order.
    pub client_addr: u32,
    /// Frontend address that the client used, packet order.
    pub vip: u32,
    /// Backend address, packet order.
    pub backend_addr: u32,
    /// SNAT source address, packet order; 0 without SNAT.
    pub snat_addr: u32,
    /// Client port, packet order.
    pub client_port: u16,
    /// Frontend port, packet order.
    pub vport: u16,
    /// Backend port, packet order.
    pub backend_port: u16,
    /// SNAT source port, packet order; 0 without SNAT.
    pub snat_port: u16,
    /// Key into `BACKENDS`; 0 where this node did not choose the backend.
    pub backend: u32,
    /// [`FlowFlags`].
    pub flags: u32,
}

const _: () = assert!(size_of::<Flow>() == 48);

/// One second in the unit of [`Flow::last_seen`].
const SECOND: u64 = 1_000_000_000;

impl Flow {
    /// An established TCP flow without a packet for this long is gone (Linux: 5 days; Cilium: 8000 s).
    pub const TCP_ESTABLISHED_NS: u64 = 8_000 * SECOND;
    /// A TCP flow after RST, or after FIN of both sides. The last ACKs still pass; a new SYN replaces the entry.
    /// One FIN is no end: the other side may send for as long as it likes (RFC 9293 section 3.6).
    pub const TCP_CLOSING_NS: u64 = 60 * SECOND;
    /// A UDP flow without a packet for this long is gone (kube-proxy's nf_conntrack: 120 s).
    pub const UDP_NS: u64 = 120 * SECOND;
    /// A live TCP flow silent for this long may lose its tuple to a new SYN through another frontend.
    pub const TUPLE_IDLE_NS: u64 = 60 * SECOND;

    /// How far a packet's sequence numbers may be from those before: the window that a receiver without much
    /// tuning grants. What is farther away is of another connection, or a guess.
    pub const NEAR: u32 = 1 << 20;

    /// Whether either side has begun to close, so that a SYN is a new connection.
    #[inline(always)]
    pub const fn is_closing(&self) -> bool {
        self.flags & (FlowFlags::RST | FlowFlags::FIN_CLIENT | FlowFlags::FIN_BACKEND) != 0
    }

    /// Whether both sides have closed, or one has reset.
    #[inline(always)]
    pub const fn is_closed(&self) -> bool {
        let fins = FlowFlags::FIN_CLIENT | FlowFlags::FIN_BACKEND;
        self.flags & FlowFlags::RST != 0 || self.flags & fins == fins
    }

    /// How long the entry may stay silent, ns.
    #[inline(always)]
    pub const fn lifetime(&self, proto: u8) -> u64 {
        if proto != crate::PROTO_TCP {
            Self::UDP_NS
        } else if self.is_closed() {
            Self::TCP_CLOSING_NS
        } else {
            Self::TCP_ESTABLISHED_NS
        }
    }

    /// Whether the entry is too old to be believed at time `now`.
    #[inline(always)]
    pub const fn is_expired(&self, proto: u8, now: u64) -> bool {
        now.saturating_sub(self.last_seen) > self.lifetime(proto)
    }

    /// Whether a new SYN through another frontend may take over the 5-tuple at the backend.
    #[inline(always)]
    pub const fn may_be_replaced(&self, proto: u8, now: u64) -> bool {
        proto != crate::PROTO_TCP
            || self.is_closed()
            || now.saturating_sub(self.last_seen) > Self::TUPLE_IDLE_NS
    }
}

/// Key of map `FRAGMENTS`: what the fragments of one datagram have in common (RFC 791 section 3.2).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FragmentKey {
    /// Source address, packet order.
    pub src: u32,
    /// Destination address, packet order.
    pub dst: u32,
    /// IP identification, packet order.
    pub id: u16,
    /// IPv4 protocol number.
    pub proto: u8,
    /// Must be zero.
    pub pad: u8,
}

const _: () = assert!(size_of::<FragmentKey>() == 12);

/// Value of map `FRAGMENTS`: the ports that only the first fragment carries.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FragmentPorts {
    /// Source port, packet order.
    pub sport: u16,
    /// Destination port, packet order.
    pub dport: u16,
    /// 1 once the first fragment came, 0 before.
    pub known: u8,
    /// Fragments that came before it.
    pub early: u8,
    /// Must be zero.
    pub pad: u16,
}

const _: () = assert!(size_of::<FragmentPorts>() == 8);

crate::pod!(FlowKey, Flow, FragmentKey, FragmentPorts);
