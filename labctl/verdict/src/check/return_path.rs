//! return-path: in dsr and local replies go from the backend's node straight to the client and no other node
//! sees one; where the source is rewritten (snat; UDP in hybrid) each reply passes the ingress node.
//!
//! A backend on the ingress node answers from there in every mode.

use labctl_wire::hop::Kind;
use labctl_wire::{Direction, LogicalPacket, Side};

use crate::case::{Backend, Case, Place};
use crate::context::Context;
use crate::findings::Findings;

pub(super) fn check(context: &Context<'_>) -> Findings {
    let mut findings = Findings::default();
    let mut counts = Counts::default();
    for (_, case) in context.answered() {
        match case.backend {
            Some(backend) => require_absence(&mut findings, context, case, backend),
            None => findings.doubt(format!("the backend of {} is not known", case.name())),
        }
    }
    for packet in context.packets.iter().filter(|p| is_reply(context, p)) {
        let case = &context.cases[packet.tag.exchange];
        let Some(backend) = case.backend else { continue };
        counts.replies += 1;
        strangers(&mut findings, context, packet, case);
        follow(&mut findings, context, packet, case, backend, &mut counts);
    }
    if counts.replies == 0 {
        findings.doubt("no reply was seen");
    }
    findings.number("replies", counts.replies);
    findings.number("direct", counts.direct);
    findings.number("through_ingress", counts.through_ingress);
    findings.claim(counts.sentence(&context.plan.traffic.via));
    findings
}

#[derive(Default)]
struct Counts {
    replies: u32,
    direct: u32,
    through_ingress: u32,
}

impl Counts {
    fn sentence(&self, ingress: &str) -> String {
        let Self { replies, direct, through_ingress } = self;
        match (direct, through_ingress) {
            (_, 0) => format!(
                "{direct} of {replies} replies left the backend's node straight for the client, 0 passed any other node"
            ),
            (0, _) => format!("{through_ingress} of {replies} replies passed {ingress} on their way back"),
            _ => format!(
                "{direct} replies went straight to the client, {through_ingress} through {ingress}, as their protocol's mode says"
            ),
        }
    }
}

/// Packets of the backend; ICMP errors of a node in between say nothing about the backend's way back.
fn is_reply(context: &Context<'_>, packet: &LogicalPacket) -> bool {
    packet.tag.side == Side::Reply && packet.kind != Kind::Icmp && !context.cases[packet.tag.exchange].refusal
}

/// Nodes that must see no reply are proof of that: the ingress node always, others where there is a capture.
fn require_absence(findings: &mut Findings, context: &Context<'_>, case: &Case<'_>, backend: Backend<'_>) {
    let allowed = case.nodes(Side::Reply).unwrap_or_default();
    for node in (0..context.plan.nodes.len()).filter(|n| !allowed.contains(n)) {
        let place = Place::Uplink(node);
        if node == case.ingress || context.point(place).is_some() {
            findings.require(context, place);
        }
    }
    // Where replies are counted from.
    findings.require(context, Place::Uplink(backend.node));
}

/// A reply on a node that is not on its way.
fn strangers(findings: &mut Findings, context: &Context<'_>, packet: &LogicalPacket, case: &Case<'_>) {
    let allowed = case.nodes(Side::Reply).unwrap_or_default();
    let stranger = packet.sightings.iter().find_map(|s| match context.places[s.point]? {
        Place::Uplink(node) | Place::Veth(node) if !allowed.contains(&node) => Some((s.packet, node)),
        _ => None,
    });
    if let Some((seen, node)) = stranger {
        let role = if node == case.ingress { "the ingress node " } else { "" };
        let name = &context.plan.nodes[node].name;
        findings.offence(seen, format!("a reply of {} crossed {role}{name}", case.name()));
    }
}

/// Every stage from the backend's uplink to the client, given that the reply was seen at either end.
fn follow(
    findings: &mut Findings,
    context: &Context<'_>,
    packet: &LogicalPacket,
    case: &Case<'_>,
    backend: Backend<'_>,
    counts: &mut Counts,
) {
    let home = Place::Uplink(backend.node);
    let mut way = case.way(Side::Reply);
    way.retain(|w| !matches!(w.place, Place::Pod(_)));
    let left = context.at(packet, home, Direction::Out);
    let arrived = context.at(packet, Place::Client, Direction::In);
    if left.or(arrived).is_none() {
        // It never left the backend's node: conservation asks why.
        return;
    }
    let mut last = left.or(arrived);
    let mut complete = true;
    for waypoint in &way {
        match context.at(packet, waypoint.place, waypoint.direction) {
            Some(seen) => last = Some(seen),
            None => {
                complete = false;
                let name = context.place_name(waypoint.place);
                let direction = waypoint.direction;
                let why = format!("a reply of {} was not seen {direction} at {name}", case.name());
                findings.absent(context, waypoint.place, last, why);
            }
        }
    }
    if complete {
        *if case.source_rewritten() { &mut counts.through_ingress } else { &mut counts.direct } += 1;
    }
}
