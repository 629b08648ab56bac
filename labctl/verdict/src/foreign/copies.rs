//! Packets that are there more than once because they were captured more than once.
//!
//! Owns: telling copies from repetitions. Does not own: loops of the network, which are the judge's matter: there a packet comes
//! again with another TTL or after some time. A mirror port, `any` without interfaces, or a file given twice makes copies
//! that differ in nothing.

use std::collections::BTreeMap;

use labctl_wire::CaptureFile;
use rustc_hash::{FxHashMap, FxHashSet};

use super::InferError;

/// Copies come one right after the other; a sender waits longer before it repeats itself.
const AT_ONCE_NS: u64 = 1_000_000;

/// A file and its copy, or a part of it.
pub(super) fn of_files(capture: &CaptureFile) -> Result<(), InferError> {
    let of = |point: usize| -> FxHashSet<(u64, &[u8])> {
        let packets = capture.packets().iter().enumerate().filter(move |(_, p)| p.point == point);
        packets.map(|(index, p)| (p.ts_ns, capture.data(index))).collect()
    };
    let sets: Vec<_> = (0..capture.points.len()).map(of).collect();
    for second in 0..sets.len() {
        // One packet may be at both ends of a link at the same microsecond, but not each time.
        let is_copy = |first: &usize| {
            let (a, b) = (&sets[*first], &sets[second]);
            let (less, more) = if a.len() < b.len() { (a, b) } else { (b, a) };
            less.len() > 1 && less.is_subset(more) && has_clock(less)
        };
        if let Some(first) = (0..second).find(is_copy) {
            let name = |point: usize| capture.points[point].point.to_string();
            let place = "one interface: they hold the same packets at the same times".to_owned();
            return Err(InferError::SamePlace { first: name(first), second: name(second), place });
        }
    }
    Ok(())
}

/// Whether times tell packets apart.
fn has_clock(packets: &FxHashSet<(u64, &[u8])>) -> bool {
    let first = packets.iter().next().map(|(at, _)| *at);
    packets.iter().any(|(at, _)| Some(*at) != first)
}

/// Takes copies out of each capture; how many each point had.
pub(super) fn take_out(capture: &mut CaptureFile) -> BTreeMap<usize, usize> {
    let mut counts = BTreeMap::new();
    // When each packet was seen last at its point.
    let mut seen: FxHashMap<(usize, &[u8]), u64> = FxHashMap::default();
    let mut copies = FxHashSet::default();
    for (index, packet) in capture.packets().iter().enumerate() {
        // Without a clock nothing tells when a sender repeats itself.
        let before = seen.insert((packet.point, capture.data(index)), packet.ts_ns);
        if before.is_some_and(|at| packet.ts_ns.abs_diff(at) < AT_ONCE_NS) {
            *counts.entry(packet.point).or_default() += 1;
            copies.insert(index);
        }
    }
    capture.retain(|_, index| !copies.contains(&index));
    counts
}
