//! What the provider says when it cannot.

use std::fs;
use std::process::{Command, Stdio};

use labctl_provider::{Cancel, LabState, LockError, NetnsProvider, PreflightError, StateError, UpError};

use crate::cleanup::wait_for_line;
use crate::isolation::{isolated, run_dir};
use crate::lab::{down, ignore, machine, plan, plan_with, provider, run, up};

#[test]
fn second_command_on_a_lab_waits_for_nobody() {
    isolated("refusals::second_command_on_a_lab_waits_for_nobody", || {
        let provider = provider();
        let before = machine();
        let lock = provider.lock("dsr").expect("free");
        let error = provider.lock("dsr").expect_err("it is taken");
        let own = std::process::id();
        assert!(matches!(&error, LockError::Busy { pid, .. } if *pid == Some(own)), "{error:?}");
        assert_eq!(error.to_string(), format!("lab dsr is in use by process {own}; wait for it or end it"));
        drop(provider.lock("other").expect("another lab is free"));
        drop(lock);

        fs::create_dir_all(run_dir().join("dsr")).expect("it can be made");
        let other = Command::new("flock")
            .arg(run_dir().join("dsr"))
            .args(["sh", "-c", "echo ready; read end || true"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut other = other.expect("flock starts");
        wait_for_line(&mut other);
        let error = provider.lock("dsr").expect_err("it is taken");
        assert!(matches!(error, LockError::Busy { pid, .. } if pid == Some(other.id())), "{error:?}");
        drop(other.stdin.take());
        assert!(other.wait().expect("flock ends").success());
        drop(provider.lock("dsr").expect("free again"));
        assert_eq!(machine(), before);
    });
}

#[test]
fn bad_lab_names_are_refused() {
    isolated("refusals::bad_lab_names_are_refused", || {
        let provider = provider();
        for bad in ["", "../etc", "DSR", "a b"] {
            let error = provider.lock(bad).expect_err("it is no name");
            assert!(matches!(error, LockError::Name { .. }), "{bad}: {error:?}");
            assert!(provider.find(bad).expect("it is no lab").is_none());
        }
    });
}

#[test]
fn foreign_namespace_is_left_alone() {
    isolated("refusals::foreign_namespace_is_left_alone", || {
        let provider = provider();
        run("ip", &["netns", "add", "labctl-dsr-worker"]);
        let before = machine();
        let error = provider.preflight(&plan("dsr")).expect_err("the name is taken");
        assert_eq!(
            error.to_string(),
            "name a namespace labctl-dsr-worker: somebody else has it; rename the lab or run `ip netns del labctl-dsr-worker`"
        );
        let lock = provider.lock("dsr").expect("free");
        let error = provider.up(&lock, &plan("dsr"), &Cancel::new(), &mut ignore).expect_err("taken");
        assert!(matches!(error, UpError::Preflight(PreflightError::NameTaken { .. })), "{error:?}");
        provider.down(lock, &mut ignore).expect_err("nothing of the lab is up");
        assert!(provider.gc().expect("the machine can be searched").swept.is_empty());
        assert_eq!(machine(), before);
    });
}

#[test]
fn labs_that_share_a_prefix_are_told_apart() {
    isolated("refusals::labs_that_share_a_prefix_are_told_apart", || {
        let provider = provider();
        let before = machine();
        // Lab `a` with a node `b-worker` would name the same namespace as lab `a-b`.
        let mut short = plan("a");
        short.nodes[1].name = "b-worker".to_owned();
        short.traffic.via = "b-worker".to_owned();
        let long = up(&provider, &plan("a-b"));
        let error = provider.preflight(&short).expect_err("the name is taken");
        assert!(error.to_string().contains("lab a-b has it"), "{error}");
        // Otherwise the two live side by side, and one's end is not the other's.
        up(&provider, &plan("a"));
        down(&provider, "a");
        assert_eq!(long.check(), []);
        up(&provider, &plan("a"));
        down(&provider, "a-b");
        assert_eq!(provider.find("a").expect("it is up").map(|l| l.check()), Some(vec![]));
        down(&provider, "a");
        assert_eq!(machine(), before);
    });
}

#[test]
fn another_run_directory_is_foreign() {
    isolated("refusals::another_run_directory_is_foreign", || {
        let before = machine();
        let (mine, theirs) = (provider(), NetnsProvider::in_dir("/run/elsewhere"));
        let lab = up(&theirs, &plan("dsr"));
        assert!(mine.list().expect("it can be read").is_empty());
        assert!(mine.gc().expect("it can be searched").swept.is_empty());
        let error = mine.preflight(&plan("dsr")).expect_err("the names are taken");
        assert!(error.to_string().contains("lab dsr of /run/elsewhere has it"), "{error}");
        mine.down(mine.lock("dsr").expect("free"), &mut ignore).expect_err("it is not mine");
        assert_eq!(lab.check(), []);
        down(&theirs, "dsr");
        assert_eq!(machine(), before);
    });
}

#[test]
fn two_hosts_of_one_name_are_refused() {
    isolated("refusals::two_hosts_of_one_name_are_refused", || {
        let mut plan = plan("dsr");
        plan.nodes[0].name = "switch".to_owned();
        let error = provider().preflight(&plan).expect_err("the switch has that name");
        assert_eq!(
            error.to_string(),
            "plan the lab: there are two of host switch; rename one in the lab file"
        );
    });
}

#[test]
fn incomplete_and_unreadable_labs_are_told() {
    isolated("refusals::incomplete_and_unreadable_labs_are_told", || {
        let provider = provider();
        let before = machine();
        up(&provider, &plan("dsr"));
        let file = &run_dir().join("dsr/lab.json");
        let text = fs::read_to_string(file).expect("it can be read");
        assert!(text.starts_with(r#"{"schema":"labctl.lab/v1","lab":"dsr","#), "{text}");

        fs::write(file, text.replace(r#""phase":"ready""#, r#""phase":"creating""#))
            .expect("it can be written");
        assert!(matches!(provider.find("dsr"), Err(StateError::Incomplete { .. })));
        let lock = provider.lock("dsr").expect("free");
        assert!(matches!(provider.find("dsr"), Err(StateError::Busy { pid: Some(_), .. })));
        drop(lock);

        fs::write(file, "{").expect("it can be written");
        assert!(matches!(provider.find("dsr"), Err(StateError::Unreadable { .. })));
        let listed = provider.list().expect("the folder can be read");
        assert!(matches!(listed[0].state, LabState::Unreadable { .. }), "{listed:?}");
        // The marks inside the namespaces are enough.
        down(&provider, "dsr");
        assert_eq!(machine(), before);
    });
}

#[test]
fn without_privileges_it_says_so() {
    isolated("refusals::without_privileges_it_says_so", || {
        let provider = provider();
        up(&provider, &plan("dsr"));
        nix::unistd::setuid(nix::unistd::Uid::from_raw(65534)).expect("root may become nobody");
        let error = provider.preflight(&plan("other")).expect_err("nobody has no powers");
        assert!(matches!(error, PreflightError::Privileges { missing: "CAP_NET_ADMIN" }), "{error:?}");
        assert!(matches!(provider.lock("other"), Err(LockError::Io { .. })));
        // Looking needs none.
        assert_eq!(provider.find("dsr").expect("it can be read").expect("it is up").nodes().count(), 3);
    });
}

#[test]
fn full_disk_is_undone() {
    isolated("refusals::full_disk_is_undone", || {
        fs::create_dir("/run/full").expect("it can be made");
        run("mount", &["-t", "tmpfs", "-o", "size=8k,nr_inodes=100", "full", "/run/full"]);
        fs::write("/run/full/ballast", [0; 8192]).expect("it just fits");
        let before = machine();
        let provider = NetnsProvider::in_dir("/run/full/labctl");
        let lock = provider.lock("dsr").expect("a folder needs no block");
        let error =
            provider.up(&lock, &plan("dsr"), &Cancel::new(), &mut ignore).expect_err("the disk is full");
        assert!(error.to_string().contains("No space left"), "{error}");
        drop(lock);
        assert_eq!(machine(), before);
    });
}

#[test]
fn missing_tool_is_named() {
    isolated("refusals::missing_tool_is_named", || {
        // Hide every nft of the machine behind an empty file that is no regular one.
        for path in ["/usr/sbin/nft", "/sbin/nft", "/usr/local/sbin/nft", "/usr/bin/nft"] {
            if fs::exists(path).unwrap_or(false) {
                run("mount", &["--bind", "/dev/null", path]);
            }
        }
        let faults = serde_json::json!([{"fault": {"name": "forward-drop"}, "on": "all"}]);
        let error = provider().preflight(&plan_with("dsr", faults)).expect_err("nft is hidden");
        assert_eq!(
            error.to_string(),
            "set up fault forward-drop: `nft` is not installed; try apt-get install nftables"
        );
    });
}
