//! handshake: every connection opens by three packets on the client's link, and every request gets its
//! complete, correct reply. The same in every mode; UDP has only the second half.

use labctl_model::Protocol;
use labctl_wire::hop::Kind;
use labctl_wire::packet::{Tcp, TcpFlags};
use labctl_wire::{Direction, LogicalPacket, Outcome, Side};

use crate::case::{Case, Place};
use crate::context::Context;
use crate::findings::Findings;

pub(super) fn check(context: &Context<'_>) -> Findings {
    let mut findings = Findings::default();
    let opened = Opened::of(context);
    let (mut connections, mut datagrams) = (0, 0);
    for (index, case) in context.answered() {
        outcome(&mut findings, case);
        match case.protocol {
            Protocol::Tcp => {
                connections += 1;
                opened.judge(&mut findings, context, index);
            }
            Protocol::Udp => datagrams += 1,
        }
    }
    if connections + datagrams == 0 {
        findings.doubt("no request was sent");
    }
    findings.number("connections", connections);
    findings.number("datagrams", datagrams);
    findings.number("connect_us", median_connect_time(context));
    findings
        .claim(format!("{connections} connections opened, {datagrams} datagrams, every request answered"));
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
        Outcome::Corrupt { detail } => findings.complaint(format!("{name} got a wrong reply: {detail}")),
    }
}

fn median_connect_time(context: &Context<'_>) -> Option<u64> {
    let mut times: Vec<_> = context.answered().filter_map(|(_, c)| c.exchange.timings.connect_us).collect();
    times.sort_unstable();
    times.get(times.len() / 2).copied()
}

/// Per case the opening packets on the client's link.
struct Opened<'a> {
    cases: Vec<Opening<'a>>,
}

#[derive(Clone, Default)]
struct Opening<'a> {
    syn: Option<(usize, &'a Tcp)>,
    syn_acks: Vec<(usize, &'a Tcp)>,
    /// Acknowledgement numbers that the client sent.
    acks: Vec<u32>,
}

impl<'a> Opened<'a> {
    fn of(context: &Context<'a>) -> Self {
        let mut cases = vec![Opening::default(); context.cases.len()];
        for packet in &context.packets {
            let opening = &mut cases[packet.tag.exchange];
            let Some((index, tcp)) = on_client_link(context, packet) else { continue };
            match packet.kind {
                Kind::Syn if packet.tag.side == Side::Request => {
                    opening.syn = opening.syn.or(Some((index, tcp)))
                }
                Kind::SynAck if packet.tag.side == Side::Reply => opening.syn_acks.push((index, tcp)),
                _ if packet.tag.side == Side::Request && tcp.flags.has(TcpFlags::ACK) => {
                    opening.acks.push(tcp.ack);
                }
                _ => {}
            }
        }
        Self { cases }
    }

    fn judge(&self, findings: &mut Findings, context: &Context<'_>, index: usize) {
        let (opening, name) = (&self.cases[index], context.cases[index].name());
        let Some((syn_index, syn)) = opening.syn else {
            return findings.absent(context, Place::Client, None, format!("{name} sent no SYN"));
        };
        let right = opening.syn_acks.iter().find(|(_, t)| t.ack == syn.seq.wrapping_add(1));
        let Some((reply_index, reply)) = right else {
            return match opening.syn_acks.first() {
                Some((wrong, _)) => {
                    findings.offence(*wrong, format!("{name}: SYN-ACK acknowledges another SYN"));
                }
                None => {
                    let why = format!("{name}: no SYN-ACK reached the client");
                    findings.absent(context, Place::Client, Some(syn_index), why);
                }
            };
        };
        let first_ack = reply.seq.wrapping_add(1);
        if !opening.acks.iter().any(|ack| ack.wrapping_sub(first_ack) < u32::MAX / 2) {
            let why = format!("{name}: the client never acknowledged the SYN-ACK");
            findings.absent(context, Place::Client, Some(*reply_index), why);
        }
    }
}

/// A TCP packet where the client's link sees it: sent by the client, or received by it.
fn on_client_link<'a>(context: &Context<'a>, packet: &LogicalPacket) -> Option<(usize, &'a Tcp)> {
    let direction = match packet.tag.side {
        Side::Request => Direction::Out,
        Side::Reply => Direction::In,
    };
    let index = context.at(packet, Place::Client, direction)?;
    Some((index, context.captured(index).frame.tcp()?))
}
