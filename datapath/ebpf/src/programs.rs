//! The four hooks. Each asks its questions in order and hands the packet to the first step that knows it.

use aya_ebpf::{macros::classifier, programs::TcContext};
use datapath_types::{
    BackendFlags, DropReason, FlowFlags, Frontend, Hook, MARK_DONE, Mutation, PROTO_TCP, PROTO_UDP, SocketKey,
};

use crate::{
    backend,
    drop::{Leave, PASS, Step, count_lost, finish},
    forward::{self, Move},
    fragment::{self, Fragment},
    icmp,
    maps::{BACKEND_SOCKETS, BACKENDS, FRONTENDS},
    packet::{Packet, parse, parse_arrived},
    reply,
    rewrite::Tuple,
    scratch::{Scratch, forget, scratch},
    service,
    service::Origin,
    settings, trust,
};

/// Ingress of the uplink.
#[classifier]
pub(crate) fn from_netdev(mut ctx: TcContext) -> i32 {
    finish(from_netdev_steps(&mut ctx))
}

/// Egress of the uplink.
#[classifier]
pub(crate) fn to_netdev(mut ctx: TcContext) -> i32 {
    finish(to_netdev_steps(&mut ctx))
}

/// Ingress of the host side of a pod's veth.
#[classifier]
pub(crate) fn from_pod(mut ctx: TcContext) -> i32 {
    finish(from_pod_steps(&mut ctx))
}

/// Egress of the host side of a pod's veth.
#[classifier]
pub(crate) fn to_pod(mut ctx: TcContext) -> i32 {
    finish(to_pod_steps(&mut ctx))
}

#[inline(always)]
fn from_netdev_steps(ctx: &mut TcContext) -> Step<i32> {
    let s = scratch()?;
    parse_arrived(ctx, s)?;
    if icmp::is_error(ctx, &s.packet) {
        return icmp::from_netdev(ctx, s);
    }
    if is_served(&s.packet) {
        s.carried = trust::carried(ctx, &s.packet)?;
    }
    s.martian = trust::is_martian(s.packet.src) as u32;
    let s = forget(s);
    if !is_served(&s.packet) {
        return Ok(PASS);
    }
    decide_from_netdev(s)?;
    let s = forget(s);
    let action = carry_out(ctx, s)?;
    // Of a datagram that does not go up this node's stack, the stack has these in vain.
    if s.packet.early != 0 && action != PASS {
        count_lost(DropReason::FragmentUnknown as u32, s.packet.early as u64);
    }
    Ok(action)
}

#[inline(always)]
fn decide_from_netdev(s: &mut Scratch) -> Step<()> {
    if s.packet.fragment == Fragment::Orphan {
        if s.carried.addr != 0 {
            return backend::receive_orphan(s);
        }
        fragment::note_early(&s.packet);
        return Err(Leave::PASS);
    }
    if let Some(frontend) = frontend(&s.packet)
        && !frontend.is_inside_only()
    {
        return service::decide(s, frontend, Origin::Outside, Hook::FromNetdev);
    }
    // Only flows whose replies come back here: SNAT, and what pods or this host asked.
    if let Some(flow) = reply::find(&s.packet)
        && flow.flags & (FlowFlags::SNAT | FlowFlags::INSIDE) != 0
    {
        s.way = reply::decide(&s.packet, flow, Hook::FromNetdev);
        return Ok(());
    }
    if let Some(flags) = local_backend(s.packet.dst, s.packet.dport, s.packet.proto) {
        return backend::receive(s, flags & BackendFlags::HOST != 0);
    }
    if is_lost_snat_reply(&s.packet) {
        return Err(DropReason::NoSnatState.into());
    }
    Err(Leave::PASS)
}

#[inline(always)]
fn from_pod_steps(ctx: &mut TcContext) -> Step<i32> {
    let s = scratch()?;
    parse_arrived(ctx, s)?;
    if icmp::is_error(ctx, &s.packet) {
        return icmp::from_backend(ctx, s, false);
    }
    if is_served(&s.packet) && trust::forges(ctx, &s.packet, 0) {
        return Err(DropReason::ForeignCarrier.into());
    }
    if s.packet.fragment == Fragment::Orphan {
        return orphan(&s.packet);
    }
    if !has_ports(&s.packet) {
        return Ok(PASS);
    }
    decide_from_pod(s)?;
    let action = carry_out(ctx, forget(s))?;
    #[cfg(feature = "mutations")]
    if let Some(action) = reply::mutate(ctx, &s.packet, s.way.new.src) {
        return Ok(action);
    }
    Ok(action)
}

#[inline(always)]
fn decide_from_pod(s: &mut Scratch) -> Step<()> {
    if let Some(flow) = reply::find(&s.packet) {
        s.way = reply::decide(&s.packet, flow, Hook::FromPod);
        return Ok(());
    }
    if let Some(frontend) = frontend(&s.packet) {
        return service::decide(s, frontend, Origin::Inside, Hook::FromPod);
    }
    if local_backend(s.packet.src, s.packet.sport, s.packet.proto).is_some() {
        s.way = backend_without_flow(&s.packet)?;
        return Ok(());
    }
    Err(Leave::PASS)
}

#[inline(always)]
fn to_netdev_steps(ctx: &mut TcContext) -> Step<i32> {
    if is_done(ctx) {
        spoil_source_mac(ctx);
        return Ok(PASS);
    }
    let s = scratch()?;
    parse(ctx, &mut s.packet)?;
    if icmp::is_error(ctx, &s.packet) {
        return icmp::from_backend(ctx, s, true);
    }
    if is_served(&s.packet) && trust::forges(ctx, &s.packet, settings::uplink()) {
        return Err(DropReason::ForeignCarrier.into());
    }
    if s.packet.fragment == Fragment::Orphan {
        return orphan(&s.packet);
    }
    if !has_ports(&s.packet) {
        return Ok(PASS);
    }
    decide_to_netdev(s)?;
    carry_out(ctx, forget(s))
}

