//! Conntrack steps: find, open and refresh flows.

use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use datapath_types::{DropReason, Flow, FlowFlags, FlowKey, FlowKind, PROTO_TCP};

use crate::{
    drop::Step,
    maps::FLOWS,
    packet::{ACK, FIN, Packet, RST, SYN},
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

/// Which packets of a flow pass the node that has an entry.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sees {
    /// The client's alone: the ingress node, in dsr.
    Requests,
    /// The backend's too, whose acknowledgements tell what is true of the client's.
    Both,
}

/// Notes a packet of the client. Gives whether it carries what was sent before.
///
/// A RST counts if it is exactly the next in sequence, as for the receiver (RFC 5961 section 3.2); a FIN if
/// nothing is missing before it. So nobody who does not see the connection can end its entry.
#[inline(always)]
pub(crate) fn note_request(flow: &mut Flow, packet: &Packet, now: u64, sees: Sees) -> bool {
    flow.last_seen = now;
    if packet.proto != PROTO_TCP {
        return false;
    }
    let (end, next) = (packet.seq_end(), flow.client_next);
    if packet.tcp_flags & RST != 0 {
        if packet.seq == next {
            flow.flags |= FlowFlags::RST;
        }
        return false;
    }
    let ahead = end.wrapping_sub(next);
    let behind = next.wrapping_sub(end);
    // Data again, or a keep-alive (RFC 9293 section 3.8.4).
    let again = (packet.seq_len > 0 && behind < Flow::NEAR) || packet.seq.wrapping_add(1) == next;
    if ahead.wrapping_sub(1) < Flow::NEAR {
        flow.client_next = end;
        flow.flags &= !FlowFlags::REPEATS;
    } else if sees == Sees::Requests && behind >= Flow::NEAR {
        // A connection whose beginning was not seen here, in place of one whose end was not.
        flow.client_next = end;
    } else if again && flow.flags & FlowFlags::REPEATS != FlowFlags::REPEATS {
        flow.flags += FlowFlags::REPEAT;
    }
    if packet.tcp_flags & FIN != 0 && end == flow.client_next {
        flow.flags |= FlowFlags::FIN_CLIENT;
    }
    if packet.tcp_flags & ACK != 0 && flow.flags & FlowFlags::REPLIED == 0 {
        flow.backend_next = packet.ack;
    }
    again
}

/// Notes a packet of the backend, in the same manner.
#[inline(always)]
pub(crate) fn note_reply(flow: &mut Flow, packet: &Packet, now: u64) {
    let first = flow.flags & FlowFlags::REPLIED == 0;
    flow.flags |= FlowFlags::REPLIED;
    flow.last_seen = now;
    if packet.proto != PROTO_TCP {
        return;
    }
    let (end, next) = (packet.seq_end(), flow.backend_next);
    let acks = packet.tcp_flags & ACK != 0;
    if packet.tcp_flags & RST != 0 {
        // The second is the answer to a SYN, the third may answer data of a connection that the backend has
        // forgotten.
        if packet.seq == next || (acks && packet.ack == flow.client_next) || first {
            flow.flags |= FlowFlags::RST;
        }
        return;
    }
    if packet.tcp_flags & SYN != 0 {
        // The backend says what it heard, whatever was tried before.
        flow.client_next = packet.ack;
        flow.backend_next = end;
        return;
    }
    if end.wrapping_sub(next).wrapping_sub(1) < Flow::NEAR || next.wrapping_sub(end) >= Flow::NEAR || first {
        flow.backend_next = end;
    }
    if acks && packet.ack.wrapping_sub(flow.client_next).wrapping_sub(1) < Flow::NEAR {
        flow.client_next = packet.ack;
    }
    if packet.tcp_flags & FIN != 0 && end == flow.backend_next {
        flow.flags |= FlowFlags::FIN_BACKEND;
    }
}
