//! Evidence as files: a run that travels, captures of somebody else, and what stays behind when a run is killed.

use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::lab::Lab;
use crate::root::need_root;
use crate::verdict::text;
use crate::world::{Victim, eventually};

#[test]
fn an_exported_run_is_judged_as_it_was() {
    need_root!();
    let lab = Lab::up("dsr");
    let live = lab.verify();
    live.assert_passes(&[]);
    let folder = live.evidence.to_str().expect("a readable path");
    let exported = lab.labctl(&["export", folder]);
    assert!(exported.status.success(), "{}", text(&exported));
    let archive = format!("{}-run-0001.tar.zst", lab.name());
    assert_eq!(String::from_utf8_lossy(&exported.stdout).trim(), archive);
    let kept = std::fs::read_to_string(live.evidence.join("results.json")).expect("results are kept");
    std::fs::remove_dir_all(&live.evidence).expect("the folder goes");
    let again = lab.labctl(&["verify", "--from", &archive, "--format", "json"]);
    assert_eq!(String::from_utf8_lossy(&again.stdout), kept, "{}", text(&again));
    // zstd and tar of the system agree on what it is.
    let listed = Command::new("tar").arg("--zstd").arg("-tf").arg(lab.folder().join(&archive)).output();
    let listed = listed.expect("tar is there");
    let names = String::from_utf8_lossy(&listed.stdout).into_owned();
    for name in ["evidence.json", "flow.pcapng", "results.json", "junit.xml"] {
        assert!(names.contains(name), "{names}\n{}", String::from_utf8_lossy(&listed.stderr));
    }
    // What is there is not written over, and what is no run is not packed.
    let whole = std::fs::read(lab.folder().join(&archive)).expect("the archive is there");
    let over = lab.labctl(&["export", &archive, "-o", &archive]);
    assert_eq!(over.status.code(), Some(5), "{}", text(&over));
    assert_eq!(std::fs::read(lab.folder().join(&archive)).expect("the archive is there"), whole);
    let nothing = lab.labctl(&["export", "nowhere"]);
    assert_eq!(nothing.status.code(), Some(2), "{}", text(&nothing));
    // Half of it is an error and no panic.
    std::fs::write(lab.folder().join("half.tar.zst"), &whole[..whole.len() / 2]).expect("write");
    let half = lab.labctl(&["verify", "--from", "half.tar.zst"]);
    assert_eq!(half.status.code(), Some(2), "{}", text(&half));
}

#[test]
fn the_packets_say_in_their_header_whose_they_are() {
    need_root!();
    let lab = Lab::up("snat");
    let live = lab.verify();
    let told = Command::new("capinfos").arg("-k").arg(live.evidence.join("flow.pcapng")).output();
    let told = String::from_utf8_lossy(&told.expect("capinfos is installed").stdout).into_owned();
    let expected = format!("pass: lab {}, mode snat, provider netns, run-0001, labctl ", lab.name());
    assert!(told.contains(&expected), "{told}");
    assert!(told.contains("\"schema\":\"labctl.evidence/v1\""), "{told}");
}

#[test]
fn what_tcpdump_captures_is_judged_without_a_lab() {
    need_root!();
    for mode in ["dsr", "snat", "hybrid"] {
        let lab = Lab::up(mode);
        let captures = ["client", "worker", "worker2"].map(|host| lab.tcpdump(host, "ip or ip6 or arp"));
        lab.verify().assert_passes(&[]);
        captures.into_iter().for_each(|capture| drop(capture.stop()));
        let zipped = Command::new("gzip").arg(lab.folder().join("worker.pcap")).status().expect("gzip runs");
        assert!(zipped.success());
        let judged =
            lab.labctl(&["judge", "client.pcap", "worker.pcap.gz", "worker2.pcap", "--format", "json"]);
        assert_eq!(judged.status.code(), Some(6), "{mode}: {}", text(&judged));
        let report: serde_json::Value = serde_json::from_slice(&judged.stdout).expect("JSON");
        assert_eq!(report["mode"], mode, "{}", report["inferred"]);
        for check in report["checks"].as_array().expect("checks") {
            assert_ne!(check["status"], "fail", "{mode}: {check}");
        }
    }
}

#[test]
fn a_run_that_is_killed_is_collected() {
    need_root!();
    let lab = Lab::up("dsr");
    lab.verify().assert_passes(&[]);
    let mut killed = Victim::start(lab.command(&["verify", lab.name()]));
    killed.heard("captures");
    let evidence = lab.folder().join(".labctl").join(lab.name());
    // While it works its run is nobody's to remove.
    let busy = lab.labctl(&["gc"]);
    assert!(!text(&busy).contains("verify was killed"), "{}", text(&busy));
    killed.strike_after(Duration::ZERO, Signal::SIGKILL);
    let _ = killed.end();
    assert!(evidence.join("run-0002").exists());
    let collected = eventually(|| {
        let said = text(&lab.labctl(&["gc"]));
        if evidence.join("run-0002").exists() { Err(said) } else { Ok(said) }
    });
    assert!(collected.expect("gc collects it").contains("its verify was killed"));
    lab.verify().assert_passes(&[]);
    let kept = lab.labctl(&["gc", "--keep-runs", "1"]);
    assert!(kept.status.success(), "{}", text(&kept));
    assert!(!evidence.join("run-0001").exists() && evidence.join("run-0002").exists());
}

#[test]
fn a_capture_that_is_cut_short_fails() {
    need_root!();
    let lab = Lab::up("dsr");
    for how in [&["--all"][..], &["--node", "worker"]] {
        lab.bring_up();
        let args = [&["capture", lab.name()][..], how, &["-w", "cut.pcapng", "--for", "30s"]].concat();
        let mut capture = Victim::start(lab.command(&args));
        capture.heard("capturing");
        let down = lab.labctl(&["down", lab.name()]);
        assert!(down.status.success(), "{}", text(&down));
        let ended = capture.end();
        assert_eq!(ended.code, Some(5), "{}", ended.err);
        assert!(
            ended.err.contains("ended by itself after") || ended.err.contains("ended with signal"),
            "{}",
            ended.err
        );
        let _ = std::fs::remove_file(lab.folder().join("cut.pcapng"));
    }
}
