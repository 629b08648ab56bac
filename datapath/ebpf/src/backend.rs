//! The backend's side of a flow: what the option taught is recorded before the packet is handed over, so
//! that the first reply already finds it.

use aya_ebpf::programs::TcContext;
use datapath_types::{
    Counter, DropReason, EventAction, Flow, FlowFlags, FlowKey, FlowKind, Hook, PROTO_TCP, PROTO_UDP,
    SettingsFlags, Mutation, option::DsrFrontend,
};

use crate::{
    drop::{PASS, Step, count, drop, redirect},
    event,
    flow::{self, now},
    forward,
    icmp_send::{self, Message},
    maps::FLOWS,
    option,
    packet::Packet,
    rewrite::{Tuple, rewrite},
    settings,
};

/// Key of the reply direction for a packet that is on its way to the backend.
#[inline(always)]
fn reply_key_of(packet: &Packet) -> FlowKey {
    flow::key(FlowKind::REPLY, packet.dst, packet.dport, packet.src, packet.sport, packet.proto)
}

/// Handles a packet from another node or an outside client to a backend on this node.
///
/// # Errors
/// The action of a counted drop.
#[inline(always)]
pub(crate) fn receive(ctx: &mut TcContext, packet: &mut Packet, host: bool) -> Step<i32> {
    let now = now();
    let frontend = option::find(ctx, packet)?;
    let vip = match frontend {
        Some(frontend) => {
            record(packet, frontend, host, now)?;
            frontend.addr
        }
        None => untagged(packet, now)?,
    };
    if frontend.is_some()
        && !settings::has(SettingsFlags::KEEP_OPTION)
        && !settings::mutated(Mutation::KeepOption)
    {
        option::strip(ctx, packet)?;
    }
    let new = Tuple::of(packet);
    count(Counter::Delivered);
    event::emit(Hook::FromNetdev, EventAction::Deliver, packet, &new);
    hand_over(ctx, packet, &new, vip, host)
}

/// Remembers which frontend the client used.
#[inline(always)]
fn record(packet: &Packet, frontend: DsrFrontend, host: bool, now: u64) -> Step<()> {
    let flow = Flow {
        last_seen: now,
        created: now,
        client_addr: packet.src,
        vip: frontend.addr,
        backend_addr: packet.dst,
        snat_addr: 0,
        client_port: packet.sport,
        vport: frontend.port,
        backend_port: packet.dport,
        snat_port: 0,
        backend: 0,
        flags: FlowFlags::DSR | if host { FlowFlags::HOST } else { 0 },
    };
    keep(&reply_key_of(packet), &flow, packet, now)
}

/// Keeps the reply entry of a flow whose frontend is on this node, and rebuilds it if it was evicted.
///
/// # Errors
/// As [`keep`].
#[inline(always)]
pub(crate) fn keep_reply(flow: &Flow, packet: &Packet, now: u64) -> Step<()> {
    let (backend, client) = (flow.backend_addr, flow.client_addr);
    let key = flow::key(
        FlowKind::REPLY,
        backend,
        flow.backend_port,
        client,
        flow.client_port,
        packet.proto,
    );
    keep(&key, flow, packet, now)
}

/// Refreshes the entry, replaces one of another frontend if it is done, or makes a new one.
///
/// # Errors
/// [`DropReason::TupleInUse`] if a live connection through another frontend has the same 5-tuple at the
/// backend: the newer SYN must not steal its replies (Cilium issues 18632 and 11810).
#[inline(always)]
fn keep(key: &FlowKey, flow: &Flow, packet: &Packet, now: u64) -> Step<()> {
    if let Some(old) = flow::find(key, now) {
        let same = old.vip == flow.vip && old.vport == flow.vport;
        let reopened = packet.is_syn() && old.is_closing();
        if same && !reopened {
            flow::note_request(old, packet, now);
            return Ok(());
        }
        if !same && !old.may_be_replaced(packet.proto, now) {
            return Err(drop(DropReason::TupleInUse));
        }
    }
    flow::store(key, flow)
}

/// A packet to the backend that names no frontend: it continues a flow, or it is not ours. Gives the
/// frontend address of the flow, 0 without.
#[inline(always)]
fn untagged(packet: &Packet, now: u64) -> Step<u32> {
    let key = reply_key_of(packet);
    let Some(flow) = flow::find(&key, now) else { return Ok(0) };
    // Only a new exchange that goes straight to the pod is untagged in a DSR flow: a SYN, or a datagram.
    let direct = packet.is_syn() || (packet.proto == PROTO_UDP && flow.flags & FlowFlags::LOCAL == 0);
    if !direct {
        flow::note_request(flow, packet, now);
        return Ok(flow.vip);
    }
    if packet.proto == PROTO_TCP && !flow.may_be_replaced(packet.proto, now) {
        return Err(drop(DropReason::TupleInUse));
    }
    let _ = FLOWS.remove(key);
    Ok(0)
}

/// Gives the packet its final addresses and hands it to the pod, or to this host's stack.
///
/// # Errors
/// The action of a counted drop; the client hears of a TTL or MTU that does not suffice.
#[inline(always)]
pub(crate) fn hand_over(
    ctx: &mut TcContext,
    packet: &Packet,
    new: &Tuple,
    vip: u32,
    host: bool,
) -> Step<i32> {
    if host {
        rewrite(ctx, packet, new, false)?;
        return Ok(PASS);
    }
    forward::check_ttl(ctx, packet, settings::node_addr())?;
    let Some(pod) = forward::endpoint(new.dst) else {
        // The agent has not seen the pod yet; the stack knows the way, if there is one.
        rewrite(ctx, packet, new, false)?;
        return Ok(PASS);
    };
    if !forward::fits(ctx, packet, 0, pod.mtu) {
        return Err(too_big_for_pod(ctx, packet, vip, pod.mtu));
    }
    rewrite(ctx, packet, new, true)?;
    Ok(redirect(ctx, pod.ifindex))
}

/// Tells the client the MTU of the pod's link. The quote must show what the client sent, so a packet that
/// was already rewritten on another node gets its frontend back first.
#[inline(always)]
fn too_big_for_pod(ctx: &mut TcContext, packet: &Packet, vip: u32, mtu: u32) -> i32 {
    let mut seen = *packet;
    let mut source = packet.dst;
    if vip != 0 && vip != packet.dst {
        if let Some(flow) = flow::find(&reply_key_of(packet), now()) {
            let original = Tuple::of(packet).to(flow.vip, flow.vport);
            if let Err(action) = rewrite(ctx, packet, &original, false) {
                return action;
            }
            seen.dst = flow.vip;
            seen.dport = flow.vport;
        }
        source = vip;
    }
    icmp_send::error(ctx, &seen, &Message::fragmentation_needed(mtu, source, DropReason::TooBig))
}
