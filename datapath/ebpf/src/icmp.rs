//! ICMP errors that others send about our flows. The quote inside shows the flow as it was where the
//! error arose; whoever gets it must see the flow as *it* knows it, or it ignores the error: the client
//! its frontend, the pod its own address. Without this neither closed ports nor path MTU discovery work.

use aya_ebpf::programs::TcContext;
use datapath_types::{
    Counter, DropReason, Flow, FlowFlags, FlowKind, PROTO_ICMP, PROTO_TCP, PROTO_UDP, SocketKey, checksum,
};

use crate::{
    drop::{PASS, Step, count, redirect},
    flow::{self, now},
    forward::{self, Move},
    maps::{BACKEND_SOCKETS, FRONTENDS},
    names::{self, Place},
    packet::{ETH_LEN, IPV4_MIN, Packet, at, ipv4, read},
    rewrite::Tuple,
    scratch::Scratch,
    settings, trust,
};

/// Bytes of the ICMP header in front of the quote.
const ICMP_LEN: usize = 8;
/// Bytes of the ports at the start of a TCP or UDP header.
const PORTS_LEN: usize = 4;
/// Offset of the checksum in the ICMP header.
const ICMP_CHECK: usize = 2;

/// The quoted packet.
#[derive(Clone, Copy)]
struct Quote {
    /// Addresses and ports in the quote.
    tuple: Tuple,
    /// Protocol of the quoted packet.
    proto: u8,
    /// Offset of the quoted IPv4 header in the frame.
    offset: usize,
    /// Header length of the quoted packet in bytes.
    ihl: u8,
    /// Where the IPv4 packet ends in the frame; what lies behind is padding, not quote.
    end: usize,
}

impl Quote {
    #[inline(always)]
    fn l4_offset(&self) -> usize {
        self.offset + (self.ihl & 0x3c) as usize
    }
}

/// Whether the packet is an ICMP error; queries and replies are nobody's flow.
#[inline(always)]
pub(crate) fn is_error(ctx: &TcContext, packet: &Packet) -> bool {
    packet.proto == PROTO_ICMP
        && packet.fragment.has_transport()
        && matches!(read::<u8>(ctx, packet.l4_offset()), Some(3 | 11 | 12))
}

/// Reads the quote; `None` if it is too short to name a flow, or quotes another protocol.
#[inline(always)]
fn parse_quote(ctx: &TcContext, packet: &Packet) -> Option<Quote> {
    let offset = packet.l4_offset() + ICMP_LEN;
    // The headers in front were pulled; the quote may still lie in a fragment of the buffer.
    let end = offset as u32 + 68;
    let _ = ctx.pull_data(if ctx.len() < end { ctx.len() } else { end });
    let header: [u8; IPV4_MIN] = read(ctx, offset)?;
    let (first, proto) = (header[0], header[ipv4::PROTO]);
    let ihl = (first & 0x0f) << 2;
    let known = proto == PROTO_TCP || proto == PROTO_UDP;
    let later = (header[ipv4::FRAG] & 0x1f) | header[ipv4::FRAG + 1] != 0;
    if first >> 4 != 4 || (ihl as usize) < IPV4_MIN || !known || later {
        return None;
    }
    let last = ETH_LEN + packet.tot_len as usize;
    if offset + ihl as usize + PORTS_LEN > last {
        return None;
    }
    let [src, dst]: [u32; 2] = read(ctx, offset + ipv4::SRC)?;
    let [sport, dport]: [u16; 2] = read(ctx, offset + (ihl & 0x3c) as usize)?;
    Some(Quote { tuple: Tuple { src, dst, sport, dport }, proto, offset, ihl, end: last })
}

/// An error that arrives on the uplink.
///
/// # Errors
/// A drop.
#[inline(always)]
pub(crate) fn from_netdev(ctx: &mut TcContext, s: &mut Scratch) -> Step<i32> {
    let packet = &s.packet;
    let Some(quote) = parse_quote(ctx, packet) else { return Ok(PASS) };
    if trust::is_martian(packet.src) {
        // The stack judges it, and throws it away.
        return Ok(PASS);
    }
    let new = if let Some(flow) = reply_in_trouble(&quote) {
        count(Counter::IcmpToBackend);
        Rewritten::for_backend(packet, &flow)
    } else if let Some(flow) = request_in_trouble(&quote)
        && flow.flags & (FlowFlags::SNAT | FlowFlags::INSIDE) != 0
    {
        count(Counter::IcmpToClient);
        Rewritten::for_client(packet, &flow)
    } else if forward::endpoint(packet.dst).is_some()
        && is_backend(quote.tuple.src, quote.tuple.sport, quote.proto)
    {
        // Translated by the ingress node already: give it to the pod past the stack, whose conntrack does
        // not know the flow and may call the error invalid.
        Rewritten::same(packet, &quote)
    } else {
        return Ok(PASS);
    };
    send(ctx, s, &quote, &new, false)
}

