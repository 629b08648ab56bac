//! The optional ring buffer record, one per rewrite. Off by default: logging is half the cost of
//! datapaths that have it in the packet path.

/// Where a record was made.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// tc ingress of the uplink.
    FromNetdev = 1,
    /// tc egress of the uplink.
    ToNetdev = 2,
    /// tc ingress of the host side of a pod's veth.
    FromPod = 3,
}

/// What was done.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventAction {
    /// Destination rewritten, client address kept.
    Dnat = 1,
    /// Destination and source rewritten.
    DnatSnat = 2,
    /// Option read, flow recorded, packet given to the backend.
    Deliver = 3,
    /// Source rewritten to the frontend.
    Reply = 4,
    /// SNAT reversed.
    ReverseSnat = 5,
}

/// Record of ring buffer `EVENTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// `CLOCK_MONOTONIC_COARSE`, ns.
    pub time: u64,
    /// Source address before, packet order.
    pub src: u32,
    /// Destination address before, packet order.
    pub dst: u32,
    /// Source address after, packet order.
    pub new_src: u32,
    /// Destination address after, packet order.
    pub new_dst: u32,
    /// Source port before, packet order.
    pub sport: u16,
    /// Destination port before, packet order.
    pub dport: u16,
    /// Source port after, packet order.
    pub new_sport: u16,
    /// Destination port after, packet order.
    pub new_dport: u16,
    /// IP identification, packet order: finds the packet in a capture.
    pub ip_id: u16,
    /// IPv4 protocol number.
    pub proto: u8,
    /// [`Hook`].
    pub hook: u8,
    /// [`EventAction`].
    pub action: u8,
    /// TCP flags byte, 0 for UDP.
    pub tcp_flags: u8,
    /// Must be zero.
    pub pad: u16,
}

const _: () = assert!(size_of::<Event>() == 40);

crate::pod!(Event);
