//! Whom the datapath believes: where a packet may come from, and who may bring a carrier. The threat model
//! is in ARCHITECTURE.md.
//!
//! A carrier makes a backend's node answer as whatever frontend it names, so only nodes may send one. Nothing
//! inside the packet tells: in dsr it has the client's address, and a key would not fit into the eight bytes
//! that Cilium's format has. What tells is the frame. A NodePort's address is its ingress node's, so the carrier
//! names the node that must have sent it, and the frame has to come from the neighbour that is this node's own
//! way there: the node itself, or the router in front of it. That is reverse path filtering by link address, and
//! rests on what the path back rests on anyhow, the kernel's routes and its neighbour table.

use core::mem;

use aya_ebpf::{
    bindings::{BPF_FIB_LOOKUP_OUTPUT, bpf_fib_lookup as FibLookup},
    helpers::generated::bpf_fib_lookup,
    programs::TcContext,
};
use datapath_types::{DropReason, NodeEntry, option};

use crate::{
    drop::Step,
    forward,
    maps::NODES,
    option as dsr_option,
    packet::{ETH_LEN, IPV4_MIN, Packet, read},
    settings,
};

/// `AF_INET`.
const AF_INET: u8 = 2;
/// Offset of the source address in an Ethernet header.
const SOURCE: usize = 6;

/// Whether nobody outside can have this source address: "this network" (RFC 1122), loopback, multicast, the
/// reserved block with the broadcast address, this node itself, or a pod of this node.
///
/// Asked for every packet that may be served, before anything depends on it: where the answer is needed, it is read
/// from the map value. Asked there, each way to it is verified again with all that follows, 9,000 instructions
/// more in mode snat.
#[inline(always)]
pub(crate) fn is_martian(src: u32) -> bool {
    let first = src.to_ne_bytes()[0];
    first == 0
        || first == 127
        || first >= 224
        || src == settings::node_addr()
        || (settings::is_pod_addr(src) && forward::endpoint(src).is_some())
}

/// Whether the first option of a packet is our carrier's type.
#[inline(always)]
pub(crate) fn has_carrier(ctx: &TcContext, packet: &Packet) -> bool {
    packet.ihl as usize > IPV4_MIN && read(ctx, ETH_LEN + IPV4_MIN) == Some(option::TYPE)
}

/// The frontend in the carrier of a packet that arrived on the uplink, all zero without a carrier.
///
/// # Errors
/// [`DropReason::ForeignCarrier`] if it has one that no node of this mode sends, [`DropReason::BadOption`] if it
/// is malformed or names nobody's frontend.
#[inline(always)]
pub(crate) fn carried(ctx: &TcContext, packet: &Packet) -> Step<option::DsrFrontend> {
    if !has_carrier(ctx, packet) {
        return Ok(option::DsrFrontend { addr: 0, port: 0 });
    }
    // Pods' requests are translated where the pod is, and cross the network without a carrier.
    if !settings::carries(packet.proto) || settings::is_pod_addr(packet.src) {
        return Err(DropReason::ForeignCarrier.into());
    }
    let frontend = dsr_option::read_carrier(ctx, packet)?;
    if !came_from(ctx, frontend.addr) {
        return Err(DropReason::ForeignCarrier.into());
    }
    Ok(frontend)
}

/// Whether the frame came from the neighbour on the way to another node.
#[inline(always)]
fn came_from(ctx: &TcContext, node: u32) -> bool {
    let Some(entry) = NODES.get_ptr_mut(node) else { return false };
    // SAFETY: the agent replaces values whole; both fields are plain integers, each written at once.
    let entry: &mut NodeEntry = unsafe { &mut *entry };
    let Some(source) = source_mac(ctx) else { return false };
    if entry.is_self != 0 {
        return false;
    }
    if entry.mac == source {
        return true;
    }
    // The first packet, a node that got another interface, or a forger.
    if neighbour_towards(ctx, node) != source {
        return false;
    }
    entry.mac = source;
    true
}

/// The frame's source address, as [`NodeEntry::mac`] has it.
#[inline(always)]
fn source_mac(ctx: &TcContext) -> Option<u64> {
    let [a, b, c, d, e, f]: [u8; 6] = read(ctx, SOURCE)?;
    Some(u64::from_ne_bytes([a, b, c, d, e, f, 0, 0]))
}

/// The link address of the next hop from the uplink to an address; 0 if the kernel does not know it.
#[inline(never)]
fn neighbour_towards(ctx: &TcContext, addr: u32) -> u64 {
    // SAFETY: all bit patterns are valid.
    let mut lookup: FibLookup = unsafe { mem::zeroed() };
    lookup.family = AF_INET;
    lookup.ifindex = settings::uplink();
    lookup.__bindgen_anon_3.ipv4_src = settings::node_addr();
    lookup.__bindgen_anon_4.ipv4_dst = addr;
    let size = size_of::<FibLookup>() as i32;
    // SAFETY: `lookup` outlives the call, and `size` is its own.
    let result =
        unsafe { bpf_fib_lookup(ctx.skb.skb.cast(), &mut lookup, size, BPF_FIB_LOOKUP_OUTPUT as u32) };
    if result != 0 || lookup.ifindex != settings::uplink() {
        return 0;
    }
    let [a, b, c, d, e, f] = lookup.dmac;
    u64::from_ne_bytes([a, b, c, d, e, f, 0, 0])
}

/// Whether a packet that leaves this node has a carrier that the datapath did not put there: a process, a pod,
/// or somebody whose packet the stack routes. `vetted` is the interface whose program has looked already.
#[inline(always)]
pub(crate) fn forges(ctx: &TcContext, packet: &Packet, vetted: u32) -> bool {
    // SAFETY: the kernel hands a valid context; a plain field.
    let arrived_on = unsafe { (*ctx.skb.skb).ingress_ifindex };
    has_carrier(ctx, packet) && (vetted == 0 || arrived_on != vetted)
}
