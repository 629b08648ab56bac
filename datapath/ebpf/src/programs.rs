//! The four hooks. Each asks its questions in order and hands the packet to the first step that knows it.

use aya_ebpf::{macros::classifier, programs::TcContext};
use datapath_types::{
    BackendFlags, DropReason, Flow, FlowFlags, Frontend, Hook, MARK_DONE, Mutation, PROTO_TCP, PROTO_UDP,
    SocketKey,
};

use crate::{
    backend,
    drop::{PASS, Step, drop, redirect},
    forward, icmp,
    maps::{BACKEND_SOCKETS, BACKENDS, FRONTENDS},
    packet::{Fragment, Packet, parse},
    reply, service,
    service::Origin,
    settings,
};

/// Ingress of the uplink.
#[classifier]
pub(crate) fn from_netdev(mut ctx: TcContext) -> i32 {
    from_netdev_steps(&mut ctx).unwrap_or_else(|action| action)
}

/// Egress of the uplink.
#[classifier]
pub(crate) fn to_netdev(mut ctx: TcContext) -> i32 {
    to_netdev_steps(&mut ctx).unwrap_or_else(|action| action)
}

/// Ingress of the host side of a pod's veth.
#[classifier]
pub(crate) fn from_pod(mut ctx: TcContext) -> i32 {
    from_pod_steps(&mut ctx).unwrap_or_else(|action| action)
}

/// Egress of the host side of a pod's veth.
#[classifier]
pub(crate) fn to_pod(mut ctx: TcContext) -> i32 {
    to_pod_steps(&mut ctx).unwrap_or_else(|action| action)
}

#[inline(always)]
fn from_netdev_steps(ctx: &mut TcContext) -> Step<i32> {
    let mut packet = parse(ctx)?;
    if icmp::is_error(ctx, &packet) {
        return icmp::from_netdev(ctx, &packet);
    }
    if !has_ports(&packet) {
        return Ok(PASS);
    }
    if let Some(frontend) = frontend(&packet)
        && !frontend.is_inside_only()
    {
        return service::handle(ctx, &mut packet, &frontend, Origin::Outside, Hook::FromNetdev);
    }
    // Only flows whose replies come back here: SNAT, and what pods or this host asked.
    if let Some(flow) = reply::find(&packet)
        && flow.flags & (FlowFlags::SNAT | FlowFlags::INSIDE) != 0
    {
        let flow: Flow = *flow;
        return reply::send(ctx, &packet, &flow, Hook::FromNetdev);
    }
    if let Some(flags) = local_backend(packet.dst, packet.dport, packet.proto) {
        return backend::receive(ctx, &mut packet, flags & BackendFlags::HOST != 0);
    }
    if is_lost_snat_reply(&packet) {
        return Err(drop(DropReason::NoSnatState));
    }
    Ok(PASS)
}

#[inline(always)]
fn from_pod_steps(ctx: &mut TcContext) -> Step<i32> {
    let mut packet = parse(ctx)?;
    if icmp::is_error(ctx, &packet) {
        return icmp::from_backend(ctx, &packet, false);
    }
    if packet.fragment == Fragment::Orphan {
        return orphan(&packet);
    }
    if !has_ports(&packet) {
        return Ok(PASS);
    }
    if let Some(flow) = reply::find(&packet) {
        let flow: Flow = *flow;
        return reply::send(ctx, &packet, &flow, Hook::FromPod);
    }
    if let Some(frontend) = frontend(&packet) {
        return service::handle(ctx, &mut packet, &frontend, Origin::Inside, Hook::FromPod);
    }
    if local_backend(packet.src, packet.sport, packet.proto).is_some() {
        return backend_without_flow(ctx, &packet);
    }
    Ok(PASS)
}

