//! Where a packet goes next: which link, whether it fits, whether it may live one hop longer.

use aya_ebpf::programs::TcContext;
use datapath_types::{Endpoint, PROTO_TCP};

use crate::{
    drop::{PASS, Step, redirect},
    icmp_send::{self, Message},
    maps::{ENDPOINTS, NODES},
    packet::{Packet, read},
    settings,
};

/// The local pod with this address.
#[inline(always)]
pub(crate) fn endpoint(addr: u32) -> Option<Endpoint> {
    // SAFETY: the agent replaces values whole; both fields are plain integers.
    ENDPOINTS.get_ptr(addr).map(|e| unsafe { *e })
}

/// Whether an address belongs to nobody in the cluster: not a pod, not a node.
#[inline(always)]
pub(crate) fn is_outside(addr: u32) -> bool {
    !settings::is_pod_addr(addr) && NODES.get_ptr(addr).is_none()
}

/// Sends the packet towards a destination that it already carries: a local pod, this host's stack, or
/// the uplink.
#[inline(always)]
pub(crate) fn towards(ctx: &mut TcContext, dst: u32) -> i32 {
    if let Some(pod) = endpoint(dst) {
        return redirect(ctx, pod.ifindex);
    }
    if dst == settings::node_addr() { PASS } else { redirect(ctx, settings::uplink()) }
}

/// The largest IPv4 packet that will be on the wire: the packet itself, or one segment of a GSO packet.
#[inline(always)]
fn wire_len(ctx: &TcContext, packet: &Packet) -> u32 {
    // SAFETY: the kernel hands a valid context; a plain field.
    let segment = unsafe { (*ctx.skb.skb).gso_size };
    if segment == 0 {
        return packet.tot_len as u32;
    }
    let transport = match packet.proto {
        PROTO_TCP => read::<u8>(ctx, packet.l4_offset() + 12).map_or(20, |b| (b >> 4) << 2) as u32,
        _ => 8,
    };
    packet.ihl as u32 + transport + segment
}

/// Whether the packet, grown by `extra` bytes, fits a link.
#[inline(always)]
pub(crate) fn fits(ctx: &TcContext, packet: &Packet, extra: u32, mtu: u32) -> bool {
    wire_len(ctx, packet) + extra <= mtu
}

/// Refuses a packet whose TTL would become zero here.
///
/// # Errors
/// Sends ICMP time exceeded from `source` and gives the action.
#[inline(always)]
pub(crate) fn check_ttl(ctx: &mut TcContext, packet: &Packet, source: u32) -> Step<()> {
    if packet.ttl > 1 {
        return Ok(());
    }
    Err(icmp_send::error(ctx, packet, &Message::time_exceeded(source)))
}
