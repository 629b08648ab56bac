//! A client's packet to a frontend: conntrack first, then Maglev, then one of three ways to the backend.

use aya_ebpf::programs::TcContext;
use datapath_types::{
    Affinity, AffinityKey, Backend, Counter, DropReason, EventAction, Flow, FlowFlags, Frontend, Hook,
    MAGLEV_SLOTS, Mutation, PROTO_TCP, flow_hash, option,
};

use crate::{
    backend,
    drop::{Step, count, drop, redirect},
    event,
    flow::{self, now},
    forward,
    icmp_send::{self, Message},
    maps::{AFFINITY, BACKENDS, MAGLEV},
    option as dsr_option,
    packet::Packet,
    rewrite::{Tuple, rewrite},
    settings, snat,
};

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A client on the uplink.
    Outside,
    /// A pod or this host.
    Inside,
}

/// Handles one packet to a frontend. Gives the tc action.
///
/// # Errors
/// The action of a counted drop.
#[inline(always)]
pub(crate) fn handle(
    ctx: &mut TcContext,
    packet: &mut Packet,
    frontend: &Frontend,
    origin: Origin,
    hook: Hook,
) -> Step<i32> {
    let now = now();
    let flow = match follow(packet, now) {
        Some(flow) => flow,
        None => open(ctx, packet, frontend, origin, now)?,
    };
    if flow.flags & FlowFlags::LOCAL != 0 {
        to_local_backend(ctx, packet, &flow, hook, now)
    } else if flow.flags & FlowFlags::SNAT != 0 {
        to_remote_backend_snat(ctx, packet, &flow, hook, now)
    } else if origin == Origin::Inside {
        to_remote_backend_inside(ctx, packet, &flow, hook, now)
    } else {
        to_remote_backend_dsr(ctx, packet, &flow, hook)
    }
}

/// The flow that this packet continues, if its backend still exists.
#[inline(always)]
fn follow(packet: &Packet, now: u64) -> Option<Flow> {
    let flow = flow::find(&flow::forward_key(packet), now)?;
    // SAFETY: the agent replaces values whole; plain integers.
    let backend = unsafe { *BACKENDS.get_ptr(flow.backend)? };
    if backend.addr != flow.backend_addr || backend.port != flow.backend_port {
        return None;
    }
    // A SYN on a flow that is closing, or whose backend is leaving, is a new connection.
    if packet.is_syn() && (flow.is_closing() || backend.is_terminating()) {
        return None;
    }
    flow::note_request(flow, packet, now);
    Some(*flow)
}

/// Chooses a backend and opens the flow.
#[inline(always)]
fn open(
    ctx: &mut TcContext,
    packet: &Packet,
    frontend: &Frontend,
    origin: Origin,
    now: u64,
) -> Step<Flow> {
    let Some((id, backend)) = select_backend(packet, frontend, origin, now) else {
        return Err(refuse(ctx, packet, frontend, origin));
    };
    let mut flow = Flow {
        last_seen: now,
        created: now,
        client_addr: packet.src,
        vip: packet.dst,
        backend_addr: backend.addr,
        snat_addr: 0,
        client_port: packet.sport,
        vport: packet.dport,
        backend_port: backend.port,
        snat_port: 0,
        backend: id,
        flags: opening_flags(packet, &backend, origin),
    };
    if wants_snat(packet, &flow) {
        flow.flags &= !FlowFlags::DSR;
        snat::allocate(&mut flow, packet.proto, now)?;
    }
    flow::note_request(&mut flow, packet, now);
    flow::store(&flow::forward_key(packet), &flow)?;
    Ok(flow)
}

#[inline(always)]
fn opening_flags(packet: &Packet, backend: &Backend, origin: Origin) -> u32 {
    let mut flags = 0;
    if backend.is_local() {
        flags |= FlowFlags::LOCAL;
    }
    if backend.is_host() {
        flags |= FlowFlags::HOST;
    }
    match origin {
        Origin::Inside => flags |= FlowFlags::INSIDE,
        Origin::Outside => flags |= FlowFlags::DSR,
    }
    if packet.proto == PROTO_TCP && !packet.is_syn() {
        flags |= FlowFlags::NEED_OPTION;
    }
    flags
}

