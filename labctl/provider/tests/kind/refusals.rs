//! What is refused before anything is made, in the words that users read. Each test runs itself again in a process
//! with an environment of its own.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use labctl_model::{Fault, FaultPlan, FaultScope};
use labctl_provider::KindProvider;

use crate::machine::{binary, docker, plan, say, state_dir};

/// Set in the second process: what the refusal must be.
const EXPECT: &str = "LABCTL_TEST_EXPECT";

/// Runs the test again with these variables; in that second process, demands the refusal.
fn refused(test: &str, variables: &[(&str, &str)], expected: &str) {
    if let Ok(expected) = env::var(EXPECT) {
        let state = state_dir();
        let refusal = KindProvider::in_dir(state.path()).preflight(&plan("t-refuse"));
        let words = refusal.expect_err("it must be refused").to_string();
        assert!(words.starts_with(&expected), "it says: {words}\nand not: {expected}");
        return;
    }
    let output = Command::new(env::current_exe().expect("this program"))
        .args(["--exact", test, "--nocapture"])
        .env(EXPECT, expected)
        .envs(variables.iter().copied())
        .output()
        .expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && output.stdout.windows(8).any(|w| w == b"1 passed"), "{said}");
}

/// A folder with a `kind` that prints this.
fn fake_kind(folder: &Path, script: &str) -> String {
    for (name, text) in [("kind", script), ("docker", "#!/bin/sh\nexit 0\n")] {
        let file = folder.join(name);
        fs::write(&file, text).expect("the folder is writable");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("the file is ours");
    }
    folder.display().to_string()
}

fn has_docker() -> bool {
    if env::var_os(EXPECT).is_some() {
        // The second process, whose PATH may have no `docker` in it: the first has looked.
        return true;
    }
    let has = docker(&["version", "--format", "{{.Server.Version}}"]).is_some();
    if !has {
        assert!(env::var_os("LABCTL_REQUIRE_KIND").is_none_or(|v| v != "1"), "no Docker engine");
        say("SKIPPED: no Docker engine");
    }
    has
}

#[test]
fn missing_docker() {
    refused(
        "refusals::missing_docker",
        &[("DOCKER_HOST", "unix:///nowhere/docker.sock")],
        "reach Docker: /nowhere/docker.sock does not exist; install Docker",
    );
}

#[test]
fn docker_that_nobody_serves() {
    let folder = state_dir();
    let socket = folder.path().join("docker.sock");
    // Bound and closed again: the file stays.
    drop(std::os::unix::net::UnixListener::bind(&socket).expect("the folder is writable"));
    let (host, expected) = (
        format!("unix://{}", socket.display()),
        format!("reach Docker at {}: nothing listens there; start it", socket.display()),
    );
    refused("refusals::docker_that_nobody_serves", &[("DOCKER_HOST", &host)], &expected);
}

/// A listener that takes connections and says nothing.
#[test]
fn docker_that_says_nothing() {
    let folder = state_dir();
    let socket = folder.path().join("docker.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("the folder is writable");
    let (host, expected) = (
        format!("unix://{}", socket.display()),
        format!("reach Docker at {}: no answer within 5 s", socket.display()),
    );
    refused("refusals::docker_that_says_nothing", &[("DOCKER_HOST", &host)], &expected);
}

#[test]
fn docker_of_another_machine() {
    refused(
        "refusals::docker_of_another_machine",
        &[("DOCKER_HOST", "tcp://192.0.2.1:2376")],
        "reach Docker at tcp://192.0.2.1:2376: labs need the engine of this machine; unset DOCKER_HOST",
    );
}

#[test]
fn missing_kind() {
    if has_docker() {
        refused(
            "refusals::missing_kind",
            &[("PATH", "/nowhere")],
            "find `kind` in PATH: it is not installed; get it from",
        );
    }
}

#[test]
fn kind_that_is_too_old() {
    if has_docker() {
        let folder = state_dir();
        let path = fake_kind(folder.path(), "#!/bin/sh\necho 'kind v0.11.1 go1.16.4 linux/amd64'\n");
        let expected = format!("use {path}/kind: it is version 0.11.1, labs need 0.20.0 or newer");
        refused("refusals::kind_that_is_too_old", &[("PATH", &path)], &expected);
    }
}

#[test]
fn kind_that_does_not_run() {
    if has_docker() {
        let folder = state_dir();
        let path = fake_kind(folder.path(), "#!/bin/sh\necho 'broken pipe organ' >&2\nexit 3\n");
        let expected = format!("run {path}/kind version: exit status: 3: broken pipe organ");
        refused("refusals::kind_that_does_not_run", &[("PATH", &path)], &expected);
    }
}

/// The test program itself is dynamic.
#[test]
fn program_that_is_not_static() {
    if has_docker() && !cfg!(target_feature = "crt-static") {
        let folder = state_dir();
        let path = fake_kind(folder.path(), "#!/bin/sh\necho 'kind v0.27.0'\n");
        let me = env::current_exe().expect("this program");
        let expected = format!("use {} in the nodes: it is dynamically linked", me.display());
        refused("refusals::program_that_is_not_static", &[("PATH", &path)], &expected);
    }
}

#[test]
fn network_name_that_is_taken() {
    if !has_docker() || !binary().exists() {
        return;
    }
    let folder = state_dir();
    let path = fake_kind(folder.path(), "#!/bin/sh\necho 'kind v0.27.0'\n");
    let first = env::var_os(EXPECT).is_none();
    if first {
        docker(&["network", "create", "labctl-t-refuse"]).expect("the name is free");
    }
    let test = || {
        refused(
            "refusals::network_name_that_is_taken",
            &[("PATH", &path), ("LABCTL_AGENT_BINARY", &binary().display().to_string())],
            "name the Docker network labctl-t-refuse: somebody else's network has it; docker network rm labctl-t-refuse, or \
             bring the lab up under another name: --name t-refuse-2",
        );
    };
    let outcome = std::panic::catch_unwind(test);
    if first {
        docker(&["network", "rm", "labctl-t-refuse"]).expect("it is ours and unused");
    }
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn faults_are_for_namespaces() {
    let mut plan = plan("t-refuse");
    plan.faults = vec![FaultPlan { fault: Fault::DropInvalid, on: FaultScope::All }];
    let state = state_dir();
    let refusal = KindProvider::in_dir(state.path()).preflight(&plan).expect_err("faults are refused");
    assert!(refusal.is_usage());
    assert_eq!(
        refusal.to_string(),
        "run lab t-refuse on kind: faults: drop-invalid can be set up in netns labs only; add --provider netns, or \
         remove it"
    );
}

#[test]
fn asking_leaves_no_trace() {
    let state = state_dir();
    let provider = KindProvider::in_dir(state.path().join("labs"));
    assert!(provider.find("t-none").expect("no folder is no error").is_none());
    assert!(provider.list().expect("no folder is no error").is_empty());
    drop(provider.lock("t-none").expect("nobody has the lock"));
    assert!(!state.path().join("labs").exists(), "the lock left a folder");
}
