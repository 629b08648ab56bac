//! Requests to nodes without a backend under externalTrafficPolicy Local: they come as far as that node, get nothing
//! back, and the node counts them. A part of request-path.

use datapath_types::DropReason;
use labctl_model::TrafficPolicy;
use labctl_wire::{Direction, Outcome};

use crate::proof::Findings;
use crate::scene::case::{Case, Side};
use crate::scene::place::Place;
use crate::story::{Role, Story};

/// Judges all of them; returns how many there were.
pub(super) fn judge(findings: &mut Findings, story: &Story<'_>) -> u64 {
    let plan = story.plan;
    let mut asked_nodes = vec![0; plan.nodes.len()];
    for (index, case) in story.refusals() {
        asked_nodes[case.ingress] += refusal(findings, story, index, case);
    }
    for (node, dropped) in
        asked_nodes.iter().enumerate().filter(|(_, n)| story.habits.counts_drops && **n > 0)
    {
        counted(findings, story, node, *dropped);
    }
    let count = story.refusals().count() as u64;
    let lacks_backend = plan.nodes.iter().any(|n| n.pods.is_empty());
    if plan.service.external_traffic_policy == TrafficPolicy::Local && lacks_backend && count == 0 {
        findings.doubt("no node without a backend was asked");
    }
    count
}

/// One request that must get nothing; returns its packets seen at the node that was asked.
fn refusal(findings: &mut Findings, story: &Story<'_>, index: usize, case: &Case<'_>) -> u64 {
    let node = &story.plan.nodes[case.ingress].name;
    let refused = match case.exchange.outcome {
        Outcome::TimedOut { .. } => true,
        // Silence is the bundled datapath's promise; others may say no.
        Outcome::Failed { .. } => story.habits.may_refuse,
        Outcome::Answered | Outcome::Corrupt { .. } | Outcome::Unknown => false,
    };
    if !refused {
        findings.complaint(format!("{} to {node}, which has no backend, did not time out", case.name()));
    }
    let mut arrived = 0;
    for packet in story.packets.iter().filter(|p| p.of == index) {
        let asked = Place::Uplink(case.ingress);
        match packet.side {
            Side::Reply if story.habits.may_refuse && story.reset(packet).is_some() => {}
            Side::Reply => {
                if let Some(seen) = story.seen_at(packet, Place::Client, Direction::In) {
                    findings.offence(seen, format!("{node} has no backend, and {} got a reply", case.name()));
                }
            }
            Side::Request => {
                arrived += u64::from(story.seen_at(packet, asked, Direction::In).is_some());
                if let Some(seen) = story.seen_at(packet, asked, Direction::Out) {
                    findings.offence(seen, format!("{node} has no backend, and forwarded {}", case.name()));
                }
            }
        }
    }
    errors(findings, story, index, case);
    if arrived == 0 {
        let why = format!("{} never reached {node}", case.name());
        findings.absent(Place::Uplink(case.ingress), None, why);
    }
    arrived
}

fn errors(findings: &mut Findings, story: &Story<'_>, index: usize, case: &Case<'_>) {
    if story.habits.may_refuse {
        return;
    }
    let node = &story.plan.nodes[case.ingress].name;
    let about = story.roles.iter().enumerate().filter(|(_, r)| **r == Role::Error(index, Side::Reply));
    for (packet, _) in about {
        findings.offence(packet, format!("{node} has no backend, and {} got an ICMP error", case.name()));
    }
}

/// The node counted what it dropped.
fn counted(findings: &mut Findings, story: &Story<'_>, node: usize, dropped: u64) {
    let name = &story.plan.nodes[node].name;
    let label = DropReason::NoLocalBackend.label();
    let Some(counters) = story.evidence.drops.get(name) else {
        return findings.doubt(format!("{name} gave no drop counters"));
    };
    let count = counters.get(label).copied().unwrap_or(0);
    if count < dropped {
        findings.complaint(format!("{name} dropped {dropped} packets and counted {count} as {label}"));
    }
}
