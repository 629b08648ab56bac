//! The JSON form, `labctl.verify/v1`.
//!
//! A check's `evidence` holds its numbers by name, then `offences` (how many), `first` (the packets that reports show),
//! `doubts`, and `expected` and `found` where the lab file expects something.

use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};

use super::Report;
use crate::result::{CheckResult, Offence, SHOWN};

/// The report as one JSON object over several lines, with a newline at its end.
pub fn render(report: &Report) -> String {
    // Only maps with keys that are no strings and failing `Serialize` implementations can fail; here are neither.
    let mut text = serde_json::to_string_pretty(report).unwrap_or_default();
    text.push('\n');
    text
}

impl Serialize for CheckResult {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct View<'a> {
            name: &'a str,
            status: crate::result::Status,
            summary: &'a str,
            evidence: Value,
        }
        let Self { name, status, summary, .. } = self;
        View { name, status: *status, summary, evidence: evidence(self) }.serialize(serializer)
    }
}

fn evidence(check: &CheckResult) -> Value {
    let mut map = Map::new();
    for number in &check.numbers {
        map.insert(number.name.to_owned(), json!(number.value));
    }
    if !check.offences.is_empty() {
        map.insert("offences".to_owned(), json!(check.offences.len()));
        map.insert("first".to_owned(), check.offences.iter().take(SHOWN).map(offence).collect());
    }
    if !check.doubts.is_empty() {
        map.insert("doubts".to_owned(), json!(check.doubts));
    }
    if let Some(expectation) = &check.expectation {
        map.insert("expected".to_owned(), json!(expectation.expected));
        map.insert("found".to_owned(), json!(expectation.found));
    }
    Value::Object(map)
}

fn offence(offence: &Offence) -> Value {
    match (&offence.shown, offence.packet) {
        (Some(shown), Some(packet)) => json!({
            "why": offence.why,
            "packet": packet,
            "point": shown.point,
            "direction": shown.direction,
            "time_ns": shown.time_ns,
            "text": shown.text,
        }),
        _ => json!({ "why": offence.why }),
    }
}
