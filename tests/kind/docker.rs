//! Docker as somebody else sees it: its own command line, not the library that labctl uses.
//!
//! Owns: running `docker` and asking what there is. Does not own: any expectation.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

/// A `docker` command, not started yet.
pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = Command::new("docker");
    command.args(args).stdin(Stdio::null());
    command
}

/// Runs `docker` and returns its output, trimmed; panics with its words if it fails.
#[track_caller]
pub(crate) fn docker(args: &[&str]) -> String {
    let output = command(args).output().expect("docker runs");
    assert!(
        output.status.success(),
        "docker {}: {}{}",
        args.join(" "),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Whether `docker` succeeds.
pub(crate) fn succeeds(args: &[&str]) -> bool {
    command(args).output().expect("docker runs").status.success()
}

/// Lines of a `docker` command.
#[track_caller]
pub(crate) fn lines(args: &[&str]) -> BTreeSet<String> {
    docker(args).lines().map(str::to_owned).collect()
}

/// Runs a command in a container.
#[track_caller]
pub(crate) fn exec(container: &str, args: &[&str]) -> String {
    docker(&[&["exec", container], args].concat())
}

/// Everything in Docker that one lab has: containers and networks, by name.
pub(crate) fn objects_of(lab: &str) -> BTreeSet<String> {
    let prefix = format!("labctl-{lab}");
    let mut found = BTreeSet::new();
    for container in lines(&["ps", "--all", "--format", "{{.Names}}"]) {
        if container == prefix || container.starts_with(&format!("{prefix}-")) {
            found.insert(format!("container {container}"));
        }
    }
    for network in lines(&["network", "ls", "--format", "{{.Name}}"]) {
        if network == prefix || network.starts_with(&format!("{prefix}-")) {
            found.insert(format!("network {network}"));
        }
    }
    found
}

/// Everything that Docker has, for a comparison to the last object. Volumes are anonymous: kind's nodes have one each.
pub(crate) fn snapshot() -> BTreeSet<String> {
    let list = |what: &'static str, args: &[&str]| {
        lines(args).into_iter().filter(|line| !line.is_empty()).map(move |line| format!("{what} {line}"))
    };
    let mut all = BTreeSet::new();
    all.extend(list("container", &["ps", "--all", "--format", "{{.Names}}"]));
    all.extend(list("network", &["network", "ls", "--format", "{{.Name}}"]));
    all.extend(list("image", &["images", "--format", "{{.Repository}}:{{.Tag}}"]));
    all.extend(list("volume", &["volume", "ls", "--format", "{{.Name}}"]));
    all
}

/// A container's address in its only network.
pub(crate) fn address(container: &str) -> String {
    docker(&["inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", container])
}

/// A container's Ethernet address in its only network.
pub(crate) fn mac(container: &str) -> String {
    docker(&["inspect", "--format", "{{range .NetworkSettings.Networks}}{{.MacAddress}}{{end}}", container])
}

/// The bridge of a Docker network on this machine.
pub(crate) fn bridge(network: &str) -> String {
    format!("br-{}", &docker(&["network", "inspect", "--format", "{{.Id}}", network])[..12])
}

/// `kubectl` in the control plane's node, which every node image has.
#[track_caller]
pub(crate) fn kubectl(cluster: &str, args: &[&str]) -> String {
    let node = format!("{cluster}-control-plane");
    exec(&node, &[&["kubectl", "--kubeconfig", "/etc/kubernetes/admin.conf"], args].concat())
}
