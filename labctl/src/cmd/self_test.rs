//! The second half of `labctl verify --self-test`: damages a passing run's evidence and says what the judge did not notice.
//!
//! Owns: spreading the work over the processors, and the score for people and programs. Does not own: the damages
//! ([`labctl_verdict::damage`]).

use std::fmt::Write;
use std::thread;

use labctl_verdict::Evidence;
use labctl_verdict::damage::{self, HARMLESS, NotPassed, Score};

use crate::exit::Exit;
use crate::failure::Failure;
use crate::ui::Ui;

/// Damages of one seed: enough that reading the evidence once more costs nothing, few enough to share out.
const SHARE: u64 = 250;

/// Damages the evidence `count` times. The same evidence gives the same damages.
///
/// # Errors
/// [`Exit::Inconclusive`] for a run that does not pass: nothing can be said of the judge by damaging it.
pub(super) fn run(evidence: &Evidence, count: u32, ui: &Ui) -> Result<Score, Failure> {
    ui.say(&format!("damaging the evidence {count} times"));
    let workers = thread::available_parallelism().map_or(1, usize::from) as u64;
    let shares = u64::from(count).div_ceil(SHARE);
    let work = |worker: u64| {
        let mut score = Score::default();
        for share in (worker..shares).step_by(workers as usize) {
            let left = u64::from(count) - share * SHARE;
            score.add(damage::test(evidence, left.min(SHARE), share + 1)?);
        }
        Ok(score)
    };
    let parts: Vec<Result<Score, NotPassed>> = thread::scope(|scope| {
        let running: Vec<_> = (0..workers).map(|worker| scope.spawn(move || work(worker))).collect();
        let join = |t: thread::ScopedJoinHandle<'_, _>| {
            t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        running.into_iter().map(join).collect()
    });
    let mut score = Score::default();
    for part in parts {
        score.add(part.map_err(|error| Failure::because(Exit::Inconclusive, "test the judge", &error))?);
    }
    Ok(score)
}

/// The score as one JSON object.
pub(super) fn json(score: &Score) -> String {
    // Only maps with keys that are no strings can fail, and numbers are written as such.
    let mut text = serde_json::to_string_pretty(score).unwrap_or_default();
    text.push('\n');
    text
}

/// The score as a table, what was missed below it, and why the rest need not be noticed.
pub(super) fn text(score: &Score) -> String {
    let mut out = String::new();
    let width = score.kinds.keys().map(|kind| kind.len()).max().unwrap_or(0);
    // Writing to a string cannot fail.
    let _ = writeln!(out, "{:width$}   tried  noticed  harmless  missed", "damage");
    for (kind, row) in &score.kinds {
        let harmless: u64 = row.harmless.values().sum();
        let _ = writeln!(
            out,
            "{kind:width$}  {:6}  {:7}  {harmless:8}  {:6}",
            row.tried, row.noticed, row.missed
        );
    }
    for example in score.kinds.values().flat_map(|row| &row.examples) {
        let _ = writeln!(out, "missed: {example}");
    }
    for (number, (what, why)) in HARMLESS.iter().enumerate() {
        let count: u64 = score.kinds.values().filter_map(|row| row.harmless.get(&number)).sum();
        if count > 0 {
            let _ = writeln!(out, "harmless: {what}, {count} times: {why}");
        }
    }
    let (tried, missed) = (score.tried(), score.missed());
    let share = if tried == 0 { 0.0 } else { 100.0 * (tried - missed) as f64 / tried as f64 };
    let _ = writeln!(out, "judge: {tried} damages, {missed} missed, score {share:.3} %");
    out
}
