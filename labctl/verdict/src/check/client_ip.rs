//! client-ip: the backend sees the client's own socket in dsr and local, the ingress node's address where the
//! source is rewritten (snat; UDP in hybrid), unless it runs on the ingress node itself. An external load balancer
//! may rewrite the source there too, and to any address that the ingress node has.

use std::net::{Ipv4Addr, SocketAddrV4};

use labctl_wire::{Direction, Side};

use crate::case::{Case, Place, Rewrite};
use crate::context::{Context, Seen};
use crate::findings::Findings;

pub(super) fn check(context: &Context<'_>) -> Findings {
    let mut findings = Findings::default();
    // Per case the peer that its backend saw first.
    let mut peers: Vec<Option<Ipv4Addr>> = vec![None; context.cases.len()];
    for (index, case) in context.answered() {
        if let Some(served_by) = &case.exchange.served_by {
            peers[index] = Some(*served_by.peer.ip());
            if let Some(why) = objection(context, case, served_by.peer) {
                findings.complaint(format!("{}: the backend reports {why}", case.name()));
            }
        }
    }
    for seen in context.seen_answered().filter(is_arrival) {
        let Some((src, _)) = seen.packet.frame.sockets() else { continue };
        if let Some(tag) = context.tags[seen.index] {
            peers[tag.exchange].get_or_insert(*src.ip());
        }
        if let Some(why) = objection(context, seen.case, src) {
            findings.offence(seen.index, format!("{}: the backend gets {why}", seen.case.name()));
        }
    }
    let (mut kept, mut rewritten) = (0, 0);
    for (index, case) in context.answered() {
        match peers[index] {
            Some(peer) if peer == *case.exchange.local.ip() => kept += 1,
            Some(_) => rewritten += 1,
            None => findings.doubt(format!("no backend saw {}", case.name())),
        }
    }
    conclude(&mut findings, context, kept, rewritten);
    findings
}

fn conclude(findings: &mut Findings, context: &Context<'_>, kept: u32, rewritten: u32) {
    if context.answered().next().is_none() {
        findings.doubt("no request was sent");
    }
    findings.number("client_address_kept", kept);
    findings.number("source_rewritten", rewritten);
    let client = context.plan.client.address;
    let ingress = &context.plan.traffic.via;
    findings.claim(match (kept, rewritten) {
        (_, 0) => format!("backends saw {client} in {kept} of {kept} requests"),
        (0, _) => format!("backends saw the address of {ingress} in {rewritten} of {rewritten} requests"),
        _ => format!("backends saw {client} in {kept} requests and the address of {ingress} in {rewritten}"),
    });
}

/// A request where its backend gets it: in the pod, or on the uplink of a hostNetwork backend's other node.
fn is_arrival(seen: &Seen<'_, '_>) -> bool {
    let Some(backend) = seen.case.backend else { return false };
    let home = if backend.pod.host_network && seen.case.is_remote() {
        Place::Uplink(backend.node)
    } else {
        Place::Pod(backend.index)
    };
    seen.side == Side::Request && seen.direction() == Direction::In && seen.place == home
}

/// What is wrong with the peer that a backend sees.
fn objection(context: &Context<'_>, case: &Case<'_>, peer: SocketAddrV4) -> Option<String> {
    let plan = context.plan;
    let client = case.exchange.local;
    // Source NAT may choose another port; without it the port is the client's.
    let rewritten = case.is_of_ingress(plan, *peer.ip());
    let (fits, expected) = match case.rewrite() {
        Rewrite::Never => (peer == client, *client.ip()),
        Rewrite::Always => (rewritten, plan.nodes[case.ingress].address),
        Rewrite::Maybe => (rewritten || peer == client, plan.nodes[case.ingress].address),
    };
    if fits {
        return None;
    }
    if *peer.ip() == expected {
        return Some(format!("{peer} as peer, expected {client}"));
    }
    Some(format!("{} as peer, expected {expected}{}", peer.ip(), whose(context, case, *peer.ip())))
}

/// `: it is an address of the ingress node worker`, if so.
fn whose(context: &Context<'_>, case: &Case<'_>, address: Ipv4Addr) -> String {
    let plan = context.plan;
    if case.direct && case.is_of_ingress(plan, address) {
        return format!(": it is an address of the ingress node {}", plan.nodes[case.ingress].name);
    }
    String::new()
}
