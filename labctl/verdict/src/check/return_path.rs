//! return-path: in dsr and local replies go from the backend's node straight to the client and no other node
//! sees one; where the source is rewritten (snat; UDP in hybrid) each reply passes the ingress node. Every frame that
//! leaves is addressed to the next place of that way.
//!
//! A backend on the ingress node answers from there in every mode.

use super::return_count::{Counts, nodes_passed};
use crate::proof::Findings;
use crate::scene::case::{Case, Side};
use crate::scene::place::Place;
use crate::story::{Field, LogicalPacket, Story};

pub(super) fn check(story: &Story<'_>) -> Findings {
    let mut findings = Findings::default();
    story.doubt_order(&mut findings);
    let mut counts = Counts::default();
    for (_, case) in story.answered() {
        if case.backend.is_none() {
            findings.doubt(format!("the backend of {} is not known", case.name()));
        }
    }
    for packet in story.packets.iter().filter(|p| p.side == Side::Reply) {
        let case = &story.cases[packet.of];
        if case.refusal || case.backend.is_none() {
            continue;
        }
        counts.replies += 1;
        beside_its_way(&mut findings, story, packet, case);
        follow(&mut findings, story, packet, case, &mut counts);
    }
    for difference in story.differences.iter().filter(|d| d.side == Side::Reply) {
        let name = story.cases[difference.of].name();
        let place = story.place_name(difference.place);
        let (found, expected) = (&difference.found, &difference.expected);
        let why = match difference.field {
            Field::LinkDestination => {
                format!("a reply of {name} is addressed to {found} at {place}, expected {expected}")
            }
            Field::Destination => {
                format!("a reply of {name} goes to {found} at {place}, expected {expected}")
            }
            _ => continue,
        };
        findings.offence(difference.packet, why);
    }
    findings.number("replies", counts.replies);
    findings.number("direct", counts.direct);
    findings.number("through_ingress", counts.through_ingress);
    findings.state(counts.replies, "reply", counts.sentence(&nodes_passed(story)));
    findings
}

/// A reply where none should pass.
fn beside_its_way(findings: &mut Findings, story: &Story<'_>, packet: &LogicalPacket, case: &Case<'_>) {
    let Some(stray) = packet.sightings.iter().find(|s| s.stage.is_none()) else { return };
    let captured = story.captured(stray.packet);
    let point = story.point_name(stray.packet);
    let why = match story.places[captured.point] {
        Some(Place::Uplink(node)) if Some(node) != case.backend.map(|b| b.node) => {
            let role = if node == case.ingress { "the ingress node " } else { "" };
            format!("a reply of {} crossed {role}{}", case.name(), story.plan.nodes[node].name)
        }
        _ => format!("a reply of {} passed {point} {}", case.name(), captured.direction),
    };
    findings.offence(stray.packet, why);
}

/// Every stage of its way, given that the reply was seen at the backend's uplink or at the client.
fn follow(
    findings: &mut Findings,
    story: &Story<'_>,
    packet: &LogicalPacket,
    case: &Case<'_>,
    counts: &mut Counts,
) {
    let way = story.way(packet.of, Side::Reply);
    let mut on_segment = (0..way.len()).filter(|s| way[*s].spot.place.on_segment());
    let ends = [on_segment.next(), on_segment.next_back()].into_iter().flatten();
    let Some(mut last) = ends.into_iter().find_map(|stage| packet.at(stage)) else {
        // It never left the backend's node: conservation asks why.
        return;
    };
    let mut complete = true;
    for (stage, point) in way.iter().enumerate() {
        let place = point.spot.place;
        if let Some(seen) = packet.at(stage) {
            last = seen;
        } else if stage > 0 && story.must_be_seen_at(place) {
            complete = false;
            let (name, direction) = (story.place_name(place), point.spot.direction);
            let why = format!("a reply of {} was not seen {direction} at {name}", case.name());
            findings.absent(place, Some(last), why);
        }
    }
    if let Some(early) = story.out_of_order(packet) {
        let point = story.point_name(early);
        findings.offence(early, format!("a reply of {} was at {point} before its last hop", case.name()));
    }
    if complete {
        *if case.source_rewritten() { &mut counts.through_ingress } else { &mut counts.direct } += 1;
    }
}
