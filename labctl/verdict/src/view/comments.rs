//! Comments for the packets of the merged capture, so that Wireshark shows the verdict beside the packet.

use std::collections::BTreeMap;

use crate::result::{Judgement, Status};
use crate::scene::case::Side;
use crate::story::Story;

/// Comments by packet index: every packet of an exchange says whose it is and its place on its way; one that a
/// check objects to says which and why.
pub(crate) fn of(story: &Story<'_>, judgement: &Judgement) -> BTreeMap<usize, String> {
    let mut comments = ways(story);
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

fn ways(story: &Story<'_>) -> BTreeMap<usize, String> {
    let mut comments = BTreeMap::new();
    for packet in &story.packets {
        let case = &story.cases[packet.of];
        let side = match packet.side {
            Side::Request => "to backend",
            Side::Reply => "to client",
        };
        let at = |packet: usize| story.captured(packet).ts_ns;
        let (count, first) = (packet.sightings.len(), packet.sightings.first().map_or(0, |s| at(s.packet)));
        for (i, sighting) in packet.sightings.iter().enumerate() {
            let micros = at(sighting.packet).saturating_sub(first) / 1_000;
            let text = format!("{} {side}, sighting {} of {count}, +{micros} us", case.name(), i + 1);
            // A segment of several logical packets keeps the first one's comment.
            comments.entry(sighting.packet).or_insert(text);
        }
    }
    comments
}