/// Whether the source must be rewritten too: remote backends of SNAT modes, and a pod that asks itself
/// (it would drop a packet from its own address).
#[inline(always)]
fn wants_snat(packet: &Packet, flow: &Flow) -> bool {
    if flow.flags & FlowFlags::INSIDE != 0 {
        return flow.backend_addr == packet.src;
    }
    flow.flags & FlowFlags::LOCAL == 0
        && (!settings::returns_directly(packet.proto) || settings::mutated(Mutation::SnatInDsr))
}

/// Affinity first, then Maglev. `None` without a backend.
#[inline(always)]
fn select_backend(
    packet: &Packet,
    frontend: &Frontend,
    origin: Origin,
    now: u64,
) -> Option<(u32, Backend)> {
    let sticky = AffinityKey { client: packet.src, service: frontend.service };
    if frontend.has_affinity()
        && let Some(choice) = remembered_backend(&sticky, frontend, packet.proto, now)
    {
        return Some(choice);
    }
    let outside = origin == Origin::Outside && !settings::mutated(Mutation::IgnoreLocalPolicy);
    let table = if outside { frontend.table } else { frontend.inside_table };
    let hash = flow_hash(packet.src, packet.sport, packet.dport, packet.proto);
    let id = *MAGLEV.get(table * MAGLEV_SLOTS + hash % MAGLEV_SLOTS)?;
    // SAFETY: the agent replaces values whole; plain integers.
    let backend = unsafe { *BACKENDS.get_ptr(id)? };
    if frontend.has_affinity() {
        let value = Affinity { last_seen: now, backend: id, pad: 0 };
        // A full table forgets a client; the next flow chooses anew.
        let _ = AFFINITY.insert(sticky, value, 0);
    }
    Some((id, backend))
}

/// The backend that this client used last, while it is fresh and takes new flows.
#[inline(always)]
fn remembered_backend(
    sticky: &AffinityKey,
    frontend: &Frontend,
    proto: u8,
    now: u64,
) -> Option<(u32, Backend)> {
    // SAFETY: an LRU slot reused under us holds another client's plain integers.
    let memory = unsafe { &mut *AFFINITY.get_ptr_mut(sticky)? };
    if now.saturating_sub(memory.last_seen) > frontend.affinity_seconds as u64 * 1_000_000_000 {
        return None;
    }
    let id = memory.backend;
    // SAFETY: the agent replaces values whole; plain integers.
    let backend = unsafe { *BACKENDS.get_ptr(id)? };
    // Ports of one service share the memory; an id is of one protocol.
    if backend.is_terminating() || backend.proto != proto {
        return None;
    }
    if frontend.is_local_only() && !backend.is_local() {
        return None;
    }
    memory.last_seen = now;
    Some((id, backend))
}

/// Nobody serves this frontend here.
#[inline(always)]
fn refuse(ctx: &mut TcContext, packet: &Packet, frontend: &Frontend, origin: Origin) -> i32 {
    if frontend.is_local_only() && origin == Origin::Outside {
        // Kubernetes: the node must look dead for this service, so that health checks steer around it.
        return drop(DropReason::NoLocalBackend);
    }
    icmp_send::error(ctx, packet, &Message::port_unreachable(packet.dst, DropReason::NoBackend))
}

/// The backend is on this node.
#[inline(always)]
fn to_local_backend(
    ctx: &mut TcContext,
    packet: &Packet,
    flow: &Flow,
    hook: Hook,
    now: u64,
) -> Step<i32> {
    let mut new = Tuple::of(packet).to(flow.backend_addr, flow.backend_port);
    if flow.flags & FlowFlags::SNAT != 0 {
        snat::keep_reverse(flow, packet, now)?;
        new = new.from(flow.snat_addr, flow.snat_port);
    } else {
        backend::keep_reply(flow, packet, now)?;
    }
    count(if flow.flags & FlowFlags::INSIDE != 0 {
        Counter::ForwardedInside
    } else {
        Counter::ForwardedLocal
    });
    event::emit(hook, EventAction::Dnat, packet, &new);
    backend::hand_over(ctx, packet, &new, flow.vip, flow.flags & FlowFlags::HOST != 0)
}

