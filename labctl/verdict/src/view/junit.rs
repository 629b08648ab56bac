//! The JUnit form: one test suite per run, one test case per check. A failed check is a `failure`, an
//! inconclusive one an `error`, as is a set-up that failed, so that CI never takes either for green.

use std::fmt::Write;

use super::{Report, SetupFailure, details};
use crate::result::{CheckResult, Status};

/// The report as a JUnit XML document.
pub fn render(report: &Report) -> String {
    let mut suite = Suite {
        name: &report.lab,
        tests: report.checks.len(),
        failures: report.count(Status::Fail),
        errors: report.count(Status::Inconclusive),
        skipped: report.count(Status::Skip),
        duration_ms: report.duration_ms,
        body: String::new(),
    };
    suite.properties(&[
        ("mode", report.mode.to_string()),
        ("provider", report.source()),
        ("run", report.run.clone()),
        ("verdict", report.verdict.to_string()),
    ]);
    for check in &report.checks {
        suite.case(&report.lab, check);
    }
    suite.document()
}

/// A JUnit XML document for a run whose set-up failed: one test case, in error.
pub fn setup_failure(failure: &SetupFailure) -> String {
    let mut suite = Suite {
        name: &failure.lab,
        tests: 1,
        failures: 0,
        errors: 1,
        skipped: 0,
        duration_ms: failure.duration_ms,
        body: String::new(),
    };
    let message = failure.error.lines().next().unwrap_or_default();
    suite.open_case(&failure.lab, "set-up");
    suite.line(&format!(
        r#"      <error type="set-up" message="{}">{}</error>"#,
        escape(&format!("failed to {}: {message}", failure.step)),
        escape(&failure.error)
    ));
    suite.line("    </testcase>");
    suite.document()
}

struct Suite<'a> {
    name: &'a str,
    tests: usize,
    failures: usize,
    errors: usize,
    skipped: usize,
    duration_ms: u64,
    body: String,
}

impl Suite<'_> {
    fn line(&mut self, text: &str) {
        self.body.push_str(text);
        self.body.push('\n');
    }

    fn properties(&mut self, properties: &[(&str, String)]) {
        self.line("    <properties>");
        for (name, value) in properties {
            self.line(&format!(r#"      <property name="{name}" value="{}"/>"#, escape(value)));
        }
        self.line("    </properties>");
    }

    fn open_case(&mut self, lab: &str, name: &str) {
        let (lab, name) = (escape(lab), escape(name));
        self.line(&format!(r#"    <testcase classname="labctl.{lab}" name="{name}" time="0">"#));
    }

    fn case(&mut self, lab: &str, check: &CheckResult) {
        self.open_case(lab, check.name);
        let message = escape(&check.summary);
        let text = escape(&details(check).join("\n"));
        match check.status {
            Status::Pass => self.line(&format!("      <system-out>{message}</system-out>")),
            Status::Fail => {
                self.line(&format!(r#"      <failure type="fail" message="{message}">{text}</failure>"#));
            }
            Status::Inconclusive => {
                self.line(&format!(r#"      <error type="inconclusive" message="{message}">{text}</error>"#));
            }
            Status::Skip => self.line(&format!(r#"      <skipped message="{message}"/>"#)),
        }
        self.line("    </testcase>");
    }

    fn document(self) -> String {
        let Self { name, tests, failures, errors, skipped, duration_ms, body } = self;
        let counts = format!(
            r#"tests="{tests}" failures="{failures}" errors="{errors}" skipped="{skipped}" time="{}.{:03}""#,
            duration_ms / 1000,
            duration_ms % 1000
        );
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = writeln!(out, r#"<?xml version="1.0" encoding="UTF-8"?>"#);
        let _ = writeln!(out, r#"<testsuites name="labctl" {counts}>"#);
        let _ = writeln!(out, r#"  <testsuite name="{}" {counts}>"#, escape(name));
        let _ = write!(out, "{body}  </testsuite>\n</testsuites>\n");
        out
    }
}

/// Text for an element or a double-quoted attribute. Characters that XML 1.0 cannot hold (section 2.2) become
/// U+FFFD.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\t' | '\n' => out.push(c),
            '\r' => out.push_str("&#13;"),
            '\u{0}'..'\u{20}' | '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::escape;

    #[test]
    fn nothing_escapes_the_escape() {
        assert_eq!(escape("a<b> & \"c\"\u{1}\r\n"), "a&lt;b&gt; &amp; &quot;c&quot;\u{fffd}&#13;\n");
    }
}
