//! request-path: each request goes client, ingress node, backend's node, backend, in that order, and passes no other
//! node; every frame that leaves is addressed to the next place of that way, and behind the ingress node every packet
//! to the backend. A backend on the ingress node saves a hop. Under externalTrafficPolicy Local a node without a
//! backend is asked too: see [`super::refusal`].

use labctl_wire::Direction;

use super::refusal;
use crate::proof::Findings;
use crate::scene::case::{Case, Side};
use crate::scene::place::Place;
use crate::story::{Field, LogicalPacket, Story};
use crate::words::plural;

pub(super) fn check(story: &Story<'_>) -> Findings {
    let mut findings = Findings::default();
    story.doubt_order(&mut findings);
    let refused = refusal::judge(&mut findings, story);
    let mut requests = 0;
    for packet in story.packets.iter().filter(|p| p.side == Side::Request) {
        let case = &story.cases[packet.of];
        beside_its_way(&mut findings, story, packet, case);
        if !case.refusal && packet.kind.opens() && packet.at(0).is_some() {
            requests += 1;
        }
        follow(&mut findings, story, packet, case);
    }
    misdirected(&mut findings, story);
    for (_, case) in story.answered().filter(|(_, c)| c.backend.is_none()) {
        findings.absent(Place::Uplink(case.ingress), None, format!("{} reached no backend", case.name()));
    }
    findings.number("requests", requests);
    findings.number("refused", refused);
    let refused =
        if refused > 0 { format!(", {refused} refused by nodes without a backend") } else { String::new() };
    let asked: std::collections::BTreeSet<_> = story.answered().map(|(_, c)| c.ingress).collect();
    let via = match (asked.first(), asked.len()) {
        (Some(only), 1) => story.plan.nodes[*only].name.as_str(),
        _ => "the node that was asked",
    };
    let nodes = if asked.len() > 1 { format!(", {} nodes asked", asked.len()) } else { String::new() };
    let requested = plural(requests, "request");
    let text = format!("{requested} went client, {via}, backend in order{nodes}{refused}");
    findings.state(requests, "request leaving the client", text);
    findings
}

/// A request on a node or an interface that is not on its way.
fn beside_its_way(findings: &mut Findings, story: &Story<'_>, packet: &LogicalPacket, case: &Case<'_>) {
    let Some(stray) = packet.sightings.iter().find(|s| s.stage.is_none()) else { return };
    let captured = story.captured(stray.packet);
    let nodes = [Some(case.ingress), case.backend.map(|b| b.node)];
    let why = match story.places[captured.point] {
        Some(Place::Uplink(node)) if !nodes.contains(&Some(node)) => {
            format!("{} passed {}", case.name(), story.plan.nodes[node].name)
        }
        _ => {
            let point = story.point_name(stray.packet);
            format!("{} passed {point} {}, which is not on its way", case.name(), captured.direction)
        }
    };
    findings.offence(stray.packet, why);
}

/// Every stage, in the order of time. What is missing at the end of the way was lost, and conservation asks why; the
/// packet that opens the exchange must come to its end.
fn follow(findings: &mut Findings, story: &Story<'_>, packet: &LogicalPacket, case: &Case<'_>) {
    let way = story.way(packet.of, Side::Request);
    let last_seen = packet.sightings.iter().filter_map(|s| s.stage).max().unwrap_or(0);
    let due = if packet.kind.opens() && packet.at(0).is_some() { way.len() - 1 } else { last_seen };
    let from = packet.origin().unwrap_or(0);
    let mut last: Option<usize> = None;
    for (stage, point) in way.iter().enumerate().take(due + 1).skip(from) {
        let place = point.spot.place;
        if let Some(seen) = packet.at(stage) {
            last = Some(seen);
        } else if story.must_be_seen_at(place) {
            let (name, direction) = (story.place_name(place), point.spot.direction);
            let why = format!("{} was not seen {direction} at {name}", case.name());
            return findings.absent(place, last, why);
        }
    }
    if let Some(early) = story.out_of_order(packet) {
        let point = story.point_name(early);
        findings.offence(early, format!("{} was at {point} before its last hop", case.name()));
    }
}

/// Frames that are addressed to somebody else than the next place, and packets to somebody else than the backend.
fn misdirected(findings: &mut Findings, story: &Story<'_>) {
    for difference in story.differences.iter().filter(|d| d.side == Side::Request) {
        let name = story.cases[difference.of].name();
        let place = story.place_name(difference.place);
        let (found, expected) = (&difference.found, &difference.expected);
        let direction = story.captured(difference.packet).direction;
        let behind = !(difference.place == Place::Client
            || (difference.place == Place::Uplink(story.cases[difference.of].ingress)
                && direction == Direction::In));
        let why = match difference.field {
            Field::Destination if behind => {
                format!("{name} was sent to {found}, which is not its backend {expected}")
            }
            Field::Destination => format!("{name} was sent to {found}, expected {expected}"),
            Field::LinkDestination => {
                format!("{name} is addressed to {found} at {place}, expected {expected}")
            }
            _ => continue,
        };
        findings.offence(difference.packet, why);
    }
}
