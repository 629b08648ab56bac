//! ttl: each node that forwards a packet takes one from its TTL, and nobody else does: client to ingress node 0,
//! behind it 1, in a pod of another node 2; replies likewise. The same rule in every mode; the ways differ.

use std::collections::BTreeMap;

use labctl_wire::Side;
use labctl_wire::hop::Kind;

use crate::context::Context;
use crate::findings::Findings;

pub(super) fn check(context: &Context<'_>) -> Findings {
    if !anything_forwarded(context) {
        return Findings::skip(
            "every backend runs in the network of the node that was asked: nothing is forwarded",
        );
    }
    let mut findings = Findings::default();
    let mut judged: BTreeMap<u8, u32> = BTreeMap::new();
    for packet in context.packets.iter().filter(|p| p.kind != Kind::Icmp) {
        let case = &context.cases[packet.tag.exchange];
        let Some(origin) = case.way(packet.tag.side).first().copied() else { continue };
        let sent = context.at(packet, origin.place, origin.direction).and_then(|i| ttl(context, i));
        let (Some(sent), false) = (sent, case.refusal) else { continue };
        for sighting in &packet.sightings {
            let Some(place) = context.places[sighting.point] else { continue };
            let hops = case.hops(packet.tag.side, place, sighting.direction);
            let (Some(hops), Some(found)) = (hops, ttl(context, sighting.packet)) else { continue };
            *judged.entry(hops).or_default() += 1;
            let expected = sent.saturating_sub(hops);
            if found != expected {
                let name = context.place_name(place);
                findings.offence(
                    sighting.packet,
                    format!("{}: ttl {found} at {name}, expected {expected} after {hops} hops", case.name()),
                );
            }
        }
    }
    let forwarded: u32 = judged.iter().filter(|(hops, _)| **hops > 0).map(|(_, count)| count).sum();
    if forwarded == 0 {
        findings.doubt("no packet was seen before and after a hop");
    }
    findings.number("forwarded", forwarded);
    let most = judged.keys().max().copied().unwrap_or(0);
    findings.claim(format!("{forwarded} sightings behind a node, one less per node, {most} at most"));
    findings
}

/// Whether any way has a hop, as far as backends are known.
fn anything_forwarded(context: &Context<'_>) -> bool {
    let known: Vec<_> = context.answered().filter(|(_, c)| c.backend.is_some()).collect();
    known.is_empty() || known.iter().any(|(_, c)| c.way(Side::Request).iter().any(|w| w.hops > 0))
}

fn ttl(context: &Context<'_>, packet: usize) -> Option<u8> {
    context.captured(packet).frame.ipv4().map(|ip| ip.ttl)
}