/// SNAT to another node: destination and source.
#[inline(always)]
fn to_remote_backend_snat(
    ctx: &mut TcContext,
    packet: &Packet,
    flow: &Flow,
    hook: Hook,
    now: u64,
) -> Step<i32> {
    forward::check_ttl(ctx, packet, settings::node_addr())?;
    snat::keep_reverse(flow, packet, now)?;
    let new = Tuple::of(packet)
        .to(flow.backend_addr, flow.backend_port)
        .from(flow.snat_addr, flow.snat_port);
    rewrite(ctx, packet, &new, true)?;
    count(Counter::ForwardedSnat);
    event::emit(hook, EventAction::DnatSnat, packet, &new);
    Ok(redirect(ctx, settings::uplink()))
}

/// A pod or this host to another node's backend: the reply comes back here, so no option is needed.
#[inline(always)]
fn to_remote_backend_inside(
    ctx: &mut TcContext,
    packet: &Packet,
    flow: &Flow,
    hook: Hook,
    now: u64,
) -> Step<i32> {
    forward::check_ttl(ctx, packet, settings::node_addr())?;
    backend::keep_reply(flow, packet, now)?;
    let new = Tuple::of(packet).to(flow.backend_addr, flow.backend_port);
    rewrite(ctx, packet, &new, true)?;
    count(Counter::ForwardedInside);
    event::emit(hook, EventAction::Dnat, packet, &new);
    Ok(redirect(ctx, settings::uplink()))
}

/// DSR to another node: destination, and the option where it is due.
#[inline(always)]
fn to_remote_backend_dsr(
    ctx: &mut TcContext,
    packet: &mut Packet,
    flow: &Flow,
    hook: Hook,
) -> Step<i32> {
    forward::check_ttl(ctx, packet, settings::node_addr())?;
    let tagged = needs_option(packet, flow);
    let extra = if tagged { option::LEN as u32 } else { 0 };
    if !forward::fits(ctx, packet, extra, settings::mtu()) && !settings::mutated(Mutation::IgnoreMtu) {
        return Err(too_big(ctx, packet, extra));
    }
    let new = Tuple::of(packet).to(flow.backend_addr, flow.backend_port);
    if tagged && packet.ihl > 52 {
        return Err(drop(DropReason::OptionNoRoom));
    }
    rewrite(ctx, packet, &new, true)?;
    event::emit(hook, EventAction::Dnat, packet, &new);
    if tagged {
        dsr_option::insert(ctx, packet, flow.vip, flow.vport)?;
    }
    count(Counter::ForwardedDsr);
    Ok(redirect(ctx, settings::uplink()))
}

/// UDP has no first packet, so each datagram is tagged; TCP only its SYN, unless the flow began without.
#[inline(always)]
fn needs_option(packet: &Packet, flow: &Flow) -> bool {
    packet.proto != PROTO_TCP
        || packet.is_syn()
        || flow.flags & FlowFlags::NEED_OPTION != 0
        || settings::mutated(Mutation::TagEveryPacket)
}

/// Tells the client how large a packet may be so that the option still fits. Also without DF: this node
/// cannot fragment, and a sender that learns the path MTU fragments on its own.
#[inline(always)]
fn too_big(ctx: &mut TcContext, packet: &Packet, extra: u32) -> i32 {
    let reason = if extra == 0 { DropReason::TooBig } else { DropReason::TooBigForOption };
    let mtu = settings::mtu() - extra;
    icmp_send::error(ctx, packet, &Message::fragmentation_needed(mtu, packet.dst, reason))
}