#[inline(always)]
fn decide_to_netdev(s: &mut Scratch) -> Step<()> {
    if let Some(flow) = reply::find(&s.packet)
        && flow.flags & FlowFlags::SNAT == 0
    {
        s.way = reply::decide_in_place(&s.packet, flow);
        return Ok(());
    }
    if s.packet.src == settings::node_addr()
        && let Some(frontend) = frontend(&s.packet)
        && frontend.is_inside_only()
    {
        return service::decide(s, frontend, Origin::Inside, Hook::ToNetdev);
    }
    if let Some(flags) = local_backend(s.packet.src, s.packet.sport, s.packet.proto)
        && flags & BackendFlags::HOST == 0
        && forward::is_outside(s.packet.dst)
    {
        return Err(DropReason::NoReplyState.into());
    }
    Err(Leave::PASS)
}

#[inline(always)]
fn to_pod_steps(ctx: &mut TcContext) -> Step<i32> {
    if is_done(ctx) {
        return Ok(PASS);
    }
    let s = scratch()?;
    parse(ctx, &mut s.packet)?;
    if !has_ports(&s.packet) || s.packet.src != settings::node_addr() {
        return Ok(PASS);
    }
    // A pod asked a frontend whose backend is this host.
    match reply::find(&s.packet) {
        Some(flow) if flow.flags & FlowFlags::INSIDE != 0 => {
            s.way = reply::decide_in_place(&s.packet, flow);
            carry_out(ctx, forget(s))
        }
        _ => Ok(PASS),
    }
}

#[inline(always)]
fn carry_out(ctx: &mut TcContext, s: &mut Scratch) -> Step<i32> {
    let Scratch { packet, way, options, .. } = s;
    way.carry_out(ctx, packet, options)
}

/// Whether one of our ingress programs sent this packet here.
#[inline(always)]
fn is_done(ctx: &TcContext) -> bool {
    // SAFETY: the kernel hands a valid context; a plain field.
    unsafe { (*ctx.skb.skb).mark == MARK_DONE }
}

/// Whether services have the packet's protocol.
#[inline(always)]
fn is_served(packet: &Packet) -> bool {
    packet.proto == PROTO_TCP || packet.proto == PROTO_UDP
}

/// Whether the packet has ports that name a flow.
#[inline(always)]
fn has_ports(packet: &Packet) -> bool {
    is_served(packet) && packet.fragment != Fragment::Orphan
}

/// The frontend that the packet is sent to.
#[inline(always)]
fn frontend(packet: &Packet) -> Option<&'static Frontend> {
    let key = SocketKey::new(packet.dst, packet.dport, packet.proto);
    // SAFETY: the agent replaces values whole, and RCU keeps the old one until the program has ended.
    FRONTENDS.get_ptr(key).map(|f| unsafe { &*f })
}

/// [`BackendFlags`] of the backend at this socket, if it is on this node.
#[inline(always)]
fn local_backend(addr: u32, port: u16, proto: u8) -> Option<u16> {
    let id = BACKEND_SOCKETS.get_ptr(SocketKey::new(addr, port, proto))?;
    // SAFETY: the agent replaces values whole; plain integers.
    let backend = unsafe { *BACKENDS.get_ptr(*id)? };
    if backend.is_local() { Some(backend.flags) } else { None }
}

/// A backend's packet to one of our SNAT ports that no flow owns. The stack would answer it with a reset.
#[inline(always)]
fn is_lost_snat_reply(packet: &Packet) -> bool {
    let (min, max) = settings::snat_ports();
    let port = u16::from_be(packet.dport);
    packet.dst == settings::node_addr()
        && port >= min
        && port <= max
        && BACKEND_SOCKETS.get_ptr(SocketKey::new(packet.src, packet.sport, packet.proto)).is_some()
}

/// A pod speaks from its service port and no flow explains it. To a node it is the reply of a flow that
/// the node itself translates (SNAT), sent past netfilter. To the outside it would show the pod's address.
#[inline(always)]
fn backend_without_flow(packet: &Packet) -> Step<Move> {
    if forward::is_outside(packet.dst) {
        return Err(DropReason::NoReplyState.into());
    }
    if settings::is_pod_addr(packet.dst) || packet.dst == settings::node_addr() {
        return Err(Leave::PASS);
    }
    Ok(Move::uplink(packet, Tuple::of(packet)))
}

/// A later fragment whose first was never seen. From a local pod to the outside it may be a reply, unless
/// its protocol has no services.
#[inline(always)]
fn orphan(packet: &Packet) -> Step<i32> {
    if is_served(packet) && forward::endpoint(packet.src).is_some() && forward::is_outside(packet.dst) {
        return Err(DropReason::FragmentUnknown.into());
    }
    Ok(PASS)
}

/// [`Mutation::WrongSourceMac`].
#[inline(always)]
fn spoil_source_mac(ctx: &TcContext) {
    // Not of requests, which would then be nobody's.
    let request = crate::packet::read::<u8>(ctx, 14).is_some_and(|first| first > 0x45);
    if settings::mutated(Mutation::WrongSourceMac)
        && !request
        && let Some(mac) = crate::packet::at::<[u8; 6]>(ctx, 6)
    {
        // SAFETY: `at` checked six bytes.
        unsafe { mac.write([0x02, 0xde, 0xad, 0xbe, 0xef, 0x00]) };
    }
}
