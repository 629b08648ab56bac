//! Plans to try, and what the machine looks like.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use labctl_model::Plan;
use labctl_provider::{Cancel, Lab, NetnsProvider, StepEvent};
use serde_json::{Value, json};

use crate::isolation::run_dir;

/// The provider of this test.
pub(crate) fn provider() -> NetnsProvider {
    NetnsProvider::in_dir(run_dir())
}

/// Not umount(8): that one leaves a folder in `/run`.
pub(crate) fn unmount(path: &Path) {
    nix::mount::umount(path).expect("it is mounted");
}

/// The seed's lab: client, three nodes, two pods on `worker2` and a hostNetwork one on `worker`.
pub(crate) fn plan(lab: &str) -> Plan {
    plan_with(lab, json!([]))
}

pub(crate) fn plan_with(lab: &str, faults: Value) -> Plan {
    let node = |name: &str, last: u8, third: u8, pods: Value| {
        json!({
            "name": name, "role": "worker", "address": format!("172.18.0.{last}"),
            "pod_cidr": format!("10.0.{third}.0/24"), "pod_gateway": format!("10.0.{third}.1"), "pods": pods,
        })
    };
    let plan = json!({
        "lab": lab, "provider": "netns", "mode": "dsr", "wire": "network",
        "network": "172.18.0.0/16", "mtu": 1500, "offloads": false, "pod_cidr": "10.0.0.0/8",
        "client": {"name": "client", "address": "172.18.0.1"},
        "nodes": [
            node("control-plane", 4, 0, json!([])),
            node("worker", 3, 2, json!([{"name": "web-3", "address": "172.18.0.3", "host_network": true}])),
            node("worker2", 2, 1, json!([
                {"name": "web-1", "address": "10.0.1.108", "host_network": false},
                {"name": "web-2-with-a-long-name", "address": "10.0.1.109", "host_network": false},
            ])),
        ],
        "service": {
            "name": "web", "cluster_ip": "10.96.0.10", "port": 80, "node_port": 32000, "target_port": 8080,
            "protocols": ["tcp", "udp"], "external_traffic_policy": "Cluster",
            "session_affinity": "None", "affinity_seconds": 10800,
        },
        "traffic": {"via": "worker", "requests": 1, "datagrams": 1, "response_bytes": 1},
        "datapath": {
            "strip_option": true, "snat_port_min": 61000, "snat_port_max": 65000, "flows": 65536, "events": false,
        },
        "image": null, "faults": faults,
    });
    serde_json::from_value(plan).expect("the plan has the model's shape")
}

/// Names of the hosts of [`plan`].
pub(crate) const HOSTS: [&str; 7] =
    ["switch", "client", "control-plane", "worker", "worker2", "web-1", "web-2-with-a-long-name"];

pub(crate) fn up(provider: &NetnsProvider, plan: &Plan) -> Lab {
    let lock = provider.lock(&plan.lab).expect("the lock is free");
    provider.up(&lock, plan, &Cancel::new(), &mut |_| {}).expect("the lab comes up")
}

pub(crate) fn down(provider: &NetnsProvider, lab: &str) {
    let lock = provider.lock(lab).expect("the lock is free");
    provider.down(lock, &mut ignore).expect("the lab goes away");
}

pub(crate) fn ignore(_: StepEvent) {}

/// Output of a program that must succeed.
pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().expect("the program starts");
    assert!(
        output.status.success(),
        "{program} {} failed: {}",
        args.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("the program prints text")
}

/// `ip -n <namespace> -j <args>`.
pub(crate) fn ip(namespace: &str, args: &[&str]) -> Value {
    let all: Vec<_> = ["-n", namespace, "-j"].into_iter().chain(args.iter().copied()).collect();
    let text = run("ip", &all);
    serde_json::from_str(if text.trim().is_empty() { "[]" } else { &text }).expect("ip prints JSON")
}

/// Everything that a lab could leave behind.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Machine {
    files: BTreeSet<PathBuf>,
    mounts: Vec<String>,
    links: String,
    netns: String,
}

pub(crate) fn machine() -> Machine {
    let mut files = BTreeSet::new();
    walk(Path::new("/run"), &mut files);
    let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts can be read");
    Machine {
        files,
        mounts: mounts.lines().map(str::to_owned).collect(),
        links: run("ip", &["-o", "link"]),
        netns: run("ip", &["netns", "list"]),
    }
}

fn walk(dir: &Path, files: &mut BTreeSet<PathBuf>) {
    for entry in fs::read_dir(dir).expect("the folder can be read") {
        let entry = entry.expect("the entry can be read");
        files.insert(entry.path());
        if entry.file_type().expect("the entry has a type").is_dir() {
            walk(&entry.path(), files);
        }
    }
}
