//! The forms of a report.

#[expect(dead_code, reason = "this binary needs only part of the lab")]
mod lab;

use lab::{Paper, Step, What, plan};
use labctl_model::Mode;
use labctl_verdict::{Report, SetupFailure, judge, view};

/// A run of which one check fails and one is inconclusive, and whose texts need escaping.
fn sample() -> Report {
    let leak = |s: &mut Step| {
        if s.left_home() && s.what == What::Data {
            s.packet.src = "10.0.1.108:8080".parse().unwrap();
        }
    };
    let mut evidence = Paper::new(plan(Mode::Dsr)).spoil(leak).run();
    evidence.capture.points[2].dropped = Some(1);
    let mut report = Report::new(&evidence.plan, "run-0007", 2134, judge(&evidence));
    report.lab = "a<b".to_owned();
    report
}

#[test]
fn json_has_the_promised_shape() {
    let text = view::json::render(&sample());
    let keys = ["schema", "lab", "mode", "provider", "verdict", "duration_ms", "run", "checks"];
    let places: Vec<_> = keys.iter().map(|k| text.find(&format!("\n  \"{k}\": ")).unwrap()).collect();
    assert!(places.is_sorted(), "the fields are in another order");
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["schema"], "labctl.verify/v1");
    assert_eq!(value["mode"], "dsr");
    assert_eq!(value["provider"], "netns");
    assert_eq!(value["verdict"], "fail");
    assert_eq!(value["duration_ms"], 2134);
    assert_eq!(value["checks"].as_array().unwrap().len(), 19);
    let source = &value["checks"][4];
    assert_eq!((&source["name"], &source["status"]), (&"reply-source".into(), &"fail".into()));
    assert_eq!(source.as_object().unwrap().keys().count(), 4);
    assert!(
        source["evidence"]["first"][0]["text"].as_str().unwrap().contains("10.0.1.108.8080 > 172.18.0.1")
    );
}

#[test]
fn junit_is_well_formed_and_counts() {
    let text = view::junit::render(&sample());
    well_formed(&text);
    assert!(text.starts_with("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"labctl\" tests=\"19\" failures=\"1\" errors=\""));
    assert!(text.contains("time=\"2.134\""));
    assert!(text.contains("classname=\"labctl.a&lt;b\" name=\"reply-source\""));
    assert!(
        text.contains(
            "<failure type=\"fail\" message=\"worker2 sent a reply of tcp request 1 with pod address"
        )
    );
    assert!(text.contains(
        "<error type=\"inconclusive\" message=\"cannot be said: the capture on worker:eth0 lost 1 packets"
    ));
    let failure = SetupFailure {
        lab: "dsr".into(),
        step: "start captures".into(),
        error: "open <eth0>: no such device\nrun `labctl doctor`".into(),
        duration_ms: 12,
    };
    let text = view::junit::setup_failure(&failure);
    well_formed(&text);
    assert!(text.contains("tests=\"1\" failures=\"0\" errors=\"1\" skipped=\"0\" time=\"0.012\""));
    assert!(text.contains("message=\"failed to start captures: open &lt;eth0&gt;: no such device\""));
}

/// Elements nest and text holds no markup: enough of XML for what is written here.
fn well_formed(text: &str) {
    let body = text.strip_prefix("<?xml version=\"1.0\" encoding=\"UTF-8\"?>").unwrap();
    let mut open = Vec::new();
    for piece in body.split('<').skip(1) {
        let (tag, rest) = piece.split_once('>').expect("a tag that does not end");
        assert!(!rest.contains('>'), "unescaped text: {rest}");
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name));
        } else if !tag.ends_with('/') {
            open.push(tag.split(' ').next().unwrap());
        }
        assert_eq!(tag.matches('"').count() % 2, 0, "unescaped quote: {tag}");
    }
    assert!(open.is_empty(), "never closed: {open:?}");
}

#[test]
fn text_stands_in_columns() {
    let text = view::text::render(&sample(), false);
    let lines: Vec<_> = text.lines().collect();
    assert!(
        lines[0].starts_with(" PASS handshake     2 connections opened, 2 datagrams, every request answered")
    );
    assert!(
        text.contains(
            "\n FAIL reply-source  worker2 sent a reply of tcp request 1 with pod address 10.0.1.108 to the client ("
        )
    );
    assert!(text.contains(
        "\n        worker2 sent a reply of tcp request 1 with pod address 10.0.1.108 to the client: 10:00:00."
    ));
    assert!(text.contains("\n ???? return-path   cannot be said: the capture on worker:eth0 lost 1 packets"));
    assert!(lines.last().unwrap().starts_with("fail: ") && lines.last().unwrap().ends_with(", 2.1 s"));
    assert!(!text.contains('\x1b'));
    assert!(view::text::render(&sample(), true).contains("\x1b[31mFAIL\x1b[0m reply-source"));
}

#[test]
fn github_commands_stay_on_their_line() {
    let text = view::github::commands(&sample());
    assert!(text.lines().all(|l| l.starts_with("::error title=")
        || l.starts_with("::warning title=")
        || l.starts_with("::notice title=")));
    assert!(text.contains("::error title=labctl a<b%3A reply-source fail::worker2 sent"));
    assert!(text.lines().last().unwrap().starts_with("::notice title=labctl a<b%3A fail::"));
    let summary = view::github::summary(&sample());
    assert!(summary.contains("| reply-source | fail | worker2 sent"));
    assert!(summary.contains("\n**reply-source**\n\n```text\n"));
    let failure = SetupFailure { lab: "x".into(), step: "y".into(), error: "a\nb".into(), duration_ms: 0 };
    assert_eq!(view::github::setup_failure(&failure), "::error title=labctl x%3A failed to y::a%0Ab\n");
}
