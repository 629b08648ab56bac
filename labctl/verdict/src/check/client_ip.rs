//! client-ip: the backend sees the client's own socket in dsr and local, the ingress node's address where the
//! source is rewritten (snat; UDP in hybrid), unless it runs on the ingress node itself. An external load balancer
//! may rewrite the source there too, and to any address that the ingress node has.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};

use labctl_wire::Direction;

use crate::proof::{Findings, Footing};
use crate::scene::case::{Case, Rewrite, Side};
use crate::scene::place::Place;
use crate::story::{Field, Seen, Story};

pub(super) fn check(story: &Story<'_>) -> Findings {
    // What a backend saw is told by the backend, and by the packets it got; none that is missing changes that.
    let mut findings = Findings::resting(Footing::At(BTreeSet::new()));
    // Per case the peer that its backend saw first.
    let mut peers: Vec<Option<Ipv4Addr>> = vec![None; story.cases.len()];
    for (index, case) in story.answered() {
        if let Some(served_by) = &case.exchange.served_by {
            peers[index] = Some(*served_by.peer.ip());
            if let Some(why) = objection(story, index, case, served_by.peer) {
                findings.complaint(format!("{}: the backend reports {why}", case.name()));
            }
        }
    }
    for seen in story.seen().filter(|seen| is_arrival(story, seen)) {
        let frame = story.headers(seen.index);
        let Some((src, _)) = frame.sockets() else { continue };
        peers[seen.of].get_or_insert(*src.ip());
        if let Some(why) = objection(story, seen.of, seen.case, src) {
            findings.offence(seen.index, format!("{}: the backend gets {why}", seen.case.name()));
        }
    }
    on_the_way(&mut findings, story);
    conclude(&mut findings, story, &peers);
    findings
}

/// Sources that are wrong before the backend gets them: what a place in between shows counts as much.
fn on_the_way(findings: &mut Findings, story: &Story<'_>) {
    for difference in &story.differences {
        if (difference.side, difference.field) != (Side::Request, Field::Source) {
            continue;
        }
        let (name, place) = (story.cases[difference.of].name(), story.place_name(difference.place));
        let (found, expected) = (&difference.found, &difference.expected);
        findings
            .offence(difference.packet, format!("{name} comes from {found} at {place}, expected {expected}"));
    }
}

fn conclude(findings: &mut Findings, story: &Story<'_>, peers: &[Option<Ipv4Addr>]) {
    let (mut kept, mut rewritten) = (0, 0);
    for (index, case) in story.answered() {
        match peers[index] {
            Some(peer) if peer == *case.exchange.local.ip() => kept += 1,
            Some(_) => rewritten += 1,
            None => findings.doubt(format!("no backend saw {}", case.name())),
        }
    }
    findings.number("client_address_kept", kept);
    findings.number("source_rewritten", rewritten);
    let client = story.plan.client.address;
    let ingress = "the node that was asked";
    let at_pods = story.backends().iter().all(|b| story.is_captured(Place::Pod(b.index)));
    let who = if at_pods || !is_foreign(story) { "backends saw" } else { "backends' nodes got" };
    let text = match (kept, rewritten) {
        (_, 0) => format!("{who} {client} in {kept} of {kept} requests"),
        (0, _) => format!("{who} the address of {ingress} in {rewritten} of {rewritten} requests"),
        _ => format!("{who} {client} in {kept} requests and the address of {ingress} in {rewritten}"),
    };
    findings.state(kept + rewritten, "request", text);
}

/// A request where its backend gets it: in the pod, or on the uplink of a hostNetwork backend's other node. Who captures
/// with tcpdump on the nodes has the latter only.
fn is_arrival(story: &Story<'_>, seen: &Seen<'_, '_>) -> bool {
    let Some(backend) = seen.case.backend else { return false };
    let in_sight =
        !backend.pod.host_network && (!is_foreign(story) || story.is_captured(Place::Pod(backend.index)));
    let home = if !in_sight && seen.case.is_remote() {
        Place::Uplink(backend.node)
    } else {
        Place::Pod(backend.index)
    };
    let request = seen.side == Side::Request && !seen.is_error && !seen.case.refusal;
    request && seen.direction == Direction::In && seen.place == home
}

fn is_foreign(story: &Story<'_>) -> bool {
    story.evidence.origin.files().is_some()
}

/// What is wrong with the peer that a backend sees.
fn objection(story: &Story<'_>, index: usize, case: &Case<'_>, peer: SocketAddrV4) -> Option<String> {
    let plan = story.plan;
    let client = case.exchange.local;
    // Source NAT may choose another port; without it the port is the client's. One connection has one.
    let rewritten = case.is_of_ingress(plan, *peer.ip());
    let node = plan.nodes[case.ingress].address;
    let (fits, expected) = match (case.rewrite(), story.translated[index]) {
        (Rewrite::Never, _) => (peer == client, client),
        (Rewrite::Always, Some(translated)) => {
            (rewritten && peer == translated, SocketAddrV4::new(node, translated.port()))
        }
        (Rewrite::Always, None) => (rewritten, SocketAddrV4::new(node, peer.port())),
        (Rewrite::Maybe, _) => (rewritten || peer == client, SocketAddrV4::new(node, peer.port())),
    };
    if fits {
        return None;
    }
    if peer.ip() == expected.ip() {
        return Some(format!("{peer} as peer, expected {expected}"));
    }
    Some(format!("{} as peer, expected {}{}", peer.ip(), expected.ip(), whose(story, case, *peer.ip())))
}

/// `: it is an address of the ingress node worker`, if so.
fn whose(story: &Story<'_>, case: &Case<'_>, address: Ipv4Addr) -> String {
    let plan = story.plan;
    if case.direct && case.is_of_ingress(plan, address) {
        return format!(": it is an address of the ingress node {}", plan.nodes[case.ingress].name);
    }
    String::new()
}
