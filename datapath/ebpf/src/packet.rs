//! From frame to [`Packet`]: the addresses, ports and flags that every later step needs.
//!
//! Offsets are derived from IHL, never from a fixed header length: tagged packets have IHL 7. Verdicts
//! for what is not a plain datagram: a frame for another station, a VLAN or another EtherType passes untouched;
//! a priority tag (VLAN 0) is taken off; an inconsistent IPv4 header is dropped (the stack would drop it too,
//! but nobody would count it); a later fragment borrows the ports of its first fragment; the hooks decide
//! about one whose first was never seen.

use aya_ebpf::{helpers::generated::bpf_skb_vlan_pop, programs::TcContext};
use datapath_types::{DropReason, PROTO_TCP, PROTO_UDP, checksum};

use crate::{
    drop::{Leave, Step},
    fragment::{self, Fragment},
    names,
    scratch::{Scratch, forget},
};

/// Bytes of an Ethernet header.
pub(crate) const ETH_LEN: usize = 14;
/// Bytes of an IPv4 header without options.
pub(crate) const IPV4_MIN: usize = 20;
/// EtherType IPv4, packet order.
const ETHERTYPE_IPV4: u32 = 0x0800u16.to_be() as u32;
/// EtherType of an 802.1Q tag, packet order.
const ETHERTYPE_VLAN: u32 = 0x8100u16.to_be() as u32;
/// The VLAN's number in a tag.
const VLAN_ID: u32 = 0x0fff;
/// `skb->pkt_type` of a frame to this interface's own address (include/uapi/linux/if_packet.h).
const PACKET_HOST: u32 = 0;
/// All headers that any step reads: Ethernet, the longest IPv4 header, a TCP header.
const HEADERS: u32 = (ETH_LEN + 60 + 20) as u32;

/// TCP flag FIN.
pub(crate) const FIN: u8 = 0x01;
/// TCP flag SYN.
pub(crate) const SYN: u8 = 0x02;
/// TCP flag RST.
pub(crate) const RST: u8 = 0x04;
/// TCP flag ACK.
pub(crate) const ACK: u8 = 0x10;

/// Field offsets inside the IPv4 header (RFC 791 section 3.1).
pub(crate) mod ipv4 {
    pub(crate) const TOT_LEN: usize = 2;
    pub(crate) const ID: usize = 4;
    pub(crate) const FRAG: usize = 6;
    pub(crate) const TTL: usize = 8;
    pub(crate) const PROTO: usize = 9;
    pub(crate) const CHECK: usize = 10;
    pub(crate) const SRC: usize = 12;
    pub(crate) const DST: usize = 16;
}

/// One IPv4 packet, as it stood when it was parsed.
#[derive(Clone, Copy)]
pub(crate) struct Packet {
    /// Source address, packet order.
    pub(crate) src: u32,
    /// Destination address, packet order.
    pub(crate) dst: u32,
    /// Source port, packet order; 0 for ICMP.
    pub(crate) sport: u16,
    /// Destination port, packet order; 0 for ICMP.
    pub(crate) dport: u16,
    /// IP identification, packet order.
    pub(crate) id: u16,
    /// Total length, host order.
    pub(crate) tot_len: u16,
    /// Protocol number.
    pub(crate) proto: u8,
    /// Header length in bytes, 20 to 60.
    pub(crate) ihl: u8,
    /// Time to live.
    pub(crate) ttl: u8,
    /// TCP flags byte; 0 for others.
    pub(crate) tcp_flags: u8,
    /// TCP sequence number, host order; 0 for others.
    pub(crate) seq: u32,
    /// TCP acknowledgement number, host order; 0 for others.
    pub(crate) ack: u32,
    /// Sequence numbers that it takes: payload, SYN and FIN; 0 for others.
    pub(crate) seq_len: u32,
    /// Fragment position.
    pub(crate) fragment: Fragment,
    /// Of a first fragment: how many of its datagram's came before it.
    pub(crate) early: u8,
}

impl Packet {
    /// Offset of the transport header in the frame. The mask repeats what parsing made sure of, in a
    /// form that survives the spill to the stack: "R2 unbounded memory access, make sure to bounds check"
    /// is what the verifier says without it (6.1 to 6.18).
    #[inline(always)]
    pub(crate) fn l4_offset(&self) -> usize {
        ETH_LEN + (self.ihl & 0x3c) as usize
    }

    /// The sequence number behind it.
    #[inline(always)]
    pub(crate) fn seq_end(&self) -> u32 {
        self.seq.wrapping_add(self.seq_len)
    }

