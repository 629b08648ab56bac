//! What comes of judging: statuses, offences, results. Reports, comments and JSON are views of these types.

use std::collections::BTreeSet;
use std::fmt;

use labctl_model::ExpectedStatus;
use labctl_wire::Direction;
use serde::{Deserialize, Serialize};

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Proven.
    Pass,
    /// Disproven.
    Fail,
    /// The evidence does not suffice.
    Inconclusive,
    /// Does not apply to this lab.
    Skip,
}

/// The answer of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Every check that applies passed.
    Pass,
    /// At least one failed.
    Fail,
    /// None failed, but not all could be proven.
    Inconclusive,
}

/// A packet, or the lack of one, that a check objects to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offence {
    /// Index into the capture's packets; `None` for something that a packet does not show.
    pub packet: Option<usize>,
    /// What is wrong with it, as a fragment.
    pub why: String,
    /// The packet for people; set for the first [`SHOWN`] offences of a check, more would bury the first.
    pub shown: Option<Shown>,
}

/// Offences of one check whose packets reports show.
pub const SHOWN: usize = 10;

/// A packet as reports show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// `worker:eth0`.
    pub point: String,
    /// Direction there.
    pub direction: Direction,
    /// When, `CLOCK_REALTIME` in ns.
    pub time_ns: u64,
    /// One line, in tcpdump's manner.
    pub text: String,
}

/// A number that a check counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Number {
    /// Its name in the JSON form.
    pub name: &'static str,
    /// `None` for a median of nothing.
    pub value: Option<u64>,
}

/// What a lab file says of a check, and what would have been without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expectation {
    /// What the lab file expects.
    pub expected: ExpectedStatus,
    /// What the evidence says.
    pub found: Status,
}

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckResult {
    /// Name, one of [`labctl_model::CHECK_NAMES`].
    pub name: &'static str,
    /// Status, against what the lab file expects.
    pub status: Status,
    /// One sentence with numbers.
    pub summary: String,
    /// What was counted.
    pub numbers: Vec<Number>,
    /// All offences.
    pub offences: Vec<Offence>,
    /// Why the evidence does not suffice; each reason once.
    pub doubts: BTreeSet<String>,
    /// Set where the lab file expects something of this check.
    pub expectation: Option<Expectation>,
}

/// All results and what follows from them.
#[derive(Clone, Debug, PartialEq)]
pub struct Judgement {
    /// The answer.
    pub verdict: Verdict,
    /// One result per check, in the order of [`labctl_model::CHECK_NAMES`].
    pub checks: Vec<CheckResult>,
    /// What was noticed of the hosts, for people: `worker has an interface that up did not make: lan1`.
    pub notes: Vec<String>,
}

impl Offence {
    /// An offence that nobody has been shown yet.
    pub(crate) fn new(packet: Option<usize>, why: impl Into<String>) -> Self {
        Self { packet, why: why.into(), shown: None }
    }
}

impl Status {
    /// The word that reports use.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::Inconclusive => "inconclusive",
            Self::Skip => "skip",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::Inconclusive => "inconclusive",
        })
    }
}
