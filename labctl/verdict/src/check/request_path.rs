//! request-path: each request goes client, ingress node, backend's node, pod, in this order and past no other
//! node, addressed to a backend of the service; under externalTrafficPolicy Local a node without a backend does
//! not answer, and counts what it drops.

use datapath_types::DropReason;
use labctl_model::TrafficPolicy;
use labctl_wire::hop::Kind;
use labctl_wire::packet::TcpFlags;
use labctl_wire::{Direction, LogicalPacket, Outcome, Side};

use crate::case::{Case, Place};
use crate::context::{Context, Seen};
use crate::findings::Findings;

pub(super) fn check(context: &Context<'_>) -> Findings {
    let mut findings = Findings::default();
    let mut requests = 0;
    for packet in context.packets.iter().filter(|p| p.tag.side == Side::Request) {
        let case = &context.cases[packet.tag.exchange];
        if case.refusal {
            continue;
        }
        strangers(&mut findings, context, packet, case);
        if packet.kind.opens() && context.at(packet, Place::Client, Direction::Out).is_some() {
            requests += 1;
            follow(&mut findings, context, packet, case);
        }
    }
    for seen in context.seen_answered().filter(|s| s.side == Side::Request) {
        destination(&mut findings, context, &seen);
    }
    for (_, case) in context.answered() {
        if case.backend.is_none() {
            let why = format!("{} reached no backend", case.name());
            findings.absent(context, Place::Uplink(case.ingress), None, why);
        }
    }
    if requests == 0 {
        findings.doubt("no request was seen leaving the client");
    }
    let refused = refusals(&mut findings, context);
    findings.number("requests", requests);
    findings.number("refused", refused);
    let refused =
        if refused > 0 { format!(", {refused} refused by nodes without a backend") } else { String::new() };
    findings.claim(format!(
        "{requests} requests went client, {}, backend in order{refused}",
        context.plan.traffic.via
    ));
    findings
}

/// A request on a node that is not on its way.
fn strangers(findings: &mut Findings, context: &Context<'_>, packet: &LogicalPacket, case: &Case<'_>) {
    let Some(allowed) = case.nodes(Side::Request) else { return };
    let stranger = packet.sightings.iter().find_map(|s| match context.places[s.point]? {
        Place::Uplink(node) | Place::Veth(node) if !allowed.contains(&node) => Some((s.packet, node)),
        _ => None,
    });
    if let Some((seen, node)) = stranger {
        findings.offence(seen, format!("{} passed {}", case.name(), context.plan.nodes[node].name));
    }
}

/// Every stage, in the order of time.
fn follow(findings: &mut Findings, context: &Context<'_>, packet: &LogicalPacket, case: &Case<'_>) {
    let mut last: Option<usize> = None;
    for waypoint in case.way(Side::Request) {
        let Some(seen) = context.at(packet, waypoint.place, waypoint.direction) else {
            let name = context.place_name(waypoint.place);
            let why = format!("{} was not seen {} at {name}", case.name(), waypoint.direction);
            return findings.absent(context, waypoint.place, last, why);
        };
        if last.is_some_and(|l| context.captured(l).ts_ns > context.captured(seen).ts_ns) {
            let name = context.place_name(waypoint.place);
            return findings.offence(seen, format!("{} was at {name} before its last hop", case.name()));
        }
        last = Some(seen);
    }
}

/// Behind the ingress node a request is addressed to a backend of the service.
fn destination(findings: &mut Findings, context: &Context<'_>, seen: &Seen<'_, '_>) {
    let rewritten = match (seen.place, seen.direction()) {
        (Place::Uplink(node), Direction::Out) => node == seen.case.ingress,
        (Place::Uplink(node), Direction::In) => node != seen.case.ingress,
        (Place::Pod(_), Direction::In) | (Place::Veth(_), Direction::Out) => true,
        _ => false,
    };
    let Some((_, dst)) = seen.packet.frame.sockets() else { return };
    if rewritten && Some(dst) != seen.case.backend_socket(context.plan) {
        findings
            .offence(seen.index, format!("{} was sent to {dst}, which is not its backend", seen.case.name()));
    }
}

/// Requests to nodes without a backend; returns how many were judged.
fn refusals(findings: &mut Findings, context: &Context<'_>) -> u32 {
    let plan = context.plan;
    let mut asked_nodes = vec![0; plan.nodes.len()];
    for (index, case) in context.refusals() {
        asked_nodes[case.ingress] += refusal(findings, context, index, case);
    }
    // Nobody but the bundled datapath counts for us.
    let counts = !plan.datapath.external;
    for (node, dropped) in asked_nodes.iter().enumerate().filter(|(_, n)| counts && **n > 0) {
        counted(findings, context, node, *dropped);
    }
    let count = context.refusals().count() as u32;
    let lacks_backend = plan.nodes.iter().any(|n| n.pods.is_empty());
    if plan.service.external_traffic_policy == TrafficPolicy::Local && lacks_backend && count == 0 {
        findings.doubt("no node without a backend was asked");
    }
    count
}

/// One request that must get nothing; returns its packets seen at the node that was asked.
fn refusal(findings: &mut Findings, context: &Context<'_>, index: usize, case: &Case<'_>) -> u64 {
    let node = &context.plan.nodes[case.ingress].name;
    let refused = match case.exchange.outcome {
        Outcome::TimedOut { .. } => true,
        // Silence is the bundled datapath's promise; others may say no.
        Outcome::Failed { .. } => case.external,
        Outcome::Answered | Outcome::Corrupt { .. } => false,
    };
    if !refused {
        findings.complaint(format!("{} to {node}, which has no backend, did not time out", case.name()));
    }
    findings.require(context, Place::Client);
    findings.require(context, Place::Uplink(case.ingress));
    let mut arrived = 0;
    for packet in context.packets.iter().filter(|p| p.tag.exchange == index) {
        let asked = Place::Uplink(case.ingress);
        match packet.tag.side {
            Side::Reply if case.external && says_no(context, packet) => {}
            Side::Reply => {
                if let Some(seen) = context.at(packet, Place::Client, Direction::In) {
                    findings.offence(seen, format!("{node} has no backend, and {} got a reply", case.name()));
                }
            }
            Side::Request => {
                arrived += u64::from(context.at(packet, asked, Direction::In).is_some());
                if let Some(seen) = context.at(packet, asked, Direction::Out) {
                    findings.offence(seen, format!("{node} has no backend, and forwarded {}", case.name()));
                }
            }
        }
    }
    if arrived == 0 {
        findings.absent(
            context,
            Place::Uplink(case.ingress),
            None,
            format!("{} never reached {node}", case.name()),
        );
    }
    arrived
}

/// Whether a packet refuses a request: a TCP reset or an ICMP error.
fn says_no(context: &Context<'_>, packet: &LogicalPacket) -> bool {
    let is_reset =
        |index: usize| context.captured(index).frame.tcp().is_some_and(|tcp| tcp.flags.has(TcpFlags::RST));
    packet.kind == Kind::Icmp || packet.sightings.iter().any(|s| is_reset(s.packet))
}

/// The node counted what it dropped.
fn counted(findings: &mut Findings, context: &Context<'_>, node: usize, dropped: u64) {
    let name = &context.plan.nodes[node].name;
    let label = DropReason::NoLocalBackend.label();
    let Some(counters) = context.evidence.drops.get(name) else {
        return findings.doubt(format!("{name} gave no drop counters"));
    };
    let count = counters.get(label).copied().unwrap_or(0);
    if count < dropped {
        findings.complaint(format!("{name} dropped {dropped} packets and counted {count} as {label}"));
    }
}
