//! l2-source: replies reach the client with the Ethernet address of the node that sent them: the backend's node
//! in dsr and local, the ingress node where the source is rewritten. With any other, switches learn the
//! frontend at the wrong port.

use labctl_wire::{Direction, Side};

use crate::case::Place;
use crate::context::Context;
use crate::findings::Findings;

pub(super) fn check(context: &Context<'_>) -> Findings {
    let mut findings = Findings::default();
    let mut frames = 0;
    for seen in context.seen_answered() {
        let arrives =
            (seen.place, seen.direction(), seen.side) == (Place::Client, Direction::In, Side::Reply);
        // An ICMP error may come from either node.
        let Some(backend) = seen.case.backend.filter(|_| arrives && seen.packet.frame.icmp().is_none())
        else {
            continue;
        };
        let sender = if seen.case.source_rewritten() { seen.case.ingress } else { backend.node };
        let place = Place::Uplink(sender);
        let name = context.place_name(place);
        let Some(expected) = context.point(place).and_then(|p| context.link_addresses[p]) else {
            findings.doubt(format!("the Ethernet address of {name} is not known"));
            continue;
        };
        frames += 1;
        let source = seen.packet.frame.src;
        if source != expected {
            let case = seen.case.name();
            findings.offence(
                seen.index,
                format!("{case}: reply frame from {source}, expected {expected} of {name}"),
            );
        }
    }
    if frames == 0 {
        findings.doubt("no reply reached the client");
    }
    findings.number("frames", frames);
    findings.claim(format!(
        "{frames} of {frames} reply frames came from the Ethernet address of the node that sent them"
    ));
    findings
}