/// An error that a pod sends, or that this host's stack sends on a pod's behalf (`egress`).
///
/// # Errors
/// A drop; an error about a backend without a flow would show its address.
#[inline(always)]
pub(crate) fn from_backend(ctx: &mut TcContext, s: &mut Scratch, egress: bool) -> Step<i32> {
    let packet = &s.packet;
    let Some(quote) = parse_quote(ctx, packet) else { return Ok(PASS) };
    let new = if let Some(flow) = request_in_trouble(&quote) {
        count(Counter::IcmpToClient);
        Rewritten::for_client(packet, &flow)
    } else if settings::is_pod_addr(quote.tuple.dst)
        && is_backend(quote.tuple.dst, quote.tuple.dport, quote.proto)
    {
        if forward::is_outside(packet.dst) {
            return Err(DropReason::IcmpNoState.into());
        }
        if egress || settings::is_pod_addr(packet.dst) || packet.dst == settings::node_addr() {
            return Ok(PASS);
        }
        // To the node that translates the flow (SNAT). As the flow itself, it goes past the stack, whose
        // conntrack does not know the flow and may call the error invalid.
        Rewritten::same(packet, &quote)
    } else {
        return Ok(PASS);
    };
    send(ctx, s, &quote, &new, egress)
}

/// The quote is a reply that we sent: frontend to client.
#[inline(always)]
fn reply_in_trouble(quote: &Quote) -> Option<Flow> {
    let t = &quote.tuple;
    FRONTENDS.get_ptr(SocketKey::new(t.src, t.sport, quote.proto))?;
    let key = flow::key(FlowKind::FORWARD, t.dst, t.dport, t.src, t.sport, quote.proto);
    flow::find(&key, now()).map(|flow| *flow)
}

/// The quote is a request that we rewrote: client (or SNAT address) to backend.
#[inline(always)]
fn request_in_trouble(quote: &Quote) -> Option<Flow> {
    let t = &quote.tuple;
    let key = flow::key(FlowKind::REPLY, t.dst, t.dport, t.src, t.sport, quote.proto);
    flow::find(&key, now()).map(|flow| *flow)
}

#[inline(always)]
fn is_backend(addr: u32, port: u16, proto: u8) -> bool {
    BACKEND_SOCKETS.get_ptr(SocketKey::new(addr, port, proto)).is_some()
}

/// New outer addresses and new quote.
struct Rewritten {
    src: u32,
    dst: u32,
    quote: Tuple,
    /// Whether a client reads it, who must not learn of a pod from the options of either header.
    hide: bool,
}

impl Rewritten {
    /// As it is: another node translates it, or has done so.
    #[inline(always)]
    fn same(packet: &Packet, quote: &Quote) -> Self {
        Self { src: packet.src, dst: packet.dst, quote: quote.tuple, hide: false }
    }

    /// As the client knows the flow. The backend's own errors come from the frontend; a router's keep the
    /// router's address, as behind any NAT.
    #[inline(always)]
    fn for_client(packet: &Packet, flow: &Flow) -> Self {
        let src = if packet.src == flow.backend_addr { flow.vip } else { packet.src };
        let quote =
            Tuple { src: flow.client_addr, dst: flow.vip, sport: flow.client_port, dport: flow.vport };
        Self { src, dst: flow.client_addr, quote, hide: true }
    }

    /// As the backend knows the flow.
    #[inline(always)]
    fn for_backend(packet: &Packet, flow: &Flow) -> Self {
        let snat = flow.flags & FlowFlags::SNAT != 0;
        let quote = Tuple {
            src: flow.backend_addr,
            dst: if snat { flow.snat_addr } else { flow.client_addr },
            sport: flow.backend_port,
            dport: if snat { flow.snat_port } else { flow.client_port },
        };
        Self { src: packet.src, dst: flow.backend_addr, quote, hide: false }
    }
}

