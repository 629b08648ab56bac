//! Damages evidence to test the judge: whatever survives as a pass is a hole, or stands in the list of harmless ones with
//! its reason ([`harmless`]).
//!
//! Owns: what can be damaged, one place at a time, and the score. Does not own: judging. Each damage keeps the counts of
//! the captures true, as if that had really happened; that counts which do not fit are noticed is a kind of its own.

mod apply;
mod harmless;

use std::collections::BTreeMap;

use serde::Serialize;

use crate::evidence::Evidence;
use crate::judge::judge;
use crate::result::Verdict;
use crate::story::{Role, Story};

pub use harmless::HARMLESS;

/// Name and version of the JSON form of a [`Score`].
pub const SCHEMA: &str = "labctl.self-test/v1";

/// Damages that went unnoticed and are shown, per kind.
const SHOWN: usize = 3;

/// How one kind of damage fared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Damages done.
    pub tried: u64,
    /// Of these, damages that turned the verdict.
    pub noticed: u64,
    /// Damages that did not and need not, by the reason's number in [`HARMLESS`].
    pub harmless: BTreeMap<usize, u64>,
    /// Damages that did not and should have.
    pub missed: u64,
    /// The first of them.
    pub examples: Vec<String>,
}

/// How the judge fared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Score {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// By kind of damage.
    pub kinds: BTreeMap<&'static str, Row>,
}

impl Score {
    /// Damages that went unnoticed.
    pub fn missed(&self) -> u64 {
        self.kinds.values().map(|row| row.missed).sum()
    }

    /// Damages done.
    pub fn tried(&self) -> u64 {
        self.kinds.values().map(|row| row.tried).sum()
    }

    /// Adds what another part of the same test found.
    pub fn add(&mut self, other: Self) {
        self.schema = SCHEMA;
        for (kind, row) in other.kinds {
            let mine = self.kinds.entry(kind).or_default();
            mine.tried += row.tried;
            mine.noticed += row.noticed;
            mine.missed += row.missed;
            row.harmless.into_iter().for_each(|(why, n)| *mine.harmless.entry(why).or_default() += n);
            mine.examples.extend(row.examples);
            mine.examples.truncate(SHOWN);
        }
    }
}

/// The evidence was no passing run, so nothing can be said of the judge by damaging it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the run that is to be damaged must pass undamaged, and it is {0}")]
pub struct NotPassed(pub Verdict);

/// Numbers that look random and are the same each time (SplitMix64).
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        datapath_types::mix(self.0)
    }

    /// Below `end`, which is not 0.
    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

/// What the damages know of the run: whose each packet is.
pub(crate) struct Target<'a> {
    evidence: &'a Evidence,
    roles: Vec<Role>,
    /// Packets of exchanges that were seen at two places at least, with whether they are the first or last of these.
    ends: BTreeMap<usize, (bool, bool)>,
}

impl<'a> Target<'a> {
    fn new(evidence: &'a Evidence) -> Self {
        let story = Story::new(evidence);
        let mut ends = BTreeMap::new();
        for packet in story.packets.iter().filter(|p| p.sightings.len() > 1) {
            for (i, sighting) in packet.sightings.iter().enumerate() {
                ends.insert(sighting.packet, (i == 0, i + 1 == packet.sightings.len()));
            }
        }
        Self { evidence, roles: story.roles, ends }
    }
}

/// Damages a passing run `count` times, as `seed` says, and judges each damage.
///
/// # Errors
/// [`NotPassed`].
pub fn test(evidence: &Evidence, count: u64, seed: u64) -> Result<Score, NotPassed> {
    let verdict = judge(evidence).verdict;
    if verdict != Verdict::Pass {
        return Err(NotPassed(verdict));
    }
    let target = Target::new(evidence);
    let mut score = Score { schema: SCHEMA, ..Score::default() };
    for number in 0..count {
        let mut random = Random(datapath_types::mix(seed ^ datapath_types::mix(number)));
        let mut damaged = evidence.clone();
        let Some(damage) = apply::damage(&target, &mut damaged, &mut random) else { continue };
        let row = score.kinds.entry(damage.kind).or_default();
        row.tried += 1;
        if judge(&damaged).verdict != Verdict::Pass {
            row.noticed += 1;
        } else if let Some(why) = harmless::reason(&target, &damage) {
            *row.harmless.entry(why).or_default() += 1;
        } else {
            row.missed += 1;
            if row.examples.len() < SHOWN {
                row.examples.push(damage.text);
            }
        }
    }
    Ok(score)
}
