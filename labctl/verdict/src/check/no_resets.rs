//! no-resets: no TCP connection of the run was reset, by anyone, at any point. A client that uses a port again may find
//! its peer still in TIME-WAIT, and clears that old connection by a reset before its own opens (RFC 9293 section
//! 3.5.2): that one is counted and no offence. The same in every mode.

use labctl_model::Protocol;
use labctl_wire::Outcome;

use crate::proof::Findings;
use crate::scene::case::Side;
use crate::story::{Kind, LogicalPacket, Story};
use crate::words::plural;

pub(super) fn check(story: &Story<'_>) -> Findings {
    let connections = story.answered().filter(|(_, c)| c.protocol == Protocol::Tcp).count() as u64;
    if connections == 0 {
        return Findings::skip("the run has no TCP request");
    }
    let mut findings = Findings::default();
    let mut cleared = 0;
    for packet in &story.packets {
        let case = &story.cases[packet.of];
        let Some(seen) = story.reset(packet) else { continue };
        if case.refusal {
            continue;
        }
        if clears_old_connection(story, packet) {
            cleared += 1;
            continue;
        }
        let point = story.point_name(seen);
        findings.offence(seen, format!("{} was reset, first seen at {point}", case.name()));
    }
    findings.number("connections", connections);
    findings.number("old_connections_cleared", cleared);
    let old = if cleared > 0 { format!(", {cleared} of old ones on the same port") } else { String::new() };
    findings.state(
        connections,
        "connection",
        format!("0 resets in {}{old}", plural(connections, "connection")),
    );
    findings
}

/// A reset of the client's before its connection opened, in answer to an acknowledgement of something that it never
/// sent; the connection opened all the same.
fn clears_old_connection(story: &Story<'_>, reset: &LogicalPacket) -> bool {
    let case = &story.cases[reset.of];
    if reset.side != Side::Request || reset.kind != Kind::Rst || case.exchange.outcome != Outcome::Answered {
        return false;
    }
    let Some(sent) = reset.at(0) else { return false };
    let frame = story.headers(sent);
    let Some(seq) = frame.tcp().map(|t| t.seq) else { return false };
    let before = |p: &LogicalPacket| {
        p.of == reset.of
            && p.side == Side::Reply
            && story.at_client(p).is_some_and(|i| story.captured(i).ts_ns < story.captured(sent).ts_ns)
    };
    let opened = story.packets.iter().any(|p| before(p) && p.kind == Kind::SynAck);
    let provoked = story.packets.iter().any(|p| {
        let acks = |i: usize| story.headers(i).tcp().is_some_and(|t| t.ack == seq);
        before(p) && p.kind == Kind::Ack && story.at_client(p).is_some_and(acks)
    });
    !opened && provoked
}
