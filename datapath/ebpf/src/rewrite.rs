//! Writing headers: addresses, ports, TTL and the checksums that cover them.
//!
//! The IPv4 checksum is updated in place. The transport checksum goes through `bpf_l4_csum_replace`,
//! because on a veth it may be CHECKSUM_PARTIAL, which a tc program cannot see: then only the pseudo
//! header part may change, and only the helper knows. The helper invalidates packet pointers, so it runs
//! first and the plain writes follow in one block.

use aya_ebpf::{
    bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR},
    helpers::generated::bpf_l4_csum_replace,
    programs::TcContext,
};
use datapath_types::{DropReason, Mutation, PROTO_TCP, checksum};

use crate::{
    drop::Step,
    packet::{ETH_LEN, IPV4_MIN, Packet, at, ipv4},
    settings,
};

/// Offset of the checksum in a TCP header.
const TCP_CHECK: usize = 16;
/// Offset of the checksum in a UDP header.
const UDP_CHECK: usize = 6;

/// The addresses and ports that a packet shall have.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tuple {
    pub(crate) src: u32,
    pub(crate) dst: u32,
    pub(crate) sport: u16,
    pub(crate) dport: u16,
}

impl Tuple {
    /// What the packet has now.
    #[inline(always)]
    pub(crate) fn of(packet: &Packet) -> Self {
        Self { src: packet.src, dst: packet.dst, sport: packet.sport, dport: packet.dport }
    }

    /// With another destination.
    #[inline(always)]
    pub(crate) fn to(self, dst: u32, dport: u16) -> Self {
        Self { dst, dport, ..self }
    }

    /// With another source.
    #[inline(always)]
    pub(crate) fn from(self, src: u32, sport: u16) -> Self {
        Self { src, sport, ..self }
    }
}

/// Sum of differences of the addresses.
#[inline(always)]
fn addr_delta(packet: &Packet, new: &Tuple) -> u64 {
    let out = checksum::sub32(checksum::sub32(0, packet.src), packet.dst);
    checksum::add32(checksum::add32(out, new.src), new.dst)
}

/// Sum of differences of the ports, both in one word as they lie in the packet.
#[inline(always)]
fn port_delta(packet: &Packet, new: &Tuple) -> u64 {
    let word = |a: u16, b: u16| a as u64 + b as u64;
    word(!packet.sport, !packet.dport) + word(new.sport, new.dport)
}

/// Updates the transport checksum for new addresses and ports.
#[inline(always)]
fn update_transport_checksum(ctx: &TcContext, packet: &Packet, new: &Tuple) -> Step<()> {
    let (field, flags) = if packet.proto == PROTO_TCP {
        (TCP_CHECK, 0)
    } else {
        // UDP: zero means "no checksum" and stays; a computed zero is sent as ffff (RFC 768).
        (UDP_CHECK, BPF_F_MARK_MANGLED_0 as u64)
    };
    let offset = (packet.l4_offset() + field) as u32;
    let skb = ctx.skb.skb;
    let addrs = checksum::fold32(addr_delta(packet, new)) as u64;
    // SAFETY: `skb` is the context; the helper checks the offset against the packet.
    let failed = unsafe { bpf_l4_csum_replace(skb, offset, 0, addrs, flags | BPF_F_PSEUDO_HDR as u64) } != 0;
    let ports = checksum::fold32(port_delta(packet, new)) as u64;
    // SAFETY: as above.
    let failed = failed || unsafe { bpf_l4_csum_replace(skb, offset, 0, ports, flags) } != 0;
    if failed { Err(DropReason::RewriteFailed.into()) } else { Ok(()) }
}

/// Gives the packet new addresses and ports, and one hop less to live if `hop`.
///
/// # Errors
/// A drop if a helper refuses or the headers are not where parsing found them.
#[inline(always)]
pub(crate) fn rewrite(ctx: &mut TcContext, packet: &Packet, new: &Tuple, hop: bool) -> Step<()> {
    if packet.fragment.has_transport() {
        update_transport_checksum(ctx, packet, new)?;
        write_ports(ctx, packet, new)?;
    }
    write_ipv4(ctx, packet, new, hop && !settings::mutated(Mutation::KeepTtl))
}

#[inline(always)]
fn write_ports(ctx: &TcContext, packet: &Packet, new: &Tuple) -> Step<()> {
    let ports: *mut [u16; 2] = at(ctx, packet.l4_offset()).ok_or(DropReason::RewriteFailed)?;
    // SAFETY: `at` checked four bytes.
    unsafe { ports.write_unaligned([new.sport, new.dport]) };
    Ok(())
}

#[inline(always)]
fn write_ipv4(ctx: &TcContext, packet: &Packet, new: &Tuple, hop: bool) -> Step<()> {
    let header: *mut [u8; IPV4_MIN] = at(ctx, ETH_LEN).ok_or(DropReason::RewriteFailed)?;
    let base = header.cast::<u8>();
    let mut delta = addr_delta(packet, new);
    // SAFETY: all offsets lie inside the 20 bytes that `at` checked.
    unsafe {
        if hop {
            // TTL and protocol share a 16-bit word of the checksum.
            let old = base.add(ipv4::TTL).cast::<u16>().read_unaligned();
            base.add(ipv4::TTL).write(packet.ttl - 1);
            let now = base.add(ipv4::TTL).cast::<u16>().read_unaligned();
            delta += !old as u64 + now as u64;
        }
        base.add(ipv4::SRC).cast::<u32>().write_unaligned(new.src);
        base.add(ipv4::DST).cast::<u32>().write_unaligned(new.dst);
        let field = base.add(ipv4::CHECK).cast::<u16>();
        let sum = checksum::update(field.read_unaligned(), delta);
        field.write_unaligned(if settings::mutated(Mutation::BadIpChecksum) { !sum } else { sum });
    }
    Ok(())
}
