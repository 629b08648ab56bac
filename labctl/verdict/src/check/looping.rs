//! loop: no packet passes the same place more than once. A sender that repeats itself is none: its repetition begins
//! where the first one began. The same in every mode.

use crate::proof::Findings;
use crate::story::Story;

pub(super) fn check(story: &Story<'_>) -> Findings {
    let mut findings = Findings::default();
    let mut packets = 0;
    for packet in &story.packets {
        packets += 1;
        if let (true, Some(first)) = (packet.repeats, packet.sightings.first()) {
            let (name, point) = (story.cases[packet.of].name(), story.point_name(first.packet));
            findings.offence(first.packet, format!("{name}: a packet passed {point} more than once"));
        }
    }
    findings.number("packets", packets);
    findings.state(packets, "packet", format!("none of {packets} packets passed a place twice"));
    findings
}
