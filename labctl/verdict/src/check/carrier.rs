//! carrier: between the ingress node and another backend node each TCP SYN and each UDP request carries the frontend in
//! the IPv4 option; what a client sends again may, nothing else does; its value is the frontend, in the byte order of the lab; the pod gets it only if
//! the lab does not strip it. Where the source is rewritten, and for a backend on the ingress node, there is no
//! option anywhere. A load balancer that is not ours may have another way to say it, or none; an option that it writes
//! must name the frontend, in either byte order.

use std::collections::BTreeSet;

use super::frontend_option;
use crate::proof::{Findings, Footing};
use crate::scene::case::Side;
use crate::story::{Field, Story};

pub(super) fn check(story: &Story<'_>) -> Findings {
    let mut findings = Findings::resting(Footing::Seen);
    let mut counts = Counts::default();
    for seen in story.seen().filter(|s| !s.is_error && !s.case.refusal) {
        if story.evidence.capture.is_plain(seen.index) {
            counts.plain += 1;
            continue;
        }
        let frame = story.headers(seen.index);
        let Some(ip) = frame.ipv4() else { continue };
        if ip.options.dsr_count == 0 {
            counts.plain += 1;
            continue;
        }
        counts.tagged += 1;
        if seen.side == Side::Request {
            match frontend_option::read(story, &ip.options, seen.case.exchange.remote) {
                Ok(order) => {
                    counts.orders.insert(order);
                }
                Err(why) => findings.offence(seen.index, format!("{}: {why}", seen.case.name())),
            }
        }
    }
    misplaced(&mut findings, story);
    let due = story.answered().filter(|(_, c)| c.is_carried()).count();
    for (_, case) in story.answered().filter(|(_, c)| c.backend.is_none()) {
        findings.doubt(format!("the backend of {} is not known", case.name()));
    }
    if due > 0 && !between_nodes(story) {
        findings.doubt("no request was seen between ingress node and backend node");
    }
    findings.number("with_option", counts.tagged);
    findings.number("without_option", counts.plain);
    let text = counts.sentence(story, due > 0);
    findings.state(counts.tagged + counts.plain, "packet", text);
    findings
}

/// Whether a packet that should have it was seen where it should have it.
fn between_nodes(story: &Story<'_>) -> bool {
    story.packets.iter().filter(|packet| packet.side == Side::Request && packet.kind.opens()).any(|packet| {
        let way = story.way(packet.of, Side::Request);
        packet.sightings.iter().filter_map(|s| s.stage).any(|stage| way[stage].carrier)
    })
}

#[derive(Default)]
struct Counts {
    tagged: u64,
    plain: u64,
    orders: BTreeSet<&'static str>,
}

impl Counts {
    fn sentence(&self, story: &Story<'_>, due: bool) -> String {
        let Self { tagged, plain, orders } = self;
        let frontends: BTreeSet<_> = story.answered().map(|(_, c)| c.exchange.remote).collect();
        let named = match (frontends.first(), frontends.len()) {
            (Some(only), 1) => only.to_string(),
            _ => "the frontend that was asked".to_owned(),
        };
        let order = match (story.plan.datapath.external, orders.first()) {
            (true, Some(order)) => format!(" in {order} byte order"),
            _ => String::new(),
        };
        match (due, *tagged) {
            (true, 1..) => {
                format!(
                    "{tagged} packets that need the option carry {named}{order}, none of {plain} others has one"
                )
            }
            (true, 0) => {
                format!("none of {plain} packets carries the option: this load balancer has another way")
            }
            (false, _) => {
                format!("none of {plain} packets carries the option, which this traffic does not need")
            }
        }
    }
}

/// An option that is missing, or is where none must be.
fn misplaced(findings: &mut Findings, story: &Story<'_>) {
    for difference in story.differences.iter().filter(|d| d.field == Field::Carrier) {
        let case = &story.cases[difference.of];
        let (name, place) = (case.name(), story.place_name(difference.place));
        let inside = !difference.place.on_segment() && difference.side == Side::Request;
        let why = if difference.found == "none" {
            format!("{name}: the option is missing at {place}")
        } else if inside && case.is_carried() {
            format!("{name}: the option was not stripped before {place}")
        } else {
            format!("{name}: a packet that must have no option has one at {place}")
        };
        findings.offence(difference.packet, why);
    }
}
