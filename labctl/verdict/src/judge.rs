//! Runs the checks and weighs their results.

use std::fmt;

use labctl_model::ExpectedStatus;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::check;
use crate::context::Context;
use crate::evidence::Evidence;

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
}

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CheckResult {
    /// Name, one of [`labctl_model::CHECK_NAMES`].
    pub name: &'static str,
    /// Status, against what the lab file expects.
    pub status: Status,
    /// One sentence with numbers.
    pub summary: String,
    /// Numbers, and the first offending packets with point, time and text.
    pub evidence: Value,
    /// All offences, for packet comments.
    #[serde(skip)]
    pub offences: Vec<Offence>,
}

/// All results and what follows from them.
#[derive(Clone, Debug, PartialEq)]
pub struct Judgement {
    /// The answer.
    pub verdict: Verdict,
    /// One result per check, in the order of [`labctl_model::CHECK_NAMES`].
    pub checks: Vec<CheckResult>,
}

/// Judges a run by every check, against the expectations of its mode and of its lab file.
pub fn judge(evidence: &Evidence) -> Judgement {
    let context = Context::new(evidence);
    let checks: Vec<_> = check::ALL
        .iter()
        .map(|(name, check)| expected(check(&context).result(name, &context), evidence))
        .collect();
    Judgement { verdict: weigh(&checks), checks }
}

/// Turns a result round if the lab file expects the check to fail.
fn expected(mut result: CheckResult, evidence: &Evidence) -> CheckResult {
    if evidence.plan.expect.get(result.name) != Some(&ExpectedStatus::Fail) {
        return result;
    }
    result.evidence["expected"] = json!("fail");
    result.evidence["found"] = json!(result.status);
    match result.status {
        Status::Fail => {
            result.status = Status::Pass;
            result.summary = format!("fails as this lab expects: {}", result.summary);
        }
        Status::Pass => {
            result.status = Status::Fail;
            result.summary = format!("passes, but this lab expects it to fail: {}", result.summary);
        }
        Status::Inconclusive | Status::Skip => {}
    }
    result
}

fn weigh(checks: &[CheckResult]) -> Verdict {
    let any = |status| checks.iter().any(|c| c.status == status);
    if any(Status::Fail) {
        Verdict::Fail
    } else if any(Status::Inconclusive) || !any(Status::Pass) {
        Verdict::Inconclusive
    } else {
        Verdict::Pass
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
