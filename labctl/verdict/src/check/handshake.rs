//! handshake: every connection opens by three packets on the client's link, and every request gets its
//! complete, correct reply. The same in every mode; UDP has only the second half.

use std::collections::BTreeSet;

use labctl_model::Protocol;
use labctl_wire::Outcome;
use labctl_wire::packet::{Tcp, TcpFlags};

use crate::proof::{Findings, Footing};
use crate::scene::case::{Case, Side};
use crate::scene::place::Place;
use crate::story::{Kind, Story};
use crate::words::plural;

pub(super) fn check(story: &Story<'_>) -> Findings {
    // Three packets that were seen are three packets, whoever captured them.
    let footing =
        if story.is_foreign() { Footing::Seen } else { Footing::At(BTreeSet::from([Place::Client])) };
    let mut findings = Findings::resting(footing);
    let opened = openings(story);
    let (mut connections, mut datagrams) = (0, 0);
    for (index, case) in story.answered() {
        outcome(&mut findings, case);
        match case.protocol {
            Protocol::Tcp => {
                connections += 1;
                judge(&opened[index], &mut findings, &case.name());
            }
            Protocol::Udp => datagrams += 1,
        }
    }
    findings.number("connections", connections);
    findings.number("datagrams", datagrams);
    findings.number("connect_us", median_connect_time(story));
    findings.state(
        connections + datagrams,
        "request",
        format!(
            "{} opened, {}, every request answered",
            plural(connections, "connection"),
            plural(datagrams, "datagram")
        ),
    );
    findings
}

fn outcome(findings: &mut Findings, case: &Case<'_>) {
    let name = case.name();
    match &case.exchange.outcome {
        Outcome::Answered => {}
        Outcome::TimedOut { waiting_for } => {
            findings.complaint(format!("{name} timed out waiting for {waiting_for}"));
        }
        Outcome::Failed { error } => findings.complaint(format!("{name} failed: {error}")),
        Outcome::Unknown => findings.doubt(format!("how {name} ended was not captured")),
        Outcome::Corrupt { detail } => findings.complaint(format!("{name} got a wrong reply: {detail}")),
    }
}

fn median_connect_time(story: &Story<'_>) -> Option<u64> {
    let mut times: Vec<_> = story.answered().filter_map(|(_, c)| c.exchange.timings.connect_us).collect();
    times.sort_unstable();
    times.get(times.len() / 2).copied()
}

/// The opening packets of a connection on the client's link.
#[derive(Clone, Default)]
struct Opening {
    syn: Option<(usize, Tcp)>,
    syn_acks: Vec<(usize, Tcp)>,
    /// Acknowledgement numbers that the client sent.
    acks: Vec<u32>,
}

fn openings(story: &Story<'_>) -> Vec<Opening> {
    let mut openings = vec![Opening::default(); story.cases.len()];
    for packet in &story.packets {
        let Some(index) = story.at_client(packet) else { continue };
        let frame = story.headers(index);
        let Some(tcp) = frame.tcp() else { continue };
        let opening = &mut openings[packet.of];
        match (packet.kind, packet.side) {
            (Kind::Syn, Side::Request) if opening.syn.is_none() => opening.syn = Some((index, tcp.clone())),
            (Kind::SynAck, Side::Reply) => opening.syn_acks.push((index, tcp.clone())),
            (_, Side::Request) if tcp.flags.has(TcpFlags::ACK) => opening.acks.push(tcp.ack),
            _ => {}
        }
    }
    openings
}

fn judge(opening: &Opening, findings: &mut Findings, name: &str) {
    let Some((syn_index, syn)) = &opening.syn else {
        return findings.absent(Place::Client, None, format!("{name} sent no SYN"));
    };
    let right = opening.syn_acks.iter().find(|(_, t)| t.ack == syn.seq.wrapping_add(1));
    let Some((reply_index, syn_ack)) = right else {
        return match opening.syn_acks.first() {
            Some((index, _)) => {
                findings.offence(*index, format!("{name}: the SYN-ACK acknowledges another SYN"));
            }
            None => {
                let why = format!("{name}: no SYN-ACK reached the client");
                findings.absent(Place::Client, Some(*syn_index), why);
            }
        };
    };
    let first_ack = syn_ack.seq.wrapping_add(1);
    if !opening.acks.iter().any(|ack| ack.wrapping_sub(first_ack) < u32::MAX / 2) {
        let why = format!("{name}: the client never acknowledged the SYN-ACK");
        findings.absent(Place::Client, Some(*reply_index), why);
    }
}
