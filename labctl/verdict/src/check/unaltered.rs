//! unaltered: between two places a packet changes only in what mode, carrier and hop demand. Its payload and every other
//! field are, byte by byte, what its sender wrote. The same in every mode.

use crate::proof::{Findings, Footing};
use crate::story::{Field, Story};

pub(super) fn check(story: &Story<'_>) -> Findings {
    let mut findings = Findings::resting(Footing::Seen);
    for difference in &story.differences {
        let Field::Rest(what) = difference.field else { continue };
        let (name, place) = (story.cases[difference.of].name(), story.place_name(difference.place));
        let (was, is) = (&difference.expected, &difference.found);
        findings.offence(difference.packet, format!("{name}: {what} changed from {was} to {is} at {place}"));
    }
    let compared: usize = story.packets.iter().map(|p| p.sightings.len().saturating_sub(1)).sum();
    let cut = cut_off(story);
    if cut > 0 {
        findings.doubt(format!("{cut} packets were captured in part only"));
    }
    findings.number("compared", compared as u64);
    findings.state(
        compared as u64,
        "packet at two places",
        format!("{compared} sightings are the packet before, but for what mode and hop demand"),
    );
    findings
}

/// Packets of which not all bytes are there: what was cut off cannot be compared.
fn cut_off(story: &Story<'_>) -> usize {
    let is_cut = |index: usize| {
        let captured = story.captured(index);
        story.evidence.capture.data(index).len() < captured.original_len as usize
    };
    story.seen().filter(|s| is_cut(s.index)).count()
}
