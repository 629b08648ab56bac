//! conservation: everything that the client or a backend sent arrived at the other end, or a node counted its
//! drop; and nothing arrived that nobody sent. Bytes of TCP streams are compared, not packets, so segmentation
//! in between does not matter. The same in every mode.

use datapath_types::DropReason;
use labctl_wire::hop::Kind;
use labctl_wire::{LogicalPacket, Side};

use crate::case::{Case, Place, Waypoint};
use crate::context::Context;
use crate::findings::Findings;

pub(super) fn check(context: &Context<'_>) -> Findings {
    let mut findings = Findings::default();
    let mut ledger = Ledger::default();
    for packet in context.packets.iter().filter(|p| p.kind != Kind::Icmp) {
        let case = &context.cases[packet.tag.exchange];
        if !case.refusal {
            ledger.enter(context, packet, case);
        }
    }
    for (_, case) in context.answered() {
        if case.backend.is_none() {
            findings.doubt(format!("the backend of {} is not known", case.name()));
        }
        for place in ends(case) {
            findings.require(context, place);
        }
    }
    let accounted = accounted(context);
    ledger.settle(&mut findings, context, accounted);
    findings
}

/// Where packets of a case begin and end.
fn ends(case: &Case<'_>) -> Vec<Place> {
    let way = case.way(Side::Request);
    way.first().into_iter().chain(way.last()).map(|w| w.place).collect()
}

/// Drops that the nodes counted, without those of requests that had to be refused.
fn accounted(context: &Context<'_>) -> u64 {
    let expected = DropReason::NoLocalBackend.label();
    let has_refusals = context.refusals().next().is_some();
    let counters = context.evidence.drops.values().flatten();
    counters.filter(|(label, _)| !(has_refusals && *label == expected)).map(|(_, count)| count).sum()
}

#[derive(Default)]
struct Ledger {
    sent: u64,
    arrived: u64,
    /// Sent and not arrived: the last sighting, the place where it should have come to, the case.
    missing: Vec<(Option<usize>, Place, String)>,
    /// Arrived and not sent: the sighting, the place where it should have been sent, the case.
    appeared: Vec<(usize, Place, String)>,
}

impl Ledger {
    fn enter(&mut self, context: &Context<'_>, packet: &LogicalPacket, case: &Case<'_>) {
        let way = case.way(packet.tag.side);
        let (Some(from), Some(to)) = (way.first(), way.last()) else { return };
        let sent = context.at(packet, from.place, from.direction);
        let arrived = context.at(packet, to.place, to.direction);
        self.sent += u64::from(sent.is_some());
        if is_complete(context, packet, to) {
            self.arrived += u64::from(sent.is_some());
        } else if sent.is_some() {
            let last = packet.sightings.last().map(|s| s.packet);
            self.missing.push((last, to.place, case.name()));
        }
        if let (None, Some(arrived)) = (sent, arrived) {
            self.appeared.push((arrived, from.place, case.name()));
        }
    }

    fn settle(self, findings: &mut Findings, context: &Context<'_>, accounted: u64) {
        let Self { sent, arrived, missing, appeared } = self;
        let lost = missing.len() as u64;
        if sent == 0 {
            findings.doubt("no packet was seen being sent");
        }
        findings.number("sent", sent);
        findings.number("arrived", arrived);
        findings.number("counted_drops", accounted);
        if lost > accounted {
            for (last, place, case) in missing {
                let name = context.place_name(place);
                let why = format!(
                    "{case}: a packet never arrived at {name}, and {accounted} drops were counted for {lost} lost"
                );
                findings.absent(context, place, last, why);
            }
        }
        for (packet, place, case) in appeared {
            let name = context.place_name(place);
            findings.absent(
                context,
                place,
                Some(packet),
                format!("{case}: a packet arrived that {name} never sent"),
            );
        }
        let drops = if lost > 0 { format!(", {lost} lost and counted") } else { String::new() };
        findings.claim(format!("{arrived} of {sent} packets arrived at the other end{drops}"));
    }
}

/// Whether all bytes of a packet were seen at a waypoint.
fn is_complete(context: &Context<'_>, packet: &LogicalPacket, to: &Waypoint) -> bool {
    context.point(to.place).is_some_and(|point| packet.complete_at(point, to.direction))
}
