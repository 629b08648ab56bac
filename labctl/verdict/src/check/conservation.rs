//! conservation: everything that the client or a backend sent arrived at the other end, or the node where it was lost
//! dropped that very packet and counted it ([`super::loss`]); and nothing arrived that nobody sent. Bytes of TCP streams are compared, not packets, so
//! segmentation in between does not matter. The same in every mode.

use std::collections::BTreeMap;

use super::loss::{Excuse, Excuses, Loss};
use crate::proof::Findings;
use crate::scene::case::{Case, Waypoint};
use crate::scene::place::Place;
use crate::story::{LogicalPacket, Story};

pub(super) fn check(story: &Story<'_>) -> Findings {
    let mut findings = Findings::default();
    let mut ledger = Ledger::default();
    for packet in &story.packets {
        ledger.enter(&mut findings, story, packet, &story.cases[packet.of]);
    }
    for (_, case) in story.answered().filter(|(_, c)| c.backend.is_none()) {
        findings.doubt(format!("the backend of {} is not known", case.name()));
    }
    ledger.settle(&mut findings, story);
    findings
}

#[derive(Default)]
struct Ledger {
    sent: u64,
    arrived: u64,
    lost: Vec<Loss>,
}

impl Ledger {
    fn enter(&mut self, findings: &mut Findings, story: &Story<'_>, packet: &LogicalPacket, case: &Case<'_>) {
        let way = story.way(packet.of, packet.side);
        let Some((start, end)) = ends(story, way) else { return };
        let (sent, arrived) = (packet.at(start), packet.at(end));
        if let (None, Some(arrived)) = (sent, arrived) {
            let place = way[start].spot.place;
            let why =
                format!("{}: a packet arrived that {} never sent", case.name(), story.place_name(place));
            findings.absent(place, Some(arrived), why);
        }
        // What is refused is lost on purpose, and request-path asks where.
        if sent.is_none() || case.refusal {
            return;
        }
        self.sent += 1;
        if packet.complete_at(end) {
            self.arrived += 1;
        } else if let Some(last) = packet.sightings.iter().rev().find(|s| s.stage.is_some()) {
            let node = last.stage.and_then(|stage| holder(story, packet, stage));
            self.lost.push(Loss { last: last.packet, node, end: way[end].spot.place, name: case.name() });
        }
    }

    fn settle(self, findings: &mut Findings, story: &Story<'_>) {
        let Self { sent, arrived, lost } = self;
        let mut excuses = Excuses::new(story);
        let mut counted: BTreeMap<String, u64> = BTreeMap::new();
        let all = lost.len();
        for loss in lost {
            let by = match excuses.of(story, &loss) {
                Excuse::Counted(node) => {
                    *counted.entry(node).or_default() += 1;
                    continue;
                }
                Excuse::ByCountOnly(node, why) => {
                    findings.doubt(format!(
                        "that {node} dropped what was lost is known by its count only: {why}"
                    ));
                    *counted.entry(node).or_default() += 1;
                    continue;
                }
                Excuse::None(by) => by,
            };
            let Loss { last, end, name, .. } = loss;
            let place = story.place_name(end);
            findings.absent(end, Some(last), format!("{name}: a packet never arrived at {place}: {by}"));
        }
        let nodes: Vec<_> = counted.iter().map(|(node, count)| format!("{count} by {node}")).collect();
        let counted: u64 = counted.values().sum();
        findings.number("sent", sent);
        findings.number("arrived", arrived);
        findings.number("lost_and_counted", counted);
        let by = if nodes.is_empty() { String::new() } else { format!(": {}", nodes.join(", ")) };
        let drops = if all > 0 { format!(", {counted} lost and counted{by}") } else { String::new() };
        let text = format!("{arrived} of {sent} packets arrived at the other end{drops}");
        findings.state(sent, "packet being sent", text);
    }
}

/// Where a way begins and ends: in captures that somebody else took, as far as these go.
fn ends(story: &Story<'_>, way: &[Waypoint]) -> Option<(usize, usize)> {
    let last = way.len().checked_sub(1)?;
    if !story.is_foreign() {
        return Some((0, last));
    }
    let captured = |stage: &usize| story.is_captured(way[*stage].spot.place);
    let ends = (0..=last).find(captured).zip((0..=last).rfind(captured));
    ends.filter(|(start, end)| start < end)
}

/// The node that had a packet when it was last seen: it came in and did not go on.
fn holder(story: &Story<'_>, packet: &LogicalPacket, stage: usize) -> Option<usize> {
    let spot = story.way(packet.of, packet.side)[stage].spot;
    let node_of = |backend: usize| story.backends().get(backend).map(|b| b.node);
    let inward = spot.direction == labctl_wire::Direction::In;
    match spot.place {
        Place::Uplink(node) if inward => Some(node),
        Place::Veth(backend) if inward => node_of(backend),
        // What a pod sends its node has, unless the node's side of the link says otherwise.
        Place::Pod(backend) if !inward && !story.is_captured(Place::Veth(backend)) => node_of(backend),
        _ => None,
    }
}