/// Writes the error and sends it on; at egress the stack has routed it already.
#[inline(always)]
fn send(ctx: &mut TcContext, s: &mut Scratch, quote: &Quote, new: &Rewritten, egress: bool) -> Step<i32> {
    let Scratch { packet, options, .. } = s;
    let way = Move::towards(packet, Tuple::of(packet).to(new.dst, 0));
    let hop = way.hop && !egress;
    // An error about an error is forbidden (RFC 1122 section 3.2.2), so a dying one just dies.
    if hop && packet.ttl <= 1 {
        return Err(DropReason::TtlExceeded.into());
    }
    write(ctx, packet, quote, new, hop)?;
    if new.hide {
        let outer = Place { header: ETH_LEN, ihl: packet.ihl, carrier: false };
        names::blank(ctx, options, outer)?;
        // The quoted options and the quoted header's checksum change by opposite amounts, too.
        let inner = Place { header: quote.offset, ihl: quote.ihl, carrier: false };
        names::blank(ctx, options, inner)?;
    }
    Ok(if egress || way.out == 0 { PASS } else { redirect(ctx, way.out) })
}

/// Writes the outer header, the quote and the ICMP checksum.
#[inline(always)]
fn write(ctx: &TcContext, packet: &Packet, quote: &Quote, new: &Rewritten, hop: bool) -> Step<()> {
    let broken = DropReason::RewriteFailed;
    write_header(ctx, ETH_LEN, packet.src, packet.dst, new.src, new.dst, hop).ok_or(broken)?;
    // The quoted header and its own checksum change by opposite amounts, so only the quoted transport
    // header moves the ICMP checksum.
    let t = &quote.tuple;
    write_header(ctx, quote.offset, t.src, t.dst, new.quote.src, new.quote.dst, false).ok_or(broken)?;
    let delta = write_quoted_transport(ctx, quote, &new.quote).ok_or(broken)?;
    let field: *mut u16 = at(ctx, packet.l4_offset() + ICMP_CHECK).ok_or(broken)?;
    // SAFETY: `at` checked two bytes.
    unsafe { field.write_unaligned(checksum::update(field.read_unaligned(), delta)) };
    Ok(())
}

/// Addresses, TTL and checksum of an IPv4 header at `offset`.
#[inline(always)]
fn write_header(
    ctx: &TcContext,
    offset: usize,
    src: u32,
    dst: u32,
    new_src: u32,
    new_dst: u32,
    hop: bool,
) -> Option<()> {
    let base = at::<[u8; IPV4_MIN]>(ctx, offset)?.cast::<u8>();
    let mut delta = checksum::sub32(checksum::sub32(0, src), dst);
    delta = checksum::add32(checksum::add32(delta, new_src), new_dst);
    // SAFETY: all offsets lie inside the 20 bytes that `at` checked.
    unsafe {
        if hop {
            let old = base.add(ipv4::TTL).cast::<u16>().read_unaligned();
            base.add(ipv4::TTL).write(base.add(ipv4::TTL).read().wrapping_sub(1));
            delta += !old as u64 + base.add(ipv4::TTL).cast::<u16>().read_unaligned() as u64;
        }
        base.add(ipv4::SRC).cast::<u32>().write_unaligned(new_src);
        base.add(ipv4::DST).cast::<u32>().write_unaligned(new_dst);
        let field = base.add(ipv4::CHECK).cast::<u16>();
        field.write_unaligned(checksum::update(field.read_unaligned(), delta));
    }
    Some(())
}

/// Ports of the quote, and its transport checksum where the quote is long enough to have one. Gives the
/// sum of differences for the ICMP checksum.
#[inline(always)]
fn write_quoted_transport(ctx: &TcContext, quote: &Quote, new: &Tuple) -> Option<u64> {
    let t = &quote.tuple;
    let ports = at::<[u16; 2]>(ctx, quote.l4_offset())?;
    // SAFETY: `at` checked four bytes.
    unsafe { ports.write_unaligned([new.sport, new.dport]) };
    let port_delta = !t.sport as u64 + !t.dport as u64 + new.sport as u64 + new.dport as u64;
    let out = checksum::sub32(checksum::sub32(port_delta, t.src), t.dst);
    let full_delta = checksum::add32(checksum::add32(out, new.src), new.dst);
    let check = if quote.proto == PROTO_TCP { 16 } else { 6 };
    let offset = quote.l4_offset() + check;
    if offset + size_of::<u16>() > quote.end {
        return Some(port_delta);
    }
    let Some(field) = at::<u16>(ctx, offset) else { return Some(port_delta) };
    // SAFETY: `at` checked two bytes.
    let old = unsafe { field.read_unaligned() };
    if quote.proto == PROTO_UDP && old == 0 {
        return Some(port_delta);
    }
    let now = checksum::update(old, full_delta);
    // SAFETY: as above.
    unsafe { field.write_unaligned(now) };
    Some(port_delta + !old as u64 + now as u64)
}
