//! A backend's packet to its client: the source becomes the frontend, on every packet of the flow.

#[cfg(feature = "mutations")]
use aya_ebpf::programs::TcContext;
use datapath_types::{Counter, EventAction, Flow, FlowFlags, Hook, Mutation};

use crate::{
    drop::count,
    event,
    flow::{self, now},
    forward::Move,
    packet::{ACK, Packet, SYN},
    rewrite::Tuple,
    settings,
};

/// The flow that this packet replies to, noted as seen.
#[inline(always)]
pub(crate) fn find<'a>(packet: &Packet) -> Option<&'a mut Flow> {
    let now = now();
    let flow = flow::find(&flow::reply_key(packet), now)?;
    flow::note_reply(flow, packet, now);
    Some(flow)
}

/// What the client shall see: the frontend as source, and itself as destination.
#[inline(always)]
pub(crate) fn restored(flow: &Flow) -> Tuple {
    Tuple { src: flow.vip, dst: flow.client_addr, sport: flow.vport, dport: flow.client_port }
}

/// Decides about a reply at an ingress hook.
#[inline(always)]
pub(crate) fn decide(packet: &Packet, flow: &Flow, hook: Hook) -> Move {
    let new = restored(flow);
    let reversed = flow.flags & FlowFlags::SNAT != 0;
    let (counter, action) = match (hook, reversed) {
        (Hook::FromPod, false) => (Counter::ReplyAtPod, EventAction::Reply),
        _ => (Counter::ReplyReversed, EventAction::ReverseSnat),
    };
    count(counter);
    event::emit(hook, action, packet, &new);
    let way = Move::towards(packet, new);
    if misbehaves(packet) { Move { new: Tuple::of(packet), ..way } } else { way }
}

/// Decides about a reply that this host's own stack sends; the stack has routed it already.
#[inline(always)]
pub(crate) fn decide_in_place(packet: &Packet, flow: &Flow) -> Move {
    let new = restored(flow);
    count(Counter::ReplyAtUplink);
    event::emit(Hook::ToNetdev, EventAction::Reply, packet, &new);
    Move::in_place(packet, if misbehaves(packet) { Tuple::of(packet) } else { new })
}

/// Mutations that leave the source alone.
#[inline(always)]
fn misbehaves(packet: &Packet) -> bool {
    let syn_ack = packet.tcp_flags & (SYN | ACK) == SYN | ACK;
    settings::mutated(Mutation::LeakPodAddress)
        || (settings::mutated(Mutation::OnlySynAck) && packet.tcp_flags != 0 && !syn_ack)
}

/// Mutations that spoil a reply after it was rewritten; `vip` is the frontend. `Some` replaces the action.
#[cfg(feature = "mutations")]
#[inline(always)]
pub(crate) fn mutate(ctx: &mut TcContext, packet: &Packet, vip: u32) -> Option<i32> {
    use aya_ebpf::bindings::{TC_ACT_SHOT, bpf_redir_neigh};
    use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_redirect_neigh};
    use datapath_types::PROTO_TCP;

    use crate::packet::{RST, at};

    let l4 = packet.l4_offset();
    if settings::mutated(Mutation::BadL4Checksum) {
        let offset = if packet.proto == PROTO_TCP { 16 } else { 6 };
        if let Some(field) = at::<u16>(ctx, l4 + offset) {
            // SAFETY: `at` checked the bounds.
            unsafe { field.write_unaligned(!field.read_unaligned() ^ 0x5a5a) };
        }
    }
    if settings::mutated(Mutation::ForgeReset) && packet.proto == PROTO_TCP && packet.tot_len > 100 {
        if let Some(flags) = at::<u8>(ctx, l4 + 13) {
            // SAFETY: `at` checked the bounds.
            unsafe { flags.write(flags.read() | RST) };
        }
    }
    // SAFETY: no arguments.
    if settings::mutated(Mutation::SilentDrop) && unsafe { bpf_get_prandom_u32() } & 3 == 0 {
        return Some(TC_ACT_SHOT);
    }
    if settings::mutated(Mutation::ReplyThroughIngress) {
        // SAFETY: all bit patterns are valid; zero means "no address".
        let mut hop: bpf_redir_neigh = unsafe { core::mem::zeroed() };
        hop.nh_family = 2; // AF_INET
        hop.__bindgen_anon_1.ipv4_nh = vip;
        ctx.set_mark(datapath_types::MARK_DONE);
        let size = size_of::<bpf_redir_neigh>() as i32;
        // SAFETY: `hop` outlives the call.
        return Some(unsafe { bpf_redirect_neigh(settings::uplink(), &mut hop, size, 0) } as i32);
    }
    None
}
