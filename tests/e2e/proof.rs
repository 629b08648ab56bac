//! What makes a pass a proof: every node is asked, kept evidence gives the same verdict, damaged evidence is noticed, and
//! nothing passes because of what the lab happens to use.

use std::collections::BTreeSet;

use crate::lab::Lab;
use crate::root::need_root;
use crate::verdict::text;

const MODES: [&str; 4] = ["dsr", "snat", "hybrid", "local"];

#[test]
fn a_kept_run_is_judged_as_it_was_and_its_damage_is_noticed() {
    need_root!();
    for mode in MODES {
        let lab = Lab::up(mode);
        let live = lab.verify();
        live.assert_passes(&[]);
        let folder = live.evidence.to_str().expect("a readable path");
        let again = lab.labctl(&["verify", "--from", folder, "--format", "json"]);
        let kept = std::fs::read_to_string(live.evidence.join("results.json")).expect("results are kept");
        assert_eq!(String::from_utf8_lossy(&again.stdout), kept, "{mode}: {}", text(&again));
        assert_eq!(again.status.code(), Some(0), "{mode}: {}", text(&again));
        let tested = lab.labctl(&["verify", "--from", folder, "--self-test=400"]);
        assert_eq!(tested.status.code(), Some(0), "{mode}: {}", text(&tested));
        assert!(
            String::from_utf8_lossy(&tested.stdout).contains("0 missed, score 100.000 %"),
            "{}",
            text(&tested)
        );
    }
}

#[test]
fn kept_evidence_of_a_failure_fails_again_and_tests_no_judge() {
    need_root!();
    let lab = Lab::up("dsr");
    dead_port(&lab);
    let live = lab.verify();
    let folder = live.evidence.to_str().expect("a readable path");
    let again = lab.labctl(&["verify", "--from", folder, "--format", "json"]);
    assert_eq!((live.code(), again.status.code()), (1, Some(1)), "{}", text(&again));
    let tested = lab.labctl(&["verify", "--from", folder, "--self-test"]);
    assert_eq!(tested.status.code(), Some(6), "{}", text(&tested));
    assert!(text(&tested).contains("must pass undamaged"), "{}", text(&tested));
}

/// The switch keeps the NodePort of a node that the traffic does not name from being reached.
fn dead_port(lab: &Lab) {
    let rule = "add table bridge t; add chain bridge t f { type filter hook forward priority 0; }; \
                add rule bridge t f oifname \"p-control-plane\" tcp dport 32000 drop";
    let output = lab.inside("switch", "nft").arg(rule).output().expect("nft is installed");
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn a_nodeport_that_is_dead_on_another_node_fails() {
    need_root!();
    for mode in MODES {
        let lab = Lab::up(mode);
        lab.verify().assert_passes(&[]);
        if mode == "local" {
            // No other node has a backend.
            continue;
        }
        dead_port(&lab);
        let verdict = lab.verify();
        assert!(verdict.checks("fail").contains("handshake"), "{}", verdict.said());
        assert_eq!(verdict.code(), 1, "{}", verdict.said());
        // Whoever asks one node only does not hear of it.
        let output = lab.labctl(&["verify", lab.name(), "--only-via", "--requests", "3"]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        assert!(text(&output).contains("3 connections opened, 8 datagrams"), "{}", text(&output));
    }
}

/// Canaries go to a port that nobody serves; a service may serve the one that they use first.
#[test]
fn a_service_may_use_the_canaries_port() {
    need_root!();
    let lab = Lab::new("dsr", |text| text.replace("targetPort: 8080", "targetPort: 9"));
    lab.bring_up();
    lab.verify().assert_passes(&[]);
}

#[test]
fn a_lab_whose_traffic_must_not_get_through_comes_up() {
    need_root!();
    let lab = Lab::new("dsr", |text| {
        format!("{text}\nfaults: [{{name: drop-options, on: [worker2]}}]\nexpect: {{handshake: fail}}\n")
    });
    lab.bring_up();
    let verdict = lab.verify();
    assert!(verdict.checks("pass").contains("handshake"), "{}", verdict.said());
    assert!(verdict.checks("fail").contains("conservation"), "{}", verdict.said());
}

/// Ports of the client come again: each packet belongs to the exchange of its time, wherever its source was rewritten.
#[test]
fn many_datagrams_on_few_ports_pass() {
    need_root!();
    for mode in ["snat", "hybrid"] {
        let lab = Lab::up(mode);
        for _ in 0..2 {
            let output = lab.labctl(&[
                "verify",
                lab.name(),
                "--requests",
                "0",
                "--datagrams",
                "400",
                "--format",
                "json",
            ]);
            assert_eq!(output.status.code(), Some(0), "{mode}: {}", text(&output));
        }
    }
}

#[test]
fn what_cannot_be_asked_is_refused_with_its_limit() {
    need_root!();
    let lab = Lab::up("dsr");
    for (flag, limit) in [("--requests", "20000"), ("--datagrams", "20000"), ("--bytes", "1073741824")] {
        let output = lab.labctl(&["verify", lab.name(), flag, "4294967295"]);
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
        assert!(text(&output).contains(limit), "{}", text(&output));
    }
    let nowhere = lab.labctl(&["verify", "--from", "nowhere"]);
    assert_eq!(nowhere.status.code(), Some(2), "{}", text(&nowhere));
    let said: BTreeSet<_> = ["nowhere/evidence.json", "flow.pcapng"].into();
    assert!(said.iter().all(|word| text(&nowhere).contains(word)), "{}", text(&nowhere));
}
