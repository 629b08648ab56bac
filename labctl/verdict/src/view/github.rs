//! The form for GitHub Actions: workflow commands that annotate the run, and Markdown for its summary page.

use std::fmt::Write;

use super::{Report, SetupFailure, details};
use crate::result::Status;

/// Workflow commands: `::error` for each check that failed, `::warning` for each inconclusive one, `::notice` for
/// the verdict.
pub fn commands(report: &Report) -> String {
    let mut out = String::new();
    for check in &report.checks {
        let command = match check.status {
            Status::Fail => "error",
            Status::Inconclusive => "warning",
            Status::Pass | Status::Skip => continue,
        };
        let mut lines = vec![check.summary.clone()];
        lines.extend(details(check));
        // Writing to a string cannot fail.
        let title = property(&format!("labctl {}: {} {}", report.lab, check.name, check.status));
        let _ = writeln!(out, "::{command} title={title}::{}", data(&lines.join("\n")));
    }
    let title = property(&format!("labctl {}: {}", report.lab, report.verdict));
    let _ = writeln!(out, "::notice title={title}::{}", data(&report.tally()));
    out
}

/// The workflow command for a run whose set-up failed.
pub fn setup_failure(failure: &SetupFailure) -> String {
    let title = property(&format!("labctl {}: failed to {}", failure.lab, failure.step));
    format!("::error title={title}::{}\n", data(&failure.error))
}

/// Markdown for `$GITHUB_STEP_SUMMARY`.
pub fn summary(report: &Report) -> String {
    let mut out = String::new();
    let Report { lab, mode, verdict, run, duration_ms, .. } = report;
    let provider = report.source();
    // Writing to a string cannot fail.
    let _ = writeln!(out, "### labctl verify {lab}: {verdict}\n");
    let _ = writeln!(out, "Mode {mode}, provider {provider}, {run}, {duration_ms} ms: {}.\n", report.tally());
    let _ = writeln!(out, "| check | status | |\n|---|---|---|");
    for check in &report.checks {
        let _ = writeln!(out, "| {} | {} | {} |", check.name, check.status, cell(&check.summary));
    }
    for check in report.checks.iter().filter(|c| matches!(c.status, Status::Fail | Status::Inconclusive)) {
        // A fence longer than any that the text can hold: packets' text has no backticks.
        let _ = writeln!(
            out,
            "\n**{}**\n\n```text\n{}\n```",
            check.name,
            details(check).join("\n").replace('`', "'")
        );
    }
    out
}

/// The message of a workflow command.
fn data(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// A property of a workflow command.
fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

/// A cell of a Markdown table.
fn cell(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('|', "\\|").replace('\n', " ")
}
