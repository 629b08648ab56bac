//! SNAT: the ingress node's address and a port of its own stand in for the client.
//!
//! The reverse entry is the allocation: it is inserted with `BPF_NOEXIST`, so two flows cannot get one
//! port towards the same backend. The first candidate is the client's own port if it lies in the range,
//! else a hash of the flow, so that a flow whose forward entry was evicted finds its own port again.

use datapath_types::{Counter, DropReason, Flow, FlowFlags, FlowKey, FlowKind, flow_hash};

use crate::{
    drop::{Step, count},
    flow::{self, NOEXIST, Sees},
    maps::FLOWS,
    packet::Packet,
    settings,
};

/// Ports tried before giving up.
const RETRIES: u32 = 32;

/// Stands in for a pod that asks itself: it would drop a packet from its own address, and a port of its
/// own is free by construction. From the link-local block (RFC 3927), as Cilium does (pull request 26100).
const HAIRPIN: u32 = u32::from_ne_bytes([169, 254, 42, 1]);

/// Gives a flow of a pod to itself its stand-in.
#[inline(always)]
pub(crate) fn hairpin(flow: &mut Flow) {
    flow.flags |= FlowFlags::SNAT;
    flow.snat_addr = HAIRPIN;
    flow.snat_port = flow.client_port;
}

/// Key of the reverse entry: backend to SNAT address.
#[inline(always)]
pub(crate) fn reverse_key(flow: &Flow, proto: u8) -> FlowKey {
    let (backend, snat) = (flow.backend_addr, flow.snat_addr);
    flow::key(FlowKind::REPLY, backend, flow.backend_port, snat, flow.snat_port, proto)
}

/// Whether two values describe the same client through the same frontend.
#[inline(always)]
fn same_client(a: &Flow, b: &Flow) -> bool {
    a.client_addr == b.client_addr && a.client_port == b.client_port && a.vip == b.vip && a.vport == b.vport
}

/// Gives the flow a source port and stores the reverse entry.
///
/// # Errors
/// [`DropReason::SnatExhausted`] if [`RETRIES`] candidates belong to live flows of others.
#[inline(always)]
pub(crate) fn allocate(flow: &mut Flow, proto: u8, now: u64) -> Step<()> {
    let (min, max) = settings::snat_ports();
    // Never zero for settings that user space made; saying so here keeps a panic out of the object, which
    // the verifier refuses: "last insn is not an exit or jmp".
    let size = (max as u32).saturating_sub(min as u32) + 1;
    let client_port = u16::from_be(flow.client_port);
    let first = if client_port >= min && client_port <= max {
        (client_port - min) as u32
    } else {
        flow_hash(flow.client_addr, flow.client_port, flow.vport, proto) % size
    };
    flow.flags |= FlowFlags::SNAT;
    flow.snat_addr = settings::node_addr();
    for i in 0..RETRIES {
        let port = min as u32 + (first + i) % size;
        flow.snat_port = (port as u16).to_be();
        if claim(flow, proto, now) {
            return Ok(());
        }
        count(Counter::SnatCollision);
    }
    Err(DropReason::SnatExhausted.into())
}

/// Tries to own the port in `flow.snat_port`.
#[inline(always)]
fn claim(flow: &Flow, proto: u8, now: u64) -> bool {
    let key = reverse_key(flow, proto);
    if FLOWS.insert(key, flow, NOEXIST).is_ok() {
        return true;
    }
    match flow::find(&key, now) {
        Some(other) if !same_client(other, flow) => false,
        // Our own from before, or an expired one: take it over whole.
        _ => FLOWS.insert(key, flow, 0).is_ok(),
    }
}

/// Keeps the reverse entry as young as the forward entry, and rebuilds it if it was evicted; true if it was
/// not there.
///
/// # Errors
/// [`DropReason::SnatExhausted`] if the port went to somebody else meanwhile.
#[inline(always)]
pub(crate) fn keep_reverse(flow: &Flow, packet: &Packet, now: u64) -> Step<bool> {
    let key = reverse_key(flow, packet.proto);
    match flow::find(&key, now) {
        Some(reverse) if same_client(reverse, flow) => {
            flow::note_request(reverse, packet, now, Sees::Both);
            Ok(false)
        }
        Some(_) => Err(DropReason::SnatExhausted.into()),
        None => {
            flow::store(&key, flow)?;
            Ok(true)
        }
    }
}