#[inline(always)]
fn to_netdev_steps(ctx: &mut TcContext) -> Step<i32> {
    // SAFETY: the kernel hands a valid context; a plain field.
    if unsafe { (*ctx.skb.skb).mark } == MARK_DONE {
        spoil_source_mac(ctx);
        return Ok(PASS);
    }
    let mut packet = parse(ctx)?;
    if icmp::is_error(ctx, &packet) {
        return icmp::from_backend(ctx, &packet, true);
    }
    if packet.fragment == Fragment::Orphan {
        return orphan(&packet);
    }
    if !has_ports(&packet) {
        return Ok(PASS);
    }
    if let Some(flow) = reply::find(&packet)
        && flow.flags & FlowFlags::SNAT == 0
    {
        let flow: Flow = *flow;
        return reply::rewrite_in_place(ctx, &packet, &flow);
    }
    if packet.src == settings::node_addr()
        && let Some(frontend) = frontend(&packet)
        && frontend.is_inside_only()
    {
        return service::handle(ctx, &mut packet, &frontend, Origin::Inside, Hook::ToNetdev);
    }
    if let Some(flags) = local_backend(packet.src, packet.sport, packet.proto)
        && flags & BackendFlags::HOST == 0
        && forward::is_outside(packet.dst)
    {
        return Err(drop(DropReason::NoReplyState));
    }
    Ok(PASS)
}

#[inline(always)]
fn to_pod_steps(ctx: &mut TcContext) -> Step<i32> {
    // SAFETY: the kernel hands a valid context; a plain field.
    if unsafe { (*ctx.skb.skb).mark } == MARK_DONE {
        return Ok(PASS);
    }
    let packet = parse(ctx)?;
    if !has_ports(&packet) || packet.src != settings::node_addr() {
        return Ok(PASS);
    }
    // A pod asked a frontend whose backend is this host.
    match reply::find(&packet) {
        Some(flow) if flow.flags & FlowFlags::INSIDE != 0 => {
            let flow: Flow = *flow;
            reply::rewrite_in_place(ctx, &packet, &flow)
        }
        _ => Ok(PASS),
    }
}

/// Whether the packet has ports that name a flow.
#[inline(always)]
fn has_ports(packet: &Packet) -> bool {
    (packet.proto == PROTO_TCP || packet.proto == PROTO_UDP) && packet.fragment != Fragment::Orphan
}

/// The frontend that the packet is sent to.
#[inline(always)]
fn frontend(packet: &Packet) -> Option<Frontend> {
    let key = SocketKey::new(packet.dst, packet.dport, packet.proto);
    // SAFETY: the agent replaces values whole; plain integers.
    FRONTENDS.get_ptr(key).map(|f| unsafe { *f })
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
fn backend_without_flow(ctx: &mut TcContext, packet: &Packet) -> Step<i32> {
    if forward::is_outside(packet.dst) {
        return Err(drop(DropReason::NoReplyState));
    }
    if settings::is_pod_addr(packet.dst) || packet.dst == settings::node_addr() {
        return Ok(PASS);
    }
    forward::check_ttl(ctx, packet, settings::node_addr())?;
    let same = crate::rewrite::Tuple::of(packet);
    crate::rewrite::rewrite(ctx, packet, &same, true)?;
    Ok(redirect(ctx, settings::uplink()))
}

/// A later fragment whose first was never seen. From a local pod to the outside it may be a reply.
#[inline(always)]
fn orphan(packet: &Packet) -> Step<i32> {
    if forward::endpoint(packet.src).is_some() && forward::is_outside(packet.dst) {
        return Err(drop(DropReason::FragmentUnknown));
    }
    Ok(PASS)
}

/// [`Mutation::WrongSourceMac`].
#[inline(always)]
fn spoil_source_mac(ctx: &TcContext) {
    if settings::mutated(Mutation::WrongSourceMac)
        && let Some(mac) = crate::packet::at::<[u8; 6]>(ctx, 6)
    {
        // SAFETY: `at` checked six bytes.
        unsafe { mac.write([0x02, 0xde, 0xad, 0xbe, 0xef, 0x00]) };
    }
}
