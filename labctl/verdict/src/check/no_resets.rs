//! no-resets: no TCP connection of the run was reset, by anyone, at any point. The same in every mode.

use labctl_model::Protocol;
use labctl_wire::packet::TcpFlags;

use crate::context::Context;
use crate::findings::Findings;

pub(super) fn check(context: &Context<'_>) -> Findings {
    let connections = context.answered().filter(|(_, c)| c.protocol == Protocol::Tcp).count();
    if connections == 0 {
        return Findings::skip("the run has no TCP request");
    }
    let mut findings = Findings::default();
    for packet in &context.packets {
        let case = &context.cases[packet.tag.exchange];
        let reset = packet.sightings.iter().find(|s| {
            let tcp = context.captured(s.packet).frame.tcp();
            tcp.is_some_and(|t| t.flags.has(TcpFlags::RST))
        });
        if let (Some(sighting), false) = (reset, case.refusal) {
            let point = &context.info(sighting.point).point;
            findings.offence(sighting.packet, format!("{} was reset, first seen at {point}", case.name()));
        }
    }
    findings.require_all(context);
    findings.number("connections", connections);
    findings.claim(format!("0 resets in {connections} connections"));
    findings
}
