//! Comments for the packets of the merged capture, so that Wireshark shows the verdict beside the packet.

use std::collections::BTreeMap;

use crate::context::Context;
use crate::evidence::Evidence;
use crate::judge::{Judgement, Status};

/// Comments by packet index: every packet of an exchange says whose it is and its place on its way; one that a
/// check objects to says which and why.
pub fn comments(evidence: &Evidence, judgement: &Judgement) -> BTreeMap<usize, String> {
    let context = Context::new(evidence);
    let mut comments = ways(&context);
    for check in judgement.checks.iter().filter(|c| c.status != Status::Skip) {
        for offence in &check.offences {
            if let Some(packet) = offence.packet {
                let line = format!("{}: {}", check.name, offence.why);
                let comment = comments.entry(packet).or_default();
                *comment = if comment.is_empty() { line } else { format!("{line}\n{comment}") };
            }
        }
    }
    comments
}

fn ways(context: &Context<'_>) -> BTreeMap<usize, String> {
    let mut comments = BTreeMap::new();
    for packet in &context.packets {
        let case = &context.cases[packet.tag.exchange];
        let side = match packet.tag.side {
            labctl_wire::Side::Request => "to backend",
            labctl_wire::Side::Reply => "to client",
        };
        let (count, first) = (packet.sightings.len(), packet.sightings.first().map_or(0, |s| s.ts_ns));
        for (i, sighting) in packet.sightings.iter().enumerate() {
            let micros = (sighting.ts_ns - first) / 1_000;
            let text = format!("{} {side}, sighting {} of {count}, +{micros} us", case.name(), i + 1);
            // A segment of several logical packets keeps the first one's comment.
            comments.entry(sighting.packet).or_insert(text);
        }
    }
    comments
}
