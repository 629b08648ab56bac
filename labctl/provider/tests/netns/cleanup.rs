//! What is made is removed, whatever happens in between.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::{Child, Command};

use labctl_provider::{Cancel, DownError, Host, StepEvent, UpError};

use crate::isolation::{Propagation, isolated, isolated_with, run_dir};
use crate::lab::{down, ignore, machine, plan, plan_with, provider, run, unmount, up};

#[test]
fn twenty_cycles_leave_nothing() {
    isolated("cleanup::twenty_cycles_leave_nothing", twenty_cycles);
}

#[test]
fn twenty_cycles_leave_nothing_under_systemd() {
    isolated_with("cleanup::twenty_cycles_leave_nothing_under_systemd", Propagation::Shared, twenty_cycles);
}

fn twenty_cycles() {
    let before = machine();
    let provider = provider();
    for _ in 0..20 {
        up(&provider, &plan("dsr"));
        assert_ne!(machine(), before);
        down(&provider, "dsr");
        assert_eq!(machine(), before);
    }
}

#[test]
fn copied_mount_namespace_holds_nothing() {
    isolated("cleanup::copied_mount_namespace_holds_nothing", || {
        let provider = provider();
        up(&provider, &plan("dsr"));
        // As a service manager or a container does it: mounts are copied and follow ours.
        let mut copy = Command::new("unshare")
            .args(["--mount", "--propagation", "slave", "sh", "-c", "echo ready; read end"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("unshare starts");
        wait_for_line(&mut copy);
        let held = || fs::read_to_string(format!("/proc/{}/mounts", copy.id())).expect("mounts can be read");
        assert!(held().contains("labctl-dsr-worker"), "the copy has the names");
        down(&provider, "dsr");
        assert!(!held().contains("labctl-dsr"), "the copy still holds names: {}", held());
        end(copy);
    });
}

/// Every event of a whole `up`.
fn events() -> usize {
    let provider = provider();
    let mut count = 0;
    let lock = provider.lock("dsr").expect("free");
    let faults = serde_json::json!([{"fault": {"name": "rp-filter-strict"}, "on": "all"}]);
    provider.up(&lock, &plan_with("dsr", faults), &Cancel::new(), &mut |_| count += 1).expect("it comes up");
    provider.down(lock, &mut ignore).expect("it goes away");
    count
}

#[test]
fn interrupted_up_leaves_nothing() {
    isolated("cleanup::interrupted_up_leaves_nothing", || {
        let before = machine();
        let provider = provider();
        for stop in 1..=events() {
            let (cancel, mut seen) = (Cancel::new(), 0);
            let lock = provider.lock("dsr").expect("free");
            let result = provider.up(&lock, &plan("dsr"), &cancel, &mut |_| {
                seen += 1;
                if seen == stop {
                    cancel.cancel();
                }
            });
            if seen < stop {
                // The fault that `events` counted is not in this plan.
                provider.down(lock, &mut ignore).expect("it goes away");
                continue;
            }
            assert!(matches!(result, Err(UpError::Cancelled)), "event {stop}: {result:?}");
            drop(lock);
            assert_eq!(machine(), before, "after event {stop}");
        }
    });
}

#[test]
fn panic_leaves_nothing() {
    isolated("cleanup::panic_leaves_nothing", || {
        let before = machine();
        let provider = provider();
        for stop in (1..events()).step_by(3) {
            let mut seen = 0;
            let lock = provider.lock("dsr").expect("free");
            let result = catch_unwind(AssertUnwindSafe(|| {
                let _ = provider.up(&lock, &plan("dsr"), &Cancel::new(), &mut |_| {
                    seen += 1;
                    if seen == stop {
                        // Without the message that a panic of its own would print.
                        resume_unwind(Box::new("on purpose"));
                    }
                });
            }));
            if result.is_ok() {
                provider.down(lock, &mut ignore).expect("it goes away");
                continue;
            }
            drop(lock);
            assert_eq!(machine(), before, "after event {stop}");
        }
    });
}

#[test]
fn refused_step_leaves_nothing() {
    isolated("cleanup::refused_step_leaves_nothing", || {
        let before = machine();
        let provider = provider();
        // The kernel takes no route for a network with host bits, so the third host's batch fails half-way.
        let mut plan = plan("dsr");
        plan.mtu = 40;
        let lock = provider.lock("dsr").expect("free");
        let error = provider.up(&lock, &plan, &Cancel::new(), &mut ignore).expect_err("MTU 40 is refused");
        assert!(matches!(error, UpError::Netlink { .. }), "{error:?}");
        assert!(error.to_string().contains("set up host"), "{error}");
        drop(lock);
        assert_eq!(machine(), before);
    });
}

/// A process whose words are those of a role: `sh node serve --lab <lab>`, with a child of its own.
pub(crate) fn role(host: &Host, dir: &std::path::Path) -> Child {
    fs::write(dir.join("node"), "sleep 60 & echo ready; wait\n").expect("the script can be written");
    let mut child = host
        .command("sh")
        .current_dir(dir)
        .args(["node", "serve", "--lab", &host.lab])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("sh starts");
    wait_for_line(&mut child);
    child
}

pub(crate) fn wait_for_line(child: &mut Child) {
    use std::io::{BufRead, BufReader};
    let stdout = child.stdout.as_mut().expect("it was piped");
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line).expect("the child speaks");
    assert_eq!(line, "ready\n");
}

pub(crate) fn end(mut child: Child) {
    drop(child.stdin.take());
    let _ = child.kill();
    child.wait().expect("the child can be reaped");
}

#[test]
fn own_processes_end_and_foreign_ones_stay() {
    isolated("cleanup::own_processes_end_and_foreign_ones_stay", || {
        let provider = provider();
        let dir = tempfile::tempdir().expect("a folder can be made");
        let before = machine();
        let lab = up(&provider, &plan("dsr"));
        let other = up(&provider, &plan("other"));
        let mut server = role(lab.host("web-1").expect("it is up"), dir.path());
        let neighbour = role(other.host("web-1").expect("it is up"), dir.path());
        let shell = lab.client().command("sleep").arg("60").spawn().expect("sleep starts");

        let lock = provider.lock("dsr").expect("free");
        let report = provider.down(lock, &mut ignore).expect("it goes away");
        let ended: Vec<_> = report.processes.iter().map(|p| p.command.as_str()).collect();
        assert!(ended.contains(&"sh node serve --lab dsr") && ended.contains(&"sleep 60"), "{ended:?}");
        assert_eq!(ended.len(), 2);
        assert_eq!(report.spared.iter().map(|p| p.pid).collect::<Vec<_>>(), [shell.id()]);
        assert!(!server.wait().expect("it can be reaped").success());
        for alive in [&shell, &neighbour] {
            assert!(fs::exists(format!("/proc/{}/ns/net", alive.id())).expect("/proc can be read"));
        }
        down(&provider, "other");
        assert_eq!(machine(), before);
        end(shell);
        end(neighbour);
    });
}

#[test]
fn gc_removes_what_is_broken_and_keeps_the_rest() {
    isolated("cleanup::gc_removes_what_is_broken_and_keeps_the_rest", || {
        let provider = provider();
        let before = machine();
        up(&provider, &plan("healthy"));
        up(&provider, &plan("hurt"));
        up(&provider, &plan("lost"));
        run("ip", &["netns", "del", "labctl-hurt-worker"]);
        unmount(&run_dir().join("lost/bpf"));
        fs::remove_dir_all(run_dir().join("lost")).expect("it can be removed");
        run("ip", &["netns", "add", "labctl-of-a-user"]);
        let busy = provider.lock("busy").expect("free");

        let report = provider.gc().expect("the machine can be searched");
        assert_eq!(report.kept, ["healthy"]);
        assert_eq!(report.busy, [("busy".to_owned(), Some(std::process::id()))]);
        let swept: Vec<_> = report.swept.iter().map(|s| (s.lab.as_str(), s.reason.as_str())).collect();
        assert_eq!(
            swept,
            [
                ("hurt", "host worker has lost its namespace"),
                ("lost", "the command that made or removed it was killed"),
            ]
        );
        for sweep in &report.swept {
            assert!(sweep.outcome.as_ref().is_ok_and(|r| r.namespaces.len() >= 6), "{sweep:?}");
        }
        let names = run("ip", &["netns", "list"]);
        assert!(names.contains("labctl-of-a-user"), "{names}");
        assert_eq!(names.lines().filter(|n| n.contains("hurt") || n.contains("lost")).count(), 0, "{names}");
        drop(busy);
        down(&provider, "healthy");
        run("ip", &["netns", "del", "labctl-of-a-user"]);
        provider.gc().expect("the machine can be searched");
        assert_eq!(machine(), before);
    });
}

#[test]
fn gc_finds_processes_without_names_and_files() {
    isolated("cleanup::gc_finds_processes_without_names_and_files", || {
        let provider = provider();
        let dir = tempfile::tempdir().expect("a folder can be made");
        let lab = up(&provider, &plan("dsr"));
        let mut server = role(lab.host("web-1").expect("it is up"), dir.path());
        for host in lab.hosts() {
            run("ip", &["netns", "del", host.namespace()]);
        }
        unmount(&run_dir().join("dsr/bpf"));
        fs::remove_dir_all(run_dir()).expect("it can be removed");
        let report = provider.gc().expect("the machine can be searched");
        assert_eq!(report.swept.len(), 1, "{report:?}");
        assert!(!server.wait().expect("it can be reaped").success());
    });
}

#[test]
fn down_of_nothing_says_so() {
    isolated("cleanup::down_of_nothing_says_so", || {
        let provider = provider();
        let before = machine();
        let error =
            provider.down(provider.lock("dsr").expect("free"), &mut ignore).expect_err("nothing is up");
        assert!(matches!(error, DownError::NotUp { .. }), "{error:?}");
        assert_eq!(machine(), before);
    });
}

#[test]
fn steps_are_told_in_order() {
    isolated("cleanup::steps_are_told_in_order", || {
        let provider = provider();
        let lock = provider.lock("dsr").expect("free");
        let mut steps = Vec::new();
        let mut note = |event| match event {
            StepEvent::Ended(step, _) => steps.push(step.to_string()),
            StepEvent::Began(_) | StepEvent::Did(..) => {}
        };
        provider.up(&lock, &plan("dsr"), &Cancel::new(), &mut note).expect("it comes up");
        provider.down(lock, &mut note).expect("it goes away");
        assert_eq!(
            steps,
            [
                "prepare",
                "namespaces",
                "links",
                "addresses",
                "offloads",
                "bpf file system",
                "links ready",
                "state",
                "processes",
                "namespaces",
                "files"
            ]
        );
    });
}
