//! A client's packet to a frontend: conntrack first, then Maglev, then one of three ways to the backend.

use datapath_types::{
    Affinity, AffinityKey, Backend, Counter, DropReason, EventAction, Flow, FlowFlags, Frontend, Hook,
    MAGLEV_SLOTS, Mutation, PROTO_TCP, flow_hash,
};

use crate::{
    backend,
    drop::{Step, count},
    event,
    flow::{self, Sees, now},
    forward::{Move, OptionStep},
    maps::{AFFINITY, BACKENDS, MAGLEV},
    packet::Packet,
    rewrite::Tuple,
    scratch::{Scratch, forget},
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

/// From this retransmission on, the client hears that its segments are too big for the option. One or two are
/// lost on any network, and the smaller size stays with the client for minutes.
const INSIST: u32 = 3 * FlowFlags::REPEAT;

/// Decides about one packet to a frontend: fills the flow and the way.
///
/// # Errors
/// A drop.
#[inline(always)]
pub(crate) fn decide(s: &mut Scratch, frontend: &Frontend, origin: Origin, hook: Hook) -> Step<()> {
    let now = now();
    (s.opened, s.again) = (0, 0);
    if !follow(&s.packet, &mut s.flow, &mut s.again, now) {
        if origin == Origin::Outside && s.martian != 0 {
            return Err(DropReason::MartianSource.into());
        }
        if !open(&s.packet, &mut s.flow, frontend, origin, now)? {
            s.way = Move::refuse(&s.packet);
            return Ok(());
        }
        s.opened = 1;
    }
    let Scratch { packet, flow, way, opened, again, .. } = forget(s);
    let mut new = Tuple::of(packet).to(flow.backend_addr, flow.backend_port);
    let reversed = flow.flags & FlowFlags::SNAT != 0;
    let local = flow.flags & FlowFlags::LOCAL != 0;
    let host = flow.flags & FlowFlags::HOST != 0;
    if hook == Hook::ToNetdev && local && host {
        return Err(DropReason::HostToItself.into());
    }
    let mut rebuilt = false;
    if reversed {
        rebuilt = snat::keep_reverse(flow, packet, now)?;
        new = new.from(flow.snat_addr, flow.snat_port);
    } else if local || origin == Origin::Inside {
        // The replies pass this node, so what rewrites them is recorded here.
        rebuilt = backend::keep_reply(flow, packet, now)?;
    }
    if *opened != 0 {
        count(Counter::FlowOpened);
    } else if rebuilt {
        count(Counter::TwinRepaired);
    }
    event::emit(hook, if reversed { EventAction::DnatSnat } else { EventAction::Dnat }, packet, &new);
    count(match (origin, local, reversed) {
        (Origin::Inside, ..) => Counter::ForwardedInside,
        (_, true, _) => Counter::ForwardedLocal,
        (_, _, true) => Counter::ForwardedSnat,
        _ => Counter::ForwardedDsr,
    });
    if local {
        *way = backend::to_pod_or_host(packet, new, host);
        return Ok(());
    }
    *way = Move::uplink(packet, new);
    if origin == Origin::Outside && !reversed {
        if needs_option(packet, flow) {
            way.option = OptionStep::Insert;
        } else if *again != 0 {
            way.option = OptionStep::InsertIfItFits;
            if flow.flags & FlowFlags::REPEATS >= INSIST {
                way.option = OptionStep::Insert;
            }
        }
    }
    Ok(())
}

/// Copies the flow that this packet continues, if its backend still exists, and notes whether it repeats.
#[inline(always)]
fn follow(packet: &Packet, copy: &mut Flow, again: &mut u32, now: u64) -> bool {
    let Some(flow) = flow::find(&flow::forward_key(packet), now) else { return false };
    let Some(backend) = BACKENDS.get_ptr(flow.backend) else { return false };
    // SAFETY: the agent replaces values whole; plain integers.
    let backend = unsafe { &*backend };
    if backend.addr != flow.backend_addr || backend.port != flow.backend_port {
        return false;
    }
    // A SYN on a flow that is closing, or whose backend is leaving, is a new connection.
    if packet.is_syn() && (flow.is_closing() || backend.is_terminating()) {
        return false;
    }
    // A datagram has no connection to keep.
    if packet.proto != PROTO_TCP && backend.is_retired() {
        return false;
    }
    let twin = flow.flags & (FlowFlags::SNAT | FlowFlags::LOCAL | FlowFlags::INSIDE) != 0;
    let sees = if twin { Sees::Both } else { Sees::Requests };
    *again = flow::note_request(flow, packet, now, sees) as u32;
    *copy = *forget(flow);
    true
}

/// Chooses a backend and opens the flow; false if the client should hear that nobody is there.
#[inline(always)]
fn open(packet: &Packet, flow: &mut Flow, frontend: &Frontend, origin: Origin, now: u64) -> Step<bool> {
    let Some((id, backend)) = select_backend(packet, frontend, origin, now)? else {
        if frontend.is_local_only() && origin == Origin::Outside {
            // Kubernetes: the node must look dead for this service, so that health checks steer around it.
            return Err(DropReason::NoLocalBackend.into());
        }
        return Ok(false);
    };
    *flow = Flow {
        last_seen: now,
        client_next: packet.seq_end(),
        backend_next: packet.ack,
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
    if origin == Origin::Inside {
        if flow.backend_addr == packet.src {
            snat::hairpin(flow);
        }
    } else if wants_snat(packet, flow) {
        flow.flags &= !FlowFlags::DSR;
        snat::allocate(flow, packet.proto, now)?;
    }
    let flow = forget(flow);
    flow::note_request(flow, packet, now, Sees::Both);
    flow::store(&flow::forward_key(packet), flow)?;
    Ok(true)
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

/// Whether a client's source must be rewritten too: for remote backends in the SNAT modes.
#[inline(always)]
fn wants_snat(packet: &Packet, flow: &Flow) -> bool {
    flow.flags & FlowFlags::LOCAL == 0
        && (!settings::returns_directly(packet.proto) || settings::mutated(Mutation::SnatInDsr))
}

/// Affinity first, then Maglev. `None` without a backend.
///
/// # Errors
/// [`DropReason::BackendGone`] for a slot that the agent is about to rewrite: its backend is gone already.
/// The client tries again and finds the new table; a refusal would end its attempt.
#[inline(always)]
fn select_backend(
    packet: &Packet,
    frontend: &Frontend,
    origin: Origin,
    now: u64,
) -> Step<Option<(u32, Backend)>> {
    let sticky = AffinityKey { client: packet.src, service: frontend.service };
    if frontend.has_affinity()
        && let Some(choice) = remembered_backend(&sticky, frontend, packet.proto, now)
    {
        return Ok(Some(choice));
    }
    let outside = origin == Origin::Outside && !settings::mutated(Mutation::IgnoreLocalPolicy);
    let table = if outside { frontend.table } else { frontend.inside_table };
    let hash = flow_hash(packet.src, packet.sport, packet.dport, packet.proto);
    let id = MAGLEV.get(table * MAGLEV_SLOTS + hash % MAGLEV_SLOTS).copied().unwrap_or(0);
    if id == 0 {
        return Ok(None);
    }
    let backend = BACKENDS.get_ptr(id).ok_or(DropReason::BackendGone)?;
    // SAFETY: the agent replaces values whole; plain integers.
    let backend = unsafe { *backend };
    if frontend.has_affinity() {
        let value = Affinity { last_seen: now, backend: id, pad: 0 };
        // A full table forgets a client; the next flow chooses anew.
        let _ = AFFINITY.insert(sticky, value, 0);
    }
    Ok(Some((id, backend)))
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

/// UDP has no first packet, so each datagram is tagged; TCP only its SYN, unless the flow began without. (What a
/// client sends again is tagged too: the backend's node may have lost the flow, and then drops the replies.)
#[inline(always)]
fn needs_option(packet: &Packet, flow: &Flow) -> bool {
    packet.proto != PROTO_TCP
        || packet.is_syn()
        || flow.flags & FlowFlags::NEED_OPTION != 0
        || settings::mutated(Mutation::TagEveryPacket)
}
