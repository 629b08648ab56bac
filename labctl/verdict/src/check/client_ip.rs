//! client-ip: the backend sees the client's own socket in dsr and local, the ingress node's address where the
//! source is rewritten (snat; UDP in hybrid), unless it runs on the ingress node itself. An external load balancer
//! may rewrite the source there too, and to any address that the ingress node has.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use labctl_wire::Direction;

use super::peer::objection;
use crate::proof::{Findings, Footing};
use crate::scene::case::Side;
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
    let who = if at_pods || !story.is_foreign() { "backends saw" } else { "backends' nodes got" };
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
        !backend.pod.host_network && (!story.is_foreign() || story.is_captured(Place::Pod(backend.index)));
    let home = if !in_sight && seen.case.is_remote() {
        Place::Uplink(backend.node)
    } else {
        Place::Pod(backend.index)
    };
    let request = seen.side == Side::Request && !seen.is_error && !seen.case.refusal;
    request && seen.direction == Direction::In && seen.place == home
}
