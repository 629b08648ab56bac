//! mtu: no frame of an exchange is larger than its link takes. A TCP segment that the stack will cut later
//! (segmentation offload: more than a packet of payload, checksum left to the NIC) is not a frame yet. The same in
//! every mode; a lab may give pods a smaller link.

use labctl_model::Fault;
use labctl_wire::packet::Checksum;

use crate::case::Place;
use crate::context::{Context, Seen};
use crate::findings::Findings;

pub(super) fn check(context: &Context<'_>) -> Findings {
    let mut findings = Findings::default();
    let (mut frames, mut offloaded, mut largest) = (0, 0, 0);
    for seen in context.seen() {
        frames += 1;
        let length = seen.packet.original_len as usize
            - seen.packet.frame.header_len.min(seen.packet.original_len as usize);
        let limit = usize::from(limit(context, seen.place));
        if length <= limit {
            largest = largest.max(length);
        } else if is_offloaded(context, &seen) {
            offloaded += 1;
        } else {
            let (case, name) = (seen.case.name(), context.place_name(seen.place));
            findings.offence(
                seen.index,
                format!("{case}: packet of {length} bytes at {name}, whose MTU is {limit}"),
            );
        }
    }
    findings.require_all(context);
    if frames == 0 {
        findings.doubt("no packet was seen");
    }
    findings.number("frames", frames);
    findings.number("largest", largest);
    findings.number("offloaded", offloaded);
    findings.claim(format!(
        "largest of {frames} packets is {largest} bytes, MTU {}, {offloaded} to be segmented later",
        context.plan.mtu
    ));
    findings
}

/// MTU of the link at a place.
fn limit(context: &Context<'_>, place: Place) -> u16 {
    let node = match place {
        Place::Client | Place::Uplink(_) => return context.plan.mtu,
        Place::Veth(node) => &context.plan.nodes[node].name,
        Place::Pod(index) => match context.plan.backends().nth(index) {
            Some((node, _)) => &node.name,
            None => return context.plan.mtu,
        },
    };
    let smaller = context.plan.faults.iter().find_map(|f| match f.fault {
        Fault::PodMtu { mtu } if f.on.covers(node) => Some(mtu),
        _ => None,
    });
    smaller.unwrap_or(context.plan.mtu)
}

/// A segment that is larger than a packet because nobody has cut it yet. The kernel always leaves the checksum
/// of such a segment unfinished, so a finished one gives a real oversize frame away.
fn is_offloaded(context: &Context<'_>, seen: &Seen<'_, '_>) -> bool {
    let unfinished = |c| matches!(c, Checksum::Partial | Checksum::Unknown);
    let tcp = seen.packet.frame.tcp();
    !context.offloads_off() && tcp.is_some_and(|t| t.payload_len > 0 && unfinished(t.checksum))
}