    /// Whether this opens a TCP connection.
    #[inline(always)]
    pub(crate) fn is_syn(&self) -> bool {
        self.proto == PROTO_TCP && self.tcp_flags & (SYN | ACK) == SYN
    }
}

/// A pointer to `T` at `offset` of the frame, if it lies in the linear data.
#[inline(always)]
pub(crate) fn at<T>(ctx: &TcContext, offset: usize) -> Option<*mut T> {
    let start = ctx.data() + offset;
    if start + size_of::<T>() > ctx.data_end() { None } else { Some(start as *mut T) }
}

/// Reads a `T` at `offset`.
#[inline(always)]
pub(crate) fn read<T: Copy>(ctx: &TcContext, offset: usize) -> Option<T> {
    // SAFETY: `at` checked the bounds; the target reads at any alignment, and all `T` used are integers.
    at::<T>(ctx, offset).map(|p| unsafe { p.read_unaligned() })
}

/// Makes sure that all headers are in the linear part.
#[inline(always)]
fn pull_headers(ctx: &TcContext) {
    let want = if ctx.len() < HEADERS { ctx.len() } else { HEADERS };
    if ctx.data() + want as usize > ctx.data_end() {
        // A failure leaves the packet as it was; parsing then finds it truncated.
        let _ = ctx.pull_data(want);
    }
}

/// Whether the frame is untagged IPv4.
#[inline(always)]
fn is_plain_ipv4(ctx: &TcContext) -> bool {
    // SAFETY: the kernel hands a valid context; both are plain fields.
    let (protocol, vlan) = unsafe { ((*ctx.skb.skb).protocol, (*ctx.skb.skb).vlan_present) };
    protocol == ETHERTYPE_IPV4 && vlan == 0
}

/// Whether the frame is addressed to this interface. A switch that does not know the way floods, and the stack
/// (`ip_rcv`, `tcp_v4_rcv`) throws away what is for another station; served here, it would be served twice.
#[inline(always)]
fn is_for_us(ctx: &TcContext) -> bool {
    // SAFETY: the kernel hands a valid context; a plain field.
    unsafe { (*ctx.skb.skb).pkt_type == PACKET_HOST }
}

/// Takes a priority tag off (IEEE 802.1Q: VLAN 0 is no VLAN, its tag only has a priority), as the stack does
/// (`vlan_do_receive`). The kernel has moved an outer tag from the frame into the socket buffer before a program
/// at ingress sees it; BPF_PROG_TEST_RUN leaves it in the frame.
#[inline(always)]
fn untag(ctx: &TcContext) {
    let skb = ctx.skb.skb;
    // SAFETY: the kernel hands a valid context; plain fields.
    let (protocol, present, tci) = unsafe { ((*skb).protocol, (*skb).vlan_present, (*skb).vlan_tci) };
    let vlan = if present != 0 {
        tci & VLAN_ID
    } else if protocol == ETHERTYPE_VLAN {
        read::<u16>(ctx, ETH_LEN).map_or(VLAN_ID, |tci| u16::from_be(tci) as u32 & VLAN_ID)
    } else {
        return;
    };
    if vlan == 0 {
        // A failure leaves the tag, and the frame passes like any tagged one.
        // SAFETY: `skb` is the context.
        let _ = unsafe { bpf_skb_vlan_pop(skb) };
    }
}

/// Parses a frame that arrives: as [`parse`], and only what is for this interface.
///
/// # Errors
/// As [`parse`], and [`DropReason::HeaderChecksum`].
#[inline(always)]
pub(crate) fn parse_arrived(ctx: &TcContext, s: &mut Scratch) -> Step<()> {
    if !is_for_us(ctx) {
        return Err(Leave::PASS);
    }
    if !is_plain_ipv4(ctx) {
        untag(ctx);
    }
    parse_header(ctx, &mut s.packet)?;
    if !header_is_right(ctx, s) {
        return Err(DropReason::HeaderChecksum.into());
    }
    parse_transport(ctx, forget(&mut s.packet))
}

/// Whether the header's checksum is right (RFC 1071). What the stack does with every packet it gets, the datapath
/// owes those that never get there.
#[inline(always)]
fn header_is_right(ctx: &TcContext, s: &mut Scratch) -> bool {
    let Some(words) = read::<[u32; 5]>(ctx, ETH_LEN) else { return false };
    let mut sum = 0;
    for word in words {
        sum = checksum::add32(sum, word);
    }
    if s.packet.ihl as usize > IPV4_MIN {
        if names::load(ctx, &mut s.options, ETH_LEN, s.packet.ihl).is_none() {
            return false;
        }
        sum += names::sum(&s.options);
    }
    checksum::fold(sum) == 0xffff
}

