//! IPv4 options that name hosts: record route, time stamps with addresses, source routes, and whatever
//! this file does not know. In a packet of a flow they would tell the client where the pod is: the pod's
//! stack writes its own address into a recorded route, and echoes it in the SYN-ACK and in ICMP errors
//! (Linux, `ip_options_compile` and `__ip_options_echo`).
//!
//! So they are blanked with no-operations: on the way to the backend, which then has nothing to write into
//! and no way but the straight one (RFC 7126 sections 4.3 and 4.4 on source routes), and on the way to the
//! client, for what the backend puts there by itself. A list stays if it is one option that names nobody.
//! All others go as a whole: going through a list option by option takes the verifier 150,000 instructions
//! more, 300 ms a program on 6.18, and nobody misses what nobody sends.

use aya_ebpf::{
    helpers::generated::{bpf_skb_load_bytes, bpf_skb_store_bytes},
    programs::TcContext,
};
use datapath_types::{DropReason, checksum, option};

use crate::{
    drop::Step,
    packet::{IPV4_MIN, at, ipv4},
};

/// Words of the longest list of options: IHL 15.
const WORDS: usize = 10;
/// Four no-operations (RFC 791 section 3.1).
const NOPS: u32 = 0x0101_0101;
/// As many as a list can have.
static BLANK: [u32; WORDS] = [NOPS; WORDS];

/// A list of options, in words, because LLVM would clear bytes by a call that the verifier walks byte by
/// byte. Words behind its end are zero.
pub(crate) type Options = [u32; WORDS];

/// Where a header with options is in the frame.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    /// Offset of the header.
    pub(crate) header: usize,
    /// Its length.
    pub(crate) ihl: u8,
    /// Whether the carrier comes first; it is not judged.
    pub(crate) carrier: bool,
}

/// Blanks the options of a header, unless they name nobody.
///
/// # Errors
/// [`DropReason::RewriteFailed`] if a helper refuses.
#[inline(always)]
pub(crate) fn blank(ctx: &TcContext, options: &mut Options, place: Place) -> Step<()> {
    if place.ihl as usize <= IPV4_MIN {
        return Ok(());
    }
    if work(ctx, options, &place) { Ok(()) } else { Err(DropReason::RewriteFailed.into()) }
}

/// As [`blank`], for a header that has options; false if a helper refuses. One function for all places, so that
/// what it does is not verified again with what follows each.
#[inline(never)]
fn work(ctx: &TcContext, options: &mut Options, place: &Place) -> bool {
    if load(ctx, options, place.header, place.ihl).is_none() {
        return false;
    }
    let (from, first) =
        if place.carrier { (IPV4_MIN + option::LEN, options[2]) } else { (IPV4_MIN, options[0]) };
    let Some(len) = bounded((place.ihl as u32).wrapping_sub(from as u32)) else { return true };
    if names_nobody(first.to_ne_bytes(), len) {
        return true;
    }
    let carrier = if place.carrier { checksum::add32(checksum::add32(0, options[0]), options[1]) } else { 0 };
    // Of as many words as are overwritten; more than 16 bits each, which folding takes care of.
    let new = NOPS as u64 * (len / 4) as u64;
    let delta = !checksum::fold(sum(options)) as u64 + checksum::fold(carrier + new) as u64;
    overwrite(ctx, place.header, from, len, delta).is_some()
}

/// Copies the options behind the fixed header.
#[inline(always)]
pub(crate) fn load(ctx: &TcContext, options: &mut Options, header: usize, ihl: u8) -> Option<()> {
    for word in options.iter_mut() {
        *word = 0;
    }
    let len = bounded((ihl as u32).wrapping_sub(IPV4_MIN as u32))?;
    let to = options.as_mut_ptr().cast();
    // SAFETY: the list has 40 bytes, and `len` is at most that; the helper checks the frame's bounds.
    let failed = unsafe { bpf_skb_load_bytes(ctx.skb.skb.cast(), (header + IPV4_MIN) as u32, to, len) };
    if failed == 0 { Some(()) } else { None }
}

/// Sum of the words that [`load`] copied, for the header's checksum.
#[inline(always)]
pub(crate) fn sum(options: &Options) -> u64 {
    let mut sum = 0;
    for word in options {
        sum = checksum::add32(sum, *word);
    }
    sum
}

/// A length of options, 4 to 40 bytes, in a form whose bounds the verifier sees: "R4 invalid zero-sized read" is
/// what it says to a length that was only compared (6.18).
#[inline(always)]
fn bounded(len: u32) -> Option<u32> {
    let more = len.wrapping_sub(4) & 0x3f;
    if more > 4 * WORDS as u32 - 4 { None } else { Some(more + 4) }
}

/// Whether a list is one option without an address, and no more than padding behind it: quick start
/// (RFC 4782), security and extended security (RFC 1108), CIPSO, stream identifier, router alert (RFC 2113),
/// time stamps alone.
#[inline(always)]
fn names_nobody([kind, size, _, flags]: [u8; 4], len: u32) -> bool {
    let known = matches!(kind, 25 | 130 | 133 | 134 | 136 | 148) || (kind == 68 && flags & 0x0f == 0);
    known && (size as u32 + 3) & !3 == len
}

/// Writes no-operations over `len` bytes at `from` of the header, and updates its checksum.
#[inline(always)]
fn overwrite(ctx: &TcContext, header: usize, from: usize, len: u32, delta: u64) -> Option<()> {
    let blank = BLANK.as_ptr().cast();
    // SAFETY: BLANK has 40 bytes, and `len` is at most that; the helper checks the frame's bounds.
    let failed = unsafe { bpf_skb_store_bytes(ctx.skb.skb, (header + from) as u32, blank, len, 0) };
    if failed != 0 {
        return None;
    }
    let field: *mut u16 = at(ctx, header + ipv4::CHECK)?;
    // SAFETY: `at` checked two bytes.
    unsafe { field.write_unaligned(checksum::update(field.read_unaligned(), delta)) };
    Some(())
}
