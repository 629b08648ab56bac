//! The clocks of captures from different machines.
//!
//! Owns: bringing captures into one order by cause and effect: a packet is at its next place after it was at the last. Does
//! not own: the way ([`crate::scene`]). Each packet seen at two places says by how much their clocks may differ at most;
//! offsets that satisfy all of them are a shortest-path problem (difference constraints, Bellman-Ford). Where there are
//! none, time orders nothing, and the judge is told so.

use std::collections::BTreeMap;

use crate::evidence::{Evidence, Origin};
use crate::story::Story;

/// Shifts the captures of each host so that every packet arrives after it left.
pub(super) fn align(evidence: &mut Evidence, notes: &mut Vec<String>) {
    let hosts = hosts(evidence);
    let slack = slack(evidence, &hosts);
    if slack.values().all(|slack| *slack >= 0) {
        if let Some(why) = without_clock(evidence) {
            unordered(evidence, why, notes);
        }
        return;
    }
    match offsets(&slack, hosts.iter().max().map_or(0, |last| last + 1)) {
        Some(offsets) => shift(evidence, &hosts, &offsets, notes),
        None => {
            let why =
                "the captures' clocks contradict each other: packets arrive before they leave".to_owned();
            unordered(evidence, why, notes);
        }
    }
}

/// Which host each point is on, by number. Points of one host share a clock.
fn hosts(evidence: &Evidence) -> Vec<usize> {
    let mut numbers: BTreeMap<&str, usize> = BTreeMap::new();
    let mut of = Vec::with_capacity(evidence.capture.points.len());
    for info in &evidence.capture.points {
        let next = numbers.len();
        of.push(*numbers.entry(info.point.host.as_str()).or_insert(next));
    }
    of
}

/// For each two hosts of which a packet passed one after the other: the shortest time between, ns.
fn slack(evidence: &Evidence, hosts: &[usize]) -> BTreeMap<(usize, usize), i128> {
    let story = Story::new(evidence);
    let mut slack: BTreeMap<(usize, usize), i128> = BTreeMap::new();
    for packet in &story.packets {
        let on_way: Vec<_> = packet.sightings.iter().filter(|s| s.stage.is_some()).collect();
        for pair in on_way.windows(2) {
            let [before, after] = [pair[0], pair[1]].map(|s| story.captured(s.packet));
            let (from, to) = (hosts[before.point], hosts[after.point]);
            if pair[0].stage < pair[1].stage && from != to {
                let took = i128::from(after.ts_ns) - i128::from(before.ts_ns);
                slack.entry((from, to)).and_modify(|known| *known = took.min(*known)).or_insert(took);
            }
        }
    }
    slack
}

/// What to add to each host's clock; `None` if nothing helps.
fn offsets(slack: &BTreeMap<(usize, usize), i128>, hosts: usize) -> Option<Vec<i128>> {
    // after + o(to) >= before + o(from), so o(from) <= o(to) + slack.
    let mut offsets = vec![0; hosts];
    // What still changes after as many rounds as there are hosts goes round in a circle: the clocks contradict each other.
    for _ in 0..=hosts {
        let mut changed = false;
        for ((from, to), slack) in slack {
            let most = offsets[*to] + slack;
            if offsets[*from] > most {
                offsets[*from] = most;
                changed = true;
            }
        }
        if !changed {
            return Some(offsets);
        }
    }
    None
}

fn shift(evidence: &mut Evidence, hosts: &[usize], offsets: &[i128], notes: &mut Vec<String>) {
    // All clocks go forward, so that no time becomes negative.
    let least = offsets.iter().min().copied().unwrap_or(0);
    let forward: Vec<u64> =
        offsets.iter().map(|offset| u64::try_from(offset - least).unwrap_or(u64::MAX)).collect();
    for packet in evidence.capture.packets_mut() {
        packet.ts_ns = packet.ts_ns.saturating_add(forward[hosts[packet.point]]);
    }
    evidence.capture.sort();
    for (index, info) in evidence.capture.points.iter().enumerate() {
        let by = forward[hosts[index]];
        let first = hosts.iter().position(|host| *host == hosts[index]) == Some(index);
        if by > 0 && first {
            let micros = by / 1_000;
            notes.push(format!(
                "the clock of {} is set {micros} us forward: packets arrived there before they had left",
                info.point.host
            ));
        }
    }
}

/// Why times order nothing although none contradicts: a capture of several packets has but one time.
fn without_clock(evidence: &Evidence) -> Option<String> {
    let capture = &evidence.capture;
    let stuck = (0..capture.points.len()).find(|point| {
        let mut times = capture.packets().iter().filter(|p| p.point == *point).map(|p| p.ts_ns);
        let Some(first) = times.next() else { return false };
        let mut more = times.peekable();
        more.peek().is_some() && more.all(|time| time == first)
    })?;
    Some(format!("all packets on {} have the same time", capture.points[stuck].point))
}

fn unordered(evidence: &mut Evidence, why: String, notes: &mut Vec<String>) {
    notes.push(why.clone());
    if let Origin::Files(vouched) = &mut evidence.origin {
        vouched.unordered = Some(why);
    }
}
