//! The form for terminals: a line per check, and below one that did not pass the first packets that show why.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::{Report, details};
use crate::result::{CheckResult, Status, Verdict};

/// Offending packets below a check; the JSON form has more.
const SHOWN: usize = 3;

/// The report as text, with ANSI colours if wanted.
pub fn render(report: &Report, colour: bool) -> String {
    let mut out = String::new();
    for note in &report.inferred {
        // Writing to a string cannot fail.
        let _ = writeln!(out, " {note}");
    }
    if !report.inferred.is_empty() {
        out.push('\n');
    }
    let width = report.checks.iter().map(|c| c.name.len()).max().unwrap_or(0);
    let mut told = BTreeSet::new();
    for check in &report.checks {
        let _ = writeln!(out, " {} {:width$}  {}", tag(check.status, colour), check.name, check.summary);
        if matches!(check.status, Status::Fail | Status::Inconclusive) {
            below(&mut out, check, &mut told);
        }
    }
    for note in &report.notes {
        let _ = writeln!(out, " note: {note}");
    }
    let seconds = (report.duration_ms / 1000, report.duration_ms % 1000 / 100);
    let verdict = paint(verdict_status(report.verdict), &report.verdict.to_string(), colour);
    let word = match &report.vouched_for[..] {
        [] => String::new(),
        hosts => format!(", by the word of --complete for {}", hosts.join(", ")),
    };
    let _ = writeln!(out, "{verdict}{word}: {}, {}.{} s", report.tally(), seconds.0, seconds.1);
    out
}

/// The lines behind a result; reasons that stand under an earlier check already are not repeated.
fn below<'r>(out: &mut String, check: &'r CheckResult, told: &mut BTreeSet<&'r BTreeSet<String>>) {
    if check.offences.is_empty() && !told.insert(&check.doubts) {
        let _ = writeln!(out, "        for the reasons above");
        return;
    }
    let lines = details(check);
    for line in lines.iter().take(SHOWN) {
        let _ = writeln!(out, "        {line}");
    }
    if lines.len() > SHOWN {
        let _ = writeln!(out, "        ... and {} more lines in the JSON report", lines.len() - SHOWN);
    }
}

/// Four letters, so that names stand in a column.
fn tag(status: Status, colour: bool) -> String {
    let word = match status {
        Status::Pass => "PASS",
        Status::Fail => "FAIL",
        Status::Inconclusive => "????",
        Status::Skip => "SKIP",
    };
    paint(status, word, colour)
}

const fn verdict_status(verdict: Verdict) -> Status {
    match verdict {
        Verdict::Pass => Status::Pass,
        Verdict::Fail => Status::Fail,
        Verdict::Inconclusive => Status::Inconclusive,
    }
}

fn paint(status: Status, text: &str, colour: bool) -> String {
    if !colour {
        return text.to_owned();
    }
    let code = match status {
        Status::Pass => 32,
        Status::Fail => 31,
        Status::Inconclusive => 33,
        Status::Skip => 2,
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}
