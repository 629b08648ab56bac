//! Conntrack steps: find, open and refresh flows.

use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use datapath_types::{DropReason, Flow, FlowFlags, FlowKey, FlowKind, PROTO_TCP};

use crate::{
    drop::Step,
    maps::FLOWS,
    packet::{FIN, Packet, RST},
};

/// `BPF_NOEXIST`: insert only.
pub(crate) const NOEXIST: u64 = 1;

/// Now, ns of `CLOCK_MONOTONIC_COARSE`: a third of the price of the exact clock, and ticks are enough.
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// Key of the direction client to frontend, for the packet as the client sent it.
#[inline(always)]
pub(crate) fn forward_key(packet: &Packet) -> FlowKey {
    key(FlowKind::FORWARD, packet.src, packet.sport, packet.dst, packet.dport, packet.proto)
}

/// Key of the direction backend to client, for the packet as the backend sent it.
#[inline(always)]
pub(crate) fn reply_key(packet: &Packet) -> FlowKey {
    key(FlowKind::REPLY, packet.src, packet.sport, packet.dst, packet.dport, packet.proto)
}

/// Key from its parts.
#[inline(always)]
pub(crate) fn key(kind: u8, src: u32, sport: u16, dst: u32, dport: u16, proto: u8) -> FlowKey {
    FlowKey { src, dst, sport, dport, proto, kind, pad: 0 }
}

/// The live entry for a key.
#[inline(always)]
pub(crate) fn find<'a>(key: &FlowKey, now: u64) -> Option<&'a mut Flow> {
    // SAFETY: map values live until an RCU grace period after the program; an LRU slot that is reused
    // under us gives another flow's consistent-enough integers, never an invalid value.
    let flow = unsafe { &mut *FLOWS.get_ptr_mut(key)? };
    if flow.is_expired(key.proto, now) { None } else { Some(flow) }
}

/// Stores an entry, new or not.
///
/// # Errors
/// [`DropReason::FlowTableFull`] if the map refuses.
#[inline(always)]
pub(crate) fn store(key: &FlowKey, flow: &Flow) -> Step<()> {
    FLOWS.insert(key, flow, 0).map_err(|_| DropReason::FlowTableFull.into())
}

/// Notes a packet of the client.
#[inline(always)]
pub(crate) fn note_request(flow: &mut Flow, packet: &Packet, now: u64) {
    note(flow, packet, now, FlowFlags::FIN_CLIENT);
}

/// Notes a packet of the backend.
#[inline(always)]
pub(crate) fn note_reply(flow: &mut Flow, packet: &Packet, now: u64) {
    flow.flags |= FlowFlags::REPLIED;
    note(flow, packet, now, FlowFlags::FIN_BACKEND);
}

#[inline(always)]
fn note(flow: &mut Flow, packet: &Packet, now: u64, fin: u32) {
    flow.last_seen = now;
    if packet.proto != PROTO_TCP {
        return;
    }
    if packet.tcp_flags & FIN != 0 {
        flow.flags |= fin;
    }
    if packet.tcp_flags & RST != 0 {
        flow.flags |= FlowFlags::RST;
    }
}
