//! The views of a judgement: the report of a run in its forms (JSON, JUnit XML, text for terminals, GitHub's workflow
//! commands) and the comments of its packets.
//!
//! Owns: the forms. Does not own: where they are written. All of them are made from the same [`Report`], so none
//! can say anything else than the others.

pub(crate) mod comments;
pub mod github;
pub mod json;
pub mod junit;
pub mod text;

use labctl_model::{Mode, Plan, ProviderKind};
use serde::Serialize;

use crate::evidence::Evidence;
use crate::result::{CheckResult, Judgement, Offence, SHOWN, Status, Verdict};

/// Name and version of the JSON form.
pub const SCHEMA: &str = "labctl.verify/v1";

/// A judged run. Serializes to the JSON form; the order of the fields is part of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// Lab name.
    pub lab: String,
    /// Forwarding mode.
    pub mode: Mode,
    /// Where the lab runs; absent for captures that somebody else took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<ProviderKind>,
    /// The answer.
    pub verdict: Verdict,
    /// From the start of the run to the verdict.
    pub duration_ms: u64,
    /// Name of the run, `run-0007`, or of the files.
    pub run: String,
    /// What was worked out from the packets of somebody else's captures, a sentence each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inferred: Vec<String>,
    /// Hosts whose captures are whole by somebody's word alone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub vouched_for: Vec<String>,
    /// What was noticed of the hosts, a sentence each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Results, in the order of [`labctl_model::CHECK_NAMES`].
    pub checks: Vec<CheckResult>,
}

impl Report {
    /// The report of a judged run.
    pub fn new(plan: &Plan, run: &str, duration_ms: u64, judgement: Judgement) -> Self {
        Self {
            schema: SCHEMA,
            lab: plan.lab.clone(),
            mode: plan.mode,
            provider: Some(plan.provider),
            verdict: judgement.verdict,
            duration_ms,
            run: run.to_owned(),
            inferred: Vec::new(),
            vouched_for: Vec::new(),
            notes: judgement.notes,
            checks: judgement.checks,
        }
    }

    /// The report of captures that somebody else took.
    pub fn of_files(
        evidence: &Evidence,
        files: &str,
        duration_ms: u64,
        inferred: Vec<String>,
        judgement: Judgement,
    ) -> Self {
        let vouched = evidence.origin.files();
        let vouched_for = vouched.map_or_else(Vec::new, |v| v.complete.iter().cloned().collect());
        Self {
            provider: None,
            inferred,
            vouched_for,
            ..Self::new(&evidence.plan, files, duration_ms, judgement)
        }
    }

    /// What the packets come from: a provider's name, or `files`.
    fn source(&self) -> String {
        self.provider.map_or_else(|| "files".to_owned(), |provider| provider.to_string())
    }

    /// How many checks ended so.
    pub fn count(&self, status: Status) -> usize {
        self.checks.iter().filter(|c| c.status == status).count()
    }

    /// `11 passed, 1 failed`; statuses that nobody has are left out.
    pub fn tally(&self) -> String {
        let words = [
            (Status::Pass, "passed"),
            (Status::Fail, "failed"),
            (Status::Inconclusive, "inconclusive"),
            (Status::Skip, "skipped"),
        ];
        let parts = words.iter().map(|(status, word)| (self.count(*status), word)).filter(|(n, _)| *n > 0);
        parts.map(|(n, word)| format!("{n} {word}")).collect::<Vec<_>>().join(", ")
    }
}

/// A run that never came to be judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetupFailure {
    /// Lab name.
    pub lab: String,
    /// What was being done: `start captures`.
    pub step: String,
    /// What went wrong and what to do, in one or more lines.
    pub error: String,
    /// Until then.
    pub duration_ms: u64,
}

/// The lines behind a result: why, and the packet that shows it.
fn details(check: &CheckResult) -> Vec<String> {
    let line = |offence: &Offence| match &offence.shown {
        Some(shown) => format!("{}: {}", offence.why, shown.text),
        None => offence.why.clone(),
    };
    let offences = check.offences.iter().take(SHOWN).map(line);
    offences.chain(check.doubts.iter().cloned()).collect()
}
