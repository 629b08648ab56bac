//! ttl: each node that forwards a packet takes one from its TTL, and nobody else does: client to ingress node 0,
//! behind it 1, in a pod of another node 2; replies likewise. The same rule in every mode; the ways differ. Some load
//! balancers take nothing at the node that was asked: then that is said.

use std::collections::BTreeMap;

use crate::proof::{Findings, Footing};
use crate::scene::case::Side;
use crate::story::{Field, LogicalPacket, Story};

pub(super) fn check(story: &Story<'_>) -> Findings {
    if !anything_forwarded(story) {
        return Findings::skip(
            "every backend runs in the network of the node that was asked: nothing is forwarded",
        );
    }
    let mut findings = Findings::resting(Footing::Seen);
    // Sightings by the hops before them.
    let mut judged: BTreeMap<u8, u64> = BTreeMap::new();
    let mut kept = 0;
    for packet in story.packets.iter().filter(|p| !story.cases[p.of].refusal) {
        kept += count(story, packet, &mut judged);
    }
    for difference in story.differences.iter().filter(|d| d.field == Field::Ttl) {
        let (name, place) = (story.cases[difference.of].name(), story.place_name(difference.place));
        let (found, expected) = (&difference.found, &difference.expected);
        findings.offence(difference.packet, format!("{name}: ttl {found} at {place}, expected {expected}"));
    }
    let forwarded: u64 = judged.iter().filter(|(hops, _)| **hops > 0).map(|(_, count)| count).sum();
    findings.number("forwarded", forwarded);
    if story.habits.may_keep_ttl {
        findings.number("kept_at_ingress", kept);
    }
    let most = judged.keys().max().copied().unwrap_or(0);
    let text = if kept > 0 {
        format!(
            "{forwarded} sightings behind a node, one less per node, but {kept} that the node asked let keep theirs"
        )
    } else {
        format!("{forwarded} sightings behind a node, one less per node, {most} at most")
    };
    findings.state(forwarded, "packet before and after a hop", text);
    findings
}

/// Counts a packet's sightings; returns how many kept their TTL at the node that was asked.
fn count(story: &Story<'_>, packet: &LogicalPacket, judged: &mut BTreeMap<u8, u64>) -> u64 {
    let way = story.way(packet.of, packet.side);
    let ttl = |index: usize| story.headers(index).ipv4().map(|ip| ip.ttl);
    let mut sightings = packet.sightings.iter().filter_map(|s| Some((way[s.stage?], s.packet)));
    let Some((first, index)) = sightings.next() else { return 0 };
    *judged.entry(first.hops).or_default() += 1;
    let sent = if story.habits.may_keep_ttl { ttl(index) } else { None };
    let mut kept = 0;
    for (point, index) in sightings {
        *judged.entry(point.hops.saturating_sub(first.hops)).or_default() += 1;
        if let (Some(sent), Some(found)) = (sent, sent.and_then(|_| ttl(index))) {
            kept += u64::from(sent.saturating_sub(found) < point.hops - first.hops);
        }
    }
    kept
}

/// Whether any way has a hop, as far as backends are known.
fn anything_forwarded(story: &Story<'_>) -> bool {
    let known: Vec<_> = story.answered().filter(|(_, c)| c.backend.is_some()).collect();
    known.is_empty() || known.iter().any(|(of, _)| story.way(*of, Side::Request).iter().any(|w| w.hops > 0))
}
