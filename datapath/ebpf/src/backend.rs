//! The backend's side of a flow: what the option taught is recorded before the packet is handed over, so
//! that the first reply already finds it.

use datapath_types::{
    Counter, DropReason, EventAction, Flow, FlowFlags, FlowKey, FlowKind, Hook, Mutation, PROTO_TCP,
    PROTO_UDP, SettingsFlags, option::DsrFrontend,
};

use crate::{
    drop::{Leave, Step, count},
    event,
    flow::{self, Sees, now},
    forward::{Move, OptionStep, endpoint},
    maps::FLOWS,
    packet::Packet,
    rewrite::Tuple,
    scratch::{Scratch, forget},
    settings,
};

/// Key of the reply direction for a packet that is on its way to the backend.
#[inline(always)]
fn reply_key_of(packet: &Packet) -> FlowKey {
    flow::key(FlowKind::REPLY, packet.dst, packet.dport, packet.src, packet.sport, packet.proto)
}

/// Decides about a packet from another node or an outside client to a backend on this node.
///
/// # Errors
/// A drop.
#[inline(always)]
pub(crate) fn receive(s: &mut Scratch, host: bool) -> Step<()> {
    let Scratch { packet, flow, way, carried, martian, .. } = s;
    let (frontend, martian) = (*carried, *martian != 0);
    let now = now();
    let same = Tuple::of(packet);
    *way = to_pod_or_host(packet, same, host);
    let way = forget(way);
    if frontend.addr != 0 {
        way.seen = same.to(frontend.addr, frontend.port);
        way.option = taken_off();
        if martian {
            return Err(DropReason::MartianSource.into());
        }
        record(packet, flow, frontend, host, now)?;
    } else if let Some(frontend) = untagged(packet, martian, now)? {
        way.seen = same.to(frontend.addr, frontend.port);
    }
    count(Counter::Delivered);
    event::emit(Hook::FromNetdev, EventAction::Deliver, packet, &same);
    Ok(())
}

/// Decides about a fragment with a carrier whose first has not come yet. For the pod as well as for the stack,
/// reassembly needs no ports.
///
/// # Errors
/// [`Leave::PASS`] if it is for another node.
#[inline(always)]
pub(crate) fn receive_orphan(s: &mut Scratch) -> Step<()> {
    let same = Tuple::of(&s.packet);
    let host = s.packet.dst == settings::node_addr();
    if !host && endpoint(s.packet.dst).is_none() {
        return Err(Leave::PASS);
    }
    s.way = to_pod_or_host(&s.packet, same, host);
    s.way.option = taken_off();
    count(Counter::Delivered);
    Ok(())
}

/// What becomes of the carrier at the backend's node.
#[inline(always)]
fn taken_off() -> OptionStep {
    let keep = settings::has(SettingsFlags::KEEP_OPTION) || settings::mutated(Mutation::KeepOption);
    if keep { OptionStep::Keep } else { OptionStep::Strip }
}

/// The last stretch: into the pod, or up this host's stack for a hostNetwork backend. The stack also gets
/// what is for a pod that the agent has not seen yet; it knows the way, if there is one.
#[inline(always)]
pub(crate) fn to_pod_or_host(packet: &Packet, new: Tuple, host: bool) -> Move {
    if !host && let Some(pod) = endpoint(new.dst) {
        return Move { out: pod.ifindex, mtu: pod.mtu, hop: true, ..Move::in_place(packet, new) };
    }
    Move::in_place(packet, new)
}

/// Remembers which frontend the client used.
#[inline(always)]
fn record(packet: &Packet, flow: &mut Flow, frontend: DsrFrontend, host: bool, now: u64) -> Step<()> {
    *flow = Flow {
        last_seen: now,
        client_next: packet.seq_end(),
        backend_next: packet.ack,
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
    if keep(&reply_key_of(packet), flow, packet, now)? {
        count(Counter::FlowOpened);
    }
    Ok(())
}

/// Keeps the reply entry of a flow whose frontend is on this node, and rebuilds it if it was evicted; true
/// if it was not there.
///
/// # Errors
/// As [`keep`].
#[inline(always)]
pub(crate) fn keep_reply(flow: &Flow, packet: &Packet, now: u64) -> Step<bool> {
    let (backend, client) = (flow.backend_addr, flow.client_addr);
    let key = flow::key(FlowKind::REPLY, backend, flow.backend_port, client, flow.client_port, packet.proto);
    keep(&key, flow, packet, now)
}

/// Refreshes the entry, replaces one of another frontend if it is done, or makes a new one; true if it is
/// new.
///
/// # Errors
/// [`DropReason::TupleInUse`] if a live connection through another frontend has the same 5-tuple at the
/// backend: the newer SYN must not steal its replies (Cilium issues 18632 and 11810).
#[inline(always)]
fn keep(key: &FlowKey, flow: &Flow, packet: &Packet, now: u64) -> Step<bool> {
    if let Some(old) = flow::find(key, now) {
        let same = old.vip == flow.vip && old.vport == flow.vport;
        let reopened = packet.is_syn() && old.is_closing();
        if same && !reopened {
            flow::note_request(old, packet, now, Sees::Both);
            return Ok(false);
        }
        if !same && !old.may_be_replaced(packet.proto, now) {
            return Err(DropReason::TupleInUse.into());
        }
    }
    flow::store(key, flow)?;
    Ok(true)
}

/// A packet to the backend that carries no option: it continues a flow, or it is not ours. Gives the
/// frontend of the flow.
#[inline(always)]
fn untagged(packet: &Packet, martian: bool, now: u64) -> Step<Option<DsrFrontend>> {
    let key = reply_key_of(packet);
    let Some(flow) = flow::find(&key, now) else {
        return if martian { Err(DropReason::MartianSource.into()) } else { Ok(None) };
    };
    // Only a new exchange that goes straight to the pod is untagged in a DSR flow: a SYN, or a datagram.
    let direct = packet.is_syn() || (packet.proto == PROTO_UDP && flow.flags & FlowFlags::LOCAL == 0);
    if !direct {
        flow::note_request(flow, packet, now, Sees::Both);
        return Ok(Some(DsrFrontend { addr: flow.vip, port: flow.vport }));
    }
    if packet.proto == PROTO_TCP && !flow.may_be_replaced(packet.proto, now) {
        return Err(DropReason::TupleInUse.into());
    }
    let _ = FLOWS.remove(key);
    Ok(None)
}
