//! ICMP errors that the datapath itself sends. The offending packet becomes the error: it is cut down to
//! the quote, two headers are put in front, and it goes back to where it came from.
//!
//! The quote is the packet *as it is in the frame when this is called*; callers that have rewritten it
//! already put the client's view back first.

use aya_ebpf::{
    bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    helpers::generated::{bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes},
    programs::TcContext,
};
use datapath_types::{Counter, DropReason, PROTO_ICMP, checksum};

use crate::{
    drop::{count, drop, redirect},
    forward,
    packet::{ETH_LEN, Packet},
    settings,
};

/// Longest quote: the longest IPv4 header and the 8 bytes of RFC 792.
const QUOTE_MAX: usize = 68;
/// IPv4 and ICMP headers in front of the quote.
const PREFIX: usize = 28;
/// Words of the IPv4 header, of the ICMP header behind it, and of all.
const IPV4_WORDS: usize = 5;
const PREFIX_WORDS: usize = PREFIX / 4;
const WORDS: usize = (PREFIX + QUOTE_MAX) / 4;

/// One error to send, in one value: a BPF function takes at most five arguments.
pub(crate) struct Message {
    /// ICMP type.
    kind: u8,
    /// ICMP code.
    code: u8,
    /// Next-hop MTU, host order; 0 where the type has none.
    mtu: u16,
    /// Source address, packet order.
    source: u32,
    /// What the offending packet counts as.
    reason: DropReason,
}

impl Message {
    /// Destination unreachable, port unreachable (RFC 792).
    #[inline(always)]
    pub(crate) fn port_unreachable(source: u32) -> Self {
        Self { kind: 3, code: 3, mtu: 0, source, reason: DropReason::NoBackend }
    }

    /// Destination unreachable, fragmentation needed (RFC 1191).
    #[inline(always)]
    pub(crate) fn fragmentation_needed(mtu: u32, source: u32, reason: DropReason) -> Self {
        Self { kind: 3, code: 4, mtu: mtu as u16, source, reason }
    }

    /// Time exceeded in transit (RFC 792).
    #[inline(always)]
    pub(crate) fn time_exceeded(source: u32) -> Self {
        Self { kind: 11, code: 0, mtu: 0, source, reason: DropReason::TtlExceeded }
    }
}

/// Turns the packet into an ICMP error to its own source, and counts the packet as dropped. Gives the tc
/// action.
#[inline(never)]
pub(crate) fn error(ctx: &mut TcContext, packet: &Packet, message: &Message) -> i32 {
    let dropped = drop(message.reason as u32);
    // No error about a later fragment, and none about a packet that has no return address (RFC 1122
    // section 3.2.2). This host's own address cannot be reached through the uplink.
    if !packet.fragment.has_transport() || packet.src == 0 || packet.src == settings::node_addr() {
        return dropped;
    }
    if make(ctx, packet, message).is_none() {
        return dropped;
    }
    count(Counter::IcmpSent);
    // Back where it came from: the answer to a pod goes to the pod, every other to the uplink.
    let out = forward::endpoint(packet.src).map_or(settings::uplink(), |pod| pod.ifindex);
    redirect(ctx, out)
}

/// Cuts, prepends, writes.
#[inline(always)]
fn make(ctx: &mut TcContext, packet: &Packet, message: &Message) -> Option<()> {
    let skb = ctx.skb.skb;
    // One buffer for the new headers and the quote: the kernel allows 512 bytes of stack for this
    // function and its caller together ("combined stack size of 2 calls is 528. Too large").
    let mut words = [0u32; WORDS];
    let mut len = packet.tot_len as usize;
    if len > QUOTE_MAX {
        len = QUOTE_MAX;
    }
    // Says the bound in a form that survives LLVM: "R4 unbounded memory access" is what the verifier says
    // to a length that was only compared before a spill.
    let len = (len & 0x7f) as u32;
    if len < PREFIX as u32 || len as usize > QUOTE_MAX {
        return None;
    }
    // SAFETY: the buffer has QUOTE_MAX bytes behind PREFIX, and `len` is at most that.
    let loaded = unsafe {
        let to = words.as_mut_ptr().add(PREFIX_WORDS).cast();
        bpf_skb_load_bytes(skb.cast(), ETH_LEN as u32, to, len)
    };
    // SAFETY: `skb` is the context.
    if loaded != 0 || unsafe { bpf_skb_change_tail(skb, ETH_LEN as u32 + len, 0) } != 0 {
        return None;
    }
    ctx.adjust_room(PREFIX as i32, BPF_ADJ_ROOM_MAC, 0).ok()?;
    write_headers(&mut words, packet, message, len);
    let from = words.as_ptr().cast();
    // SAFETY: the buffer has PREFIX bytes.
    let stored = unsafe { bpf_skb_store_bytes(skb, ETH_LEN as u32, from, PREFIX as u32, 0) };
    if stored == 0 { Some(()) } else { None }
}

/// The IPv4 header (RFC 791) and the ICMP header (RFC 792) in front of the quote, in packet order.
#[inline(always)]
fn write_headers(words: &mut [u32; WORDS], packet: &Packet, message: &Message, quote_len: u32) {
    let tot_len = (PREFIX as u32 + quote_len) as u16;
    let [t0, t1] = tot_len.to_be_bytes();
    let [m0, m1] = message.mtu.to_be_bytes();
    // TOS c0, internetwork control, as Linux sends its own errors (RFC 1812 section 4.3.2.5).
    words[0] = u32::from_ne_bytes([0x45, 0xc0, t0, t1]);
    words[2] = u32::from_ne_bytes([64, PROTO_ICMP, 0, 0]);
    words[3] = message.source;
    words[4] = packet.src;
    words[5] = u32::from_ne_bytes([message.kind, message.code, 0, 0]);
    words[6] = u32::from_ne_bytes([0, 0, m0, m1]);
    let mut sum = 0;
    for word in &words[..IPV4_WORDS] {
        sum = checksum::add32(sum, *word);
    }
    let [c0, c1] = (!checksum::fold(sum)).to_ne_bytes();
    words[2] = u32::from_ne_bytes([64, PROTO_ICMP, c0, c1]);
    let mut sum = 0;
    // The buffer is zero behind the quote, and zeros do not change a sum.
    for word in &words[IPV4_WORDS..] {
        sum = checksum::add32(sum, *word);
    }
    let [c0, c1] = (!checksum::fold(sum)).to_ne_bytes();
    words[5] = u32::from_ne_bytes([message.kind, message.code, c0, c1]);
}