/// Parses the IPv4 header and the ports.
///
/// # Errors
/// [`Leave::PASS`] for what is not ours to judge, a drop for what is broken.
#[inline(always)]
pub(crate) fn parse(ctx: &TcContext, packet: &mut Packet) -> Step<()> {
    parse_header(ctx, packet)?;
    parse_transport(ctx, forget(packet))
}

#[inline(always)]
fn parse_header(ctx: &TcContext, packet: &mut Packet) -> Step<()> {
    if !is_plain_ipv4(ctx) {
        return Err(Leave::PASS);
    }
    pull_headers(ctx);
    *packet = parse_ipv4(ctx).ok_or(DropReason::InvalidHeader)?;
    Ok(())
}

#[inline(always)]
fn parse_transport(ctx: &TcContext, packet: &mut Packet) -> Step<()> {
    match packet.fragment {
        Fragment::Later => fragment::borrow_ports(packet),
        _ => parse_ports(ctx, packet)?,
    }
    forget(packet);
    Ok(())
}

/// Reads the IPv4 header; `None` if it contradicts itself or the frame.
#[inline(always)]
fn parse_ipv4(ctx: &TcContext) -> Option<Packet> {
    let header: *mut [u8; IPV4_MIN] = at(ctx, ETH_LEN)?;
    // SAFETY: 20 bytes at `header` are in bounds; each read below lies inside them.
    let field16 = |o: usize| unsafe { header.cast::<u8>().add(o).cast::<u16>().read_unaligned() };
    // SAFETY: as above.
    let field32 = |o: usize| unsafe { header.cast::<u8>().add(o).cast::<u32>().read_unaligned() };
    // SAFETY: as above.
    let byte = |o: usize| unsafe { header.cast::<u8>().add(o).read() };

    let first = byte(0);
    let ihl = (first & 0x0f) << 2;
    let tot_len = u16::from_be(field16(ipv4::TOT_LEN));
    let frag = u16::from_be(field16(ipv4::FRAG));
    if first >> 4 != 4 || (ihl as usize) < IPV4_MIN || tot_len < ihl as u16 {
        return None;
    }
    if tot_len as u32 + ETH_LEN as u32 > ctx.len() {
        return None;
    }
    let fragment = match (frag & 0x1fff, frag & 0x2000) {
        (0, 0) => Fragment::Whole,
        (0, _) => Fragment::First,
        _ => Fragment::Later,
    };
    Some(Packet {
        src: field32(ipv4::SRC),
        dst: field32(ipv4::DST),
        sport: 0,
        dport: 0,
        id: field16(ipv4::ID),
        tot_len,
        proto: byte(ipv4::PROTO),
        ihl,
        ttl: byte(ipv4::TTL),
        tcp_flags: 0,
        seq: 0,
        ack: 0,
        seq_len: 0,
        fragment,
        early: 0,
    })
}

/// Reads the ports, and the flags of TCP; remembers the ports of a first fragment.
#[inline(always)]
fn parse_ports(ctx: &TcContext, packet: &mut Packet) -> Step<()> {
    let l4 = packet.l4_offset();
    let need: u16 = match packet.proto {
        PROTO_TCP => 20,
        PROTO_UDP => 8,
        _ => return Ok(()),
    };
    if packet.tot_len < packet.ihl as u16 + need {
        return Err(DropReason::TruncatedTransport.into());
    }
    let ports: [u16; 2] = read(ctx, l4).ok_or(DropReason::TruncatedTransport)?;
    packet.sport = ports[0];
    packet.dport = ports[1];
    if packet.proto == PROTO_TCP {
        let [seq, ack, bits]: [u32; 3] = read(ctx, l4 + 4).ok_or(DropReason::TruncatedTransport)?;
        (packet.seq, packet.ack) = (u32::from_be(seq), u32::from_be(ack));
        let [offset, flags, ..] = bits.to_ne_bytes();
        packet.tcp_flags = flags;
        let headers = packet.ihl as u32 + ((offset >> 4) << 2) as u32;
        let payload = (packet.tot_len as u32).saturating_sub(headers);
        packet.seq_len = payload + (flags & FIN) as u32 + ((flags & SYN) >> 1) as u32;
    }
    if packet.fragment == Fragment::First {
        fragment::lend_ports(packet);
    }
    Ok(())
}
