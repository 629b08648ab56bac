//! mtu: no frame of an exchange is larger than its link takes. A TCP segment that the stack will cut later
//! (segmentation offload: more than a packet of payload, checksum left to the NIC) is not a frame yet. The same in
//! every mode; a lab may give pods a smaller link.

use labctl_model::Fault;
use labctl_wire::packet::Checksum;

use crate::proof::{Findings, Footing};
use crate::scene::place::Place;
use crate::story::Story;

pub(super) fn check(story: &Story<'_>) -> Findings {
    if story.evidence.origin.files().is_some_and(|vouched| vouched.mtu_unknown) {
        return Findings::skip("nobody says how large a packet the links take");
    }
    let mut findings = Findings::resting(Footing::Seen);
    let (mut frames, mut offloaded, mut largest) = (0, 0, 0);
    for seen in story.seen() {
        frames += 1;
        let capture = &story.evidence.capture;
        let header = if capture.is_plain(seen.index) { 14 } else { story.headers(seen.index).header_len };
        let length = (story.captured(seen.index).original_len as usize).saturating_sub(header);
        let limit = usize::from(limit(story, seen.place));
        if length <= limit {
            largest = largest.max(length);
        } else if is_offloaded(story, seen.index) {
            offloaded += 1;
        } else {
            let (case, name) = (seen.case.name(), story.place_name(seen.place));
            let why = format!("{case}: packet of {length} bytes at {name}, whose MTU is {limit}");
            findings.offence(seen.index, why);
        }
    }
    findings.number("frames", frames);
    findings.number("largest", largest as u64);
    findings.number("offloaded", offloaded);
    let mtu = story.plan.mtu;
    let text = format!(
        "largest of {frames} packets is {largest} bytes, MTU {mtu}, {offloaded} to be segmented later"
    );
    findings.state(frames, "packet", text);
    findings
}

/// MTU of the link at a place.
fn limit(story: &Story<'_>, place: Place) -> u16 {
    let plan = story.plan;
    let (Place::Veth(index) | Place::Pod(index)) = place else { return plan.mtu };
    let Some((node, _)) = plan.backends().nth(index) else { return plan.mtu };
    let smaller = plan.faults.iter().find_map(|f| match f.fault {
        Fault::PodMtu { mtu } if f.on.covers(&node.name) => Some(mtu),
        _ => None,
    });
    smaller.unwrap_or(plan.mtu)
}

/// A segment that is larger than a packet because nobody has cut it yet. The kernel always leaves the checksum
/// of such a segment unfinished, so a finished one gives a real oversize frame away.
fn is_offloaded(story: &Story<'_>, packet: usize) -> bool {
    let unfinished = |c| matches!(c, Checksum::Partial | Checksum::Unknown);
    let frame = story.evidence.capture.frame(packet);
    !story.offloads_off() && frame.tcp().is_some_and(|t| t.payload_len > 0 && unfinished(t.checksum))
}
