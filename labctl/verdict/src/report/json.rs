//! The JSON form, `labctl.verify/v1`.

use super::Report;

/// The report as one JSON object over several lines, with a newline at its end.
pub fn render(report: &Report) -> String {
    // Only maps with keys that are no strings and failing `Serialize` implementations can fail; here are neither.
    let mut text = serde_json::to_string_pretty(report).unwrap_or_default();
    text.push('\n');
    text
}
