//! Runs the checks, asks the captures whether they bear what was found, and weighs the results.

use std::collections::BTreeMap;

use labctl_model::ExpectedStatus;

use crate::check;
use crate::evidence::Evidence;
use crate::parallel::in_pieces;
use crate::proof::Weighed;
use crate::result::{CheckResult, Expectation, Judgement, Offence, SHOWN, Shown, Status, Verdict};
use crate::story::Story;
use crate::view::comments;
use crate::words::plural;

/// A judgement and the comments for the packets of its capture; both come of one reading of the evidence.
#[derive(Debug)]
pub struct Explained {
    /// The results.
    pub judgement: Judgement,
    /// Comments by packet index.
    pub comments: BTreeMap<usize, String>,
}

/// Judges a run by every check, against the expectations of its mode and of its lab file.
pub fn judge(evidence: &Evidence) -> Judgement {
    judge_story(&Story::new(evidence))
}

/// As [`judge`], with a comment for each packet that has a place in the run.
pub fn judge_and_explain(evidence: &Evidence) -> Explained {
    let story = Story::new(evidence);
    let judgement = judge_story(&story);
    let comments = comments::of(&story, &judgement);
    Explained { judgement, comments }
}

fn judge_story(story: &Story<'_>) -> Judgement {
    let by_sight = story.is_foreign();
    let result = |(name, check): &(&'static str, check::Check)| {
        let mut result = expected(conclude(name, check(story).weigh(story), by_sight), story.evidence);
        show(story, &mut result);
        result
    };
    // Checks know nothing of each other.
    let checks = in_pieces(story.roles.len(), check::ALL.len(), |range| {
        check::ALL[range].iter().map(result).collect()
    });
    Judgement { verdict: weigh(&checks), checks, notes: story.fitness.notes.clone() }
}

/// Turns the first offending packets into lines.
fn show(story: &Story<'_>, result: &mut CheckResult) {
    for offence in result.offences.iter_mut().take(SHOWN) {
        offence.shown = offence.packet.map(|packet| {
            let captured = story.captured(packet);
            Shown {
                point: story.point_name(packet),
                direction: captured.direction,
                time_ns: captured.ts_ns,
                text: story.line(packet),
            }
        });
    }
}

/// What the evidence says of one check. What was seen counts whatever else is in doubt.
/// Of captures that somebody else took it is said how far they show it: more is seldom to be had.
fn conclude(name: &'static str, found: Weighed, by_sight: bool) -> CheckResult {
    let Weighed { skipped, statement, counted, numbers, mut offences, mut doubts } = found;
    let (status, summary) = match (skipped, &offences[..], doubts.first()) {
        (Some(why), ..) => {
            (offences, doubts) = Default::default();
            (Status::Skip, why.to_owned())
        }
        (None, [], None) => (Status::Pass, statement),
        (None, [], Some(doubt)) => {
            let more = more(doubts.len() - 1, "reason");
            let seen = if by_sight && counted {
                format!("as far as seen, {statement}; more ")
            } else {
                String::new()
            };
            (Status::Inconclusive, format!("{seen}cannot be said: {doubt}{more}"))
        }
        (None, [first, rest @ ..], _) => {
            (Status::Fail, format!("{}{}", first.why, more(rest.len(), "offence")))
        }
    };
    CheckResult { name, status, summary, numbers, offences, doubts, expectation: None }
}

/// ` (and 3 more offences)`, or nothing.
fn more(count: usize, noun: &str) -> String {
    if count == 0 { String::new() } else { format!(" (and {})", plural(count, &format!("more {noun}"))) }
}

/// Holds a result against what the lab file expects: an expected failure that comes is a pass, and what does not come,
/// is skipped or cannot be said is not what was expected.
fn expected(mut result: CheckResult, evidence: &Evidence) -> CheckResult {
    let Some(expected) = evidence.plan.expect.get(result.name).copied() else { return result };
    let found = result.status;
    result.expectation = Some(Expectation { expected, found });
    let unmet =
        |word: &str, summary: &str| format!("{word}, but this lab expects it to {expected}: {summary}");
    match (expected, found) {
        (ExpectedStatus::Fail, Status::Fail) => {
            result.status = Status::Pass;
            result.summary = format!("fails as this lab expects: {}", result.summary);
        }
        (ExpectedStatus::Fail, Status::Pass) => {
            result.status = Status::Fail;
            result.summary = unmet("passes", &result.summary);
            result.offences.push(Offence::new(None, result.summary.clone()));
        }
        (ExpectedStatus::Fail | ExpectedStatus::Pass, Status::Skip) => {
            result.status = Status::Fail;
            result.summary = unmet("does not apply", &result.summary);
            result.offences.push(Offence::new(None, result.summary.clone()));
        }
        (ExpectedStatus::Pass, Status::Pass | Status::Fail | Status::Inconclusive)
        | (ExpectedStatus::Fail, Status::Inconclusive) => {}
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
