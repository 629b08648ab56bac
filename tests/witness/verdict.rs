//! `labctl verify` and its JSON, as any other program would read it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::Value;

/// Names of the checks in the order of the report; design and users both count on them.
pub(crate) const CHECKS: [&str; 19] = [
    "handshake",
    "backend",
    "client-ip",
    "return-path",
    "reply-source",
    "carrier",
    "request-path",
    "ttl",
    "l2-source",
    "unaltered",
    "checksums",
    "mtu",
    "icmp",
    "no-resets",
    "loop",
    "conservation",
    "no-strangers",
    "spread",
    "affinity",
];

/// Checks that have nothing to say where one backend serves everybody.
const ABOUT_SEVERAL: [&str; 2] = ["spread", "affinity"];

/// One run of `verify`.
pub(crate) struct Verdict {
    output: Output,
    json: Value,
    /// The run's folder.
    pub(crate) evidence: PathBuf,
}

impl Verdict {
    /// What `labctl verify --format json`, run in `folder`, said about a lab.
    pub(crate) fn of(output: Output, folder: &Path, lab: &str) -> Self {
        let json: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("verify gave no JSON ({error}):\n{}", text(&output)));
        assert_eq!(json["schema"], "labctl.verify/v1");
        let run = json["run"].as_str().expect("the run's name");
        let evidence = folder.join(".labctl").join(lab).join(run);
        Self { output, json, evidence }
    }

    /// The whole report.
    pub(crate) fn json(&self) -> &Value {
        &self.json
    }

    /// The exit code.
    pub(crate) fn code(&self) -> i32 {
        self.output.status.code().expect("verify ended by itself")
    }

    /// The word of the whole run.
    pub(crate) fn word(&self) -> &str {
        self.json()["verdict"].as_str().expect("a verdict")
    }

    /// Names of the checks with this status.
    pub(crate) fn checks(&self, status: &str) -> BTreeSet<&str> {
        let checks = self.json["checks"].as_array().expect("checks").iter();
        let name = |check: &'_ Value| check["status"] == status;
        checks.filter(|check| name(check)).map(|check| check["name"].as_str().expect("a name")).collect()
    }

    /// The evidence of one check.
    pub(crate) fn evidence_of(&self, check: &str) -> &Value {
        let checks = self.json["checks"].as_array().expect("checks");
        let found = checks.iter().find(|c| c["name"] == check).unwrap_or_else(|| panic!("no check {check}"));
        &found["evidence"]
    }

    /// Panics unless every check passed, but for these, which say why they do not apply, and those about several backends.
    pub(crate) fn assert_passes(&self, skipped: &[&str]) {
        assert_eq!((self.code(), self.word()), (0, "pass"), "{}", self.said());
        let names: Vec<_> =
            self.json["checks"].as_array().expect("checks").iter().map(|c| c["name"].as_str()).collect();
        assert_eq!(names, CHECKS.map(Some));
        let all = self.checks("skip");
        let told: BTreeSet<_> = all.iter().copied().filter(|check| !ABOUT_SEVERAL.contains(check)).collect();
        assert_eq!(told, skipped.iter().copied().collect(), "{}", self.said());
        assert_eq!(self.checks("pass").len() + all.len(), CHECKS.len(), "{}", self.said());
        for check in self.json["checks"].as_array().expect("checks") {
            assert!(!check["summary"].as_str().expect("a summary").is_empty(), "{check}");
        }
    }

    /// Everything that was said.
    pub(crate) fn said(&self) -> String {
        text(&self.output)
    }
}

/// Both streams of a finished command.
pub(crate) fn text(output: &Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    format!("status {}\n--- stdout\n{out}\n--- stderr\n{err}", output.status)
}
