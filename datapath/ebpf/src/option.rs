//! The DSR option on the wire: insert at the ingress node, read and strip at the backend's node.
//!
//! The option always comes first, right behind the fixed 20 bytes, where `bpf_skb_adjust_room` opens and
//! closes the gap; options that the packet already carries move back. The gap is opened below the
//! transport header, so the transport checksum does not change (its pseudo header has the transport
//! length, not the total length).

use aya_ebpf::{
    bindings::{BPF_F_ADJ_ROOM_FIXED_GSO, bpf_adj_room_mode::BPF_ADJ_ROOM_NET},
    programs::TcContext,
};
use datapath_types::{
    Counter, DropReason, Mutation, SettingsFlags, SocketKey, checksum,
    option::{self, DsrFrontend, WireOrder},
};

use crate::{
    drop::{Step, count},
    maps::FRONTENDS,
    packet::{ETH_LEN, IPV4_MIN, Packet, at, ipv4, read},
    settings,
};

/// IHL of the longest header that still has room for eight more bytes.
pub(crate) const LONGEST: u8 = 52;

/// Inserts the option that names the frontend into a header of at most [`LONGEST`] bytes. `packet` keeps
/// describing the packet.
///
/// # Errors
/// [`DropReason::RewriteFailed`] if the kernel has no room.
#[inline(always)]
pub(crate) fn insert(ctx: &mut TcContext, packet: &mut Packet, vip: u32, vport: u16) -> Step<()> {
    let order = match settings::has(SettingsFlags::WIRE_CILIUM) {
        true => WireOrder::Cilium,
        false => WireOrder::Network,
    };
    let vport = if settings::mutated(Mutation::WrongOptionPort) { !vport } else { vport };
    resize(ctx, packet, option::LEN as i32, option::encode(vip, vport, order))
}

/// Takes the option out again.
///
/// # Errors
/// [`DropReason::RewriteFailed`] if the kernel refuses.
#[inline(always)]
pub(crate) fn strip(ctx: &mut TcContext, packet: &mut Packet) -> Step<()> {
    let old: [u8; option::LEN] = read(ctx, ETH_LEN + IPV4_MIN).ok_or(DropReason::RewriteFailed)?;
    resize(ctx, packet, -(option::LEN as i32), old)
}

/// Opens (`diff` 8, then writes `bytes`) or closes (`diff` -8, `bytes` are what goes away) the gap behind
/// the fixed header, and updates IHL, total length and header checksum.
#[inline(always)]
fn resize(ctx: &mut TcContext, packet: &mut Packet, diff: i32, bytes: [u8; option::LEN]) -> Step<()> {
    // FIXED_GSO: a GSO packet keeps its segment size; without it the kernel refuses UDP GSO
    // (net/core/filter.c, bpf_skb_net_grow).
    ctx.adjust_room(diff, BPF_ADJ_ROOM_NET, BPF_F_ADJ_ROOM_FIXED_GSO as u64)
        .map_err(|_| DropReason::RewriteFailed)?;
    // Behind a closed gap the frame may end anywhere: the last fragment of a datagram can carry one byte.
    let base = if diff > 0 {
        at::<[u8; IPV4_MIN + option::LEN]>(ctx, ETH_LEN).map(|header| header.cast::<u8>())
    } else {
        at::<[u8; IPV4_MIN]>(ctx, ETH_LEN).map(|header| header.cast::<u8>())
    };
    let base = base.ok_or(DropReason::RewriteFailed)?;
    let tot_len = (packet.tot_len as i32 + diff) as u16;
    let ihl = (packet.ihl as i32 + diff) as u8;
    let words = [
        u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
    ];
    // SAFETY: all offsets lie inside the bytes that `at` checked: 28 where the option is written, else 20.
    unsafe {
        let old = base.cast::<u32>().read_unaligned();
        base.write(0x40 | (ihl >> 2));
        base.add(ipv4::TOT_LEN).cast::<u16>().write_unaligned(tot_len.to_be());
        let mut delta = checksum::add32(checksum::sub32(0, old), base.cast::<u32>().read_unaligned());
        if diff > 0 {
            base.add(IPV4_MIN).cast::<[u8; option::LEN]>().write_unaligned(bytes);
            delta = checksum::add32(checksum::add32(delta, words[0]), words[1]);
        } else {
            delta = checksum::sub32(checksum::sub32(delta, words[0]), words[1]);
        }
        let field = base.add(ipv4::CHECK).cast::<u16>();
        field.write_unaligned(checksum::update(field.read_unaligned(), delta));
    }
    packet.ihl = ihl;
    packet.tot_len = tot_len;
    Ok(())
}

/// The frontend in the option of a packet that has one.
///
/// # Errors
/// [`DropReason::BadOption`] if the option is malformed, or names nobody's frontend in either reading.
#[inline(always)]
pub(crate) fn read_carrier(ctx: &TcContext, packet: &Packet) -> Step<DsrFrontend> {
    if (packet.ihl as usize) < IPV4_MIN + option::LEN {
        return Err(DropReason::BadOption.into());
    }
    let bytes: [u8; option::LEN] = read(ctx, ETH_LEN + IPV4_MIN).ok_or(DropReason::BadOption)?;
    let (network, cilium) = option::decode(bytes).map_err(|_| DropReason::BadOption)?;
    if is_frontend(network, packet.proto) {
        count(Counter::OptionNetwork);
        return Ok(network);
    }
    if is_frontend(cilium, packet.proto) {
        count(Counter::OptionCilium);
        return Ok(cilium);
    }
    Err(DropReason::BadOption.into())
}

#[inline(always)]
fn is_frontend(frontend: DsrFrontend, proto: u8) -> bool {
    FRONTENDS.get_ptr(SocketKey::new(frontend.addr, frontend.port, proto)).is_some()
}
