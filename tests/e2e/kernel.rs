//! What the kernel counts inside a lab's namespaces, and settings that the tests change there.
//!
//! Owns: reading and writing `/proc` of a host, and the datapath's counters through `labctl status`.

use std::collections::BTreeMap;
use std::fs;

use labctl_provider::NetnsProvider;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use serde_json::Value;

use crate::lab::Lab;
use crate::verdict::text;

/// Runs `f` with everything that it starts on one CPU. A veth delivers on the CPU that sends; a sender that is
/// moved, or whose ACKs come in on another CPU, overtakes its own packets, and TCP then sends some again although
/// none was lost. That happens on any veth, with or without a datapath.
pub(crate) fn on_one_cpu<T>(f: impl FnOnce() -> T) -> T {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this).expect("a thread may ask for its CPUs");
    let first = (0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu) == Ok(true)).expect("one CPU at least");
    let mut one = CpuSet::new();
    one.set(first).expect("it was in the other set");
    sched_setaffinity(this, &one).expect("a thread may choose from its CPUs");
    let done = f();
    sched_setaffinity(this, &allowed).expect("they were allowed before");
    done
}

/// Numbers by node and name.
pub(crate) type Counts = BTreeMap<String, BTreeMap<String, u64>>;

impl Lab {
    /// The lab as its state describes it.
    pub(crate) fn state(&self) -> labctl_provider::Lab {
        let found = NetnsProvider::new().find(&self.name).expect("the state can be read");
        found.expect("the lab is up")
    }

    /// Runs `f` inside a host.
    pub(crate) fn enter<T: Send>(&self, host: &str, f: impl FnOnce() -> T + Send) -> T {
        let state = self.state();
        let host = state.host(host).unwrap_or_else(|| panic!("no host {host}"));
        host.enter(f).expect("the namespace is there")
    }

    /// Sets a sysctl of a host, `net/ipv4/...`.
    pub(crate) fn set_sysctl(&self, host: &str, name: &str, value: &str) {
        let path = format!("/proc/sys/{name}");
        self.enter(host, || fs::write(&path, value)).unwrap_or_else(|e| panic!("write {path}: {e}"));
    }

    /// Reads a sysctl of a host.
    pub(crate) fn sysctl(&self, host: &str, name: &str) -> String {
        let path = format!("/proc/sys/{name}");
        let read = self.enter(host, || fs::read_to_string(&path));
        read.unwrap_or_else(|e| panic!("read {path}: {e}")).trim().to_owned()
    }

    /// One of the kernel's counters, as `nstat` names them: protocol and counter.
    pub(crate) fn snmp(&self, host: &str, protocol: &str, counter: &str) -> u64 {
        // Not /proc/net, which is the namespace of the process's first thread.
        let read =
            |file| fs::read_to_string(format!("/proc/thread-self/net/{file}")).expect("the kernel tells");
        let text = self.enter(host, || read("snmp") + &read("netstat"));
        let mut lines = text.lines().filter_map(|line| line.strip_prefix(&format!("{protocol}: ")));
        while let (Some(names), Some(values)) = (lines.next(), lines.next()) {
            let mut pairs = names.split_ascii_whitespace().zip(values.split_ascii_whitespace());
            if let Some((_, value)) = pairs.find(|(name, _)| *name == counter) {
                return value.parse().expect("a number");
            }
        }
        panic!("the kernel has no counter {protocol} {counter}");
    }

    /// Tail loss probes fire after two round trips, which on a veth is less than a busy machine may pause: they
    /// are the sender's impatience, not a loss. Without them each retransmission means something.
    pub(crate) fn calm_senders(&self) {
        for host in ["client", crate::ask::POD_NAME] {
            self.set_sysctl(host, "net/ipv4/tcp_early_retrans", "0");
        }
    }

    /// `labctl status` as JSON.
    pub(crate) fn status(&self) -> Value {
        let output = self.labctl(&["status", &self.name, "--format", "json"]);
        assert!(output.status.success(), "status failed:\n{}", text(&output));
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// Drops by node and reason; nodes without one are absent.
    pub(crate) fn drops(&self) -> Counts {
        let status = self.status();
        let nodes = status["nodes"].as_array().expect("nodes");
        let of = |node: &Value| {
            let counts = node["datapath"]["drops"].as_object().expect("the pins can be read");
            let counts: BTreeMap<_, _> =
                counts.iter().map(|(name, n)| (name.clone(), n.as_u64().expect("a count"))).collect();
            (node["name"].as_str().expect("a name").to_owned(), counts)
        };
        nodes.iter().map(of).filter(|(_, counts)| !counts.is_empty()).collect()
    }
}
