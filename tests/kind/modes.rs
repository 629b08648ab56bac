//! All four labs on a kind cluster: every check passes, the results are those of the namespace lab, and tcpdump on
//! the Docker bridge agrees.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::docker;
use crate::lab::{Lab, program};
use crate::need::need_kind;
use crate::tcpdump::{Pcap, Tcpdump, tshark};
use crate::verdict::{CHECKS, Verdict, text};

/// A verified lab with what a second witness saw on the bridge meanwhile.
struct Seen {
    lab: Lab,
    verdict: Verdict,
    bridge: Pcap,
}

/// Brings a built-in lab up on kind and verifies it while tcpdump watches the bridge.
fn verified(mode: &str) -> Seen {
    let lab = Lab::up(mode);
    let watch = Tcpdump::start(
        Command::new("tcpdump"),
        &docker::bridge(&lab.cluster()),
        lab.folder().join("bridge.pcap"),
        // A control plane talks a lot.
        "ip and (udp or (tcp and not port 6443 and not port 2379 and not port 2380 and not port 10250))",
    );
    let verdict = lab.verify();
    let bridge = watch.stop();
    verdict.assert_passes(&[]);
    assert_eq!(lab.status()["problems"], serde_json::json!([]), "verify left the lab unwell");
    Seen { lab, verdict, bridge }
}

impl Seen {
    fn number(&self, check: &str, name: &str) -> u64 {
        let evidence = self.verdict.evidence_of(check);
        evidence[name].as_u64().unwrap_or_else(|| panic!("{check} has no number {name}"))
    }

    /// How many frames on the bridge a filter takes; `{client}`, `{worker}` and so on stand for addresses,
    /// with `_mac` for Ethernet addresses.
    fn on_bridge(&self, filter: &str) -> u64 {
        let mut filter = filter.to_owned();
        for host in ["client", "control-plane", "worker", "worker2"] {
            let container = self.lab.container(host);
            filter = filter.replace(&format!("{{{host}}}"), &docker::address(&container));
            filter = filter.replace(&format!("{{{host}_mac}}"), &docker::mac(&container));
        }
        self.bridge.count(&filter) as u64
    }

    /// The witness has seen what labctl counted at the client.
    fn agree_on_the_clients_link(&self) {
        let counted = self.number("reply-source", "packets_on_client_link");
        assert!(counted > 50, "labctl saw {counted} packets");
        assert_eq!(self.on_bridge("ether host {client_mac} and ip and not udp port 9"), counted);
    }

    /// tshark, over what tcpdump saw: every checksum is right, nothing was refused.
    fn is_clean(&self) {
        let seen = self.bridge.analyse();
        assert!(self.bridge.packets > 100 && seen.right > 100, "the witness was blind: {seen:?}");
        assert_eq!((seen.wrong, seen.resets), (0, 0), "{seen:?}");
        let rows = tshark(&self.verdict.evidence.join("flow.pcapng"), &["frame.interface_name"]);
        assert!(
            rows.iter().any(|row| row.starts_with("worker2:")),
            "the evidence has no packet of the backend's node"
        );
    }

    /// Replies to the client, by the node whose Ethernet address they came from.
    fn replies_from(&self, node: &str) -> u64 {
        self.on_bridge(&format!("ether src {{{node}_mac}} and dst host {{client}} and src port 32000"))
    }

    /// Replies from a node's own frontend to the client, by the node whose Ethernet address they came from.
    fn replies_of(&self, frontend: &str, node: &str) -> u64 {
        self.on_bridge(&format!(
            "ether src {{{node}_mac}} and src host {{{frontend}}} and dst host {{client}} and src port 32000"
        ))
    }

    /// Requests of the client that have the option, with these bytes behind the fixed header.
    fn with_option(&self) -> u64 {
        // The backend's own node needs none.
        let options = ["worker", "control-plane"].map(|asked| {
            let [a, b, c, d] = address_of(&self.lab, asked).octets();
            // NodePort 32000 is 7d00; then the address in network order.
            format!("9a087d00{a:02x}{b:02x}{c:02x}{d:02x}")
        });
        let packets = self.bridge.hex("ip[0] & 0xf > 5");
        let at = 2 * (14 + 20);
        assert!(
            packets.iter().all(|p| options.iter().any(|o| p[at..at + 16] == *o)),
            "{options:?} in {packets:?}"
        );
        packets.len() as u64
    }
}

fn address_of(lab: &Lab, host: &str) -> std::net::Ipv4Addr {
    docker::address(&lab.container(host)).parse().expect("an address")
}

/// Runs the same lab in namespaces and compares.
fn assert_as_in_namespaces(mode: &str, seen: &Seen) {
    let netns = Netns::verified(mode, seen.lab.folder());
    let kind = Result::of(&seen.verdict, &seen.lab.status());
    assert_eq!(kind, netns, "{mode}: the providers differ in more than addresses and names");
}

/// The check that counts what passes beside the lab: a cluster has traffic of its own.
const OF_THE_PLACE: &str = "no-strangers";

/// What a run found, without the addresses and names of its provider.
#[derive(Debug, PartialEq, Eq)]
struct Result {
    word: String,
    checks: Vec<(String, String, String)>,
    numbers: BTreeMap<String, String>,
}

impl Result {
    fn of(verdict: &Verdict, status: &Value) -> Self {
        let names = Names::of(status);
        let checks = verdict.json()["checks"].as_array().expect("checks");
        let string = |value: &Value| value.as_str().expect("a string").to_owned();
        let check = |check: &Value| {
            let summary = match check["name"].as_str() {
                Some(OF_THE_PLACE) => String::new(),
                _ => without_numbers(&names.replaced(check["summary"].as_str().expect("a summary"))),
            };
            (string(&check["name"]), string(&check["status"]), summary)
        };
        let mut numbers = BTreeMap::new();
        for check in checks.iter().filter(|check| check["name"] != OF_THE_PLACE) {
            for (name, value) in check["evidence"].as_object().expect("an object") {
                let of = format!("{}.{name}", check["name"].as_str().expect("a name"));
                numbers.insert(of, weighed(name, value));
            }
        }
        Self { word: verdict.word().to_owned(), checks: checks.iter().map(check).collect(), numbers }
    }
}

/// Requests are counted exactly. Packets are not: how TCP cuts a reply and when it acknowledges depends on time; of
/// those only counts that whether there were any.
fn weighed(name: &str, value: &Value) -> String {
    const EXACT: [&str; 7] = [
        "connections",
        "datagrams",
        "client_address_kept",
        "source_rewritten",
        "requests",
        "refused",
        "with_option",
    ];
    match value.as_u64() {
        Some(number) if !EXACT.contains(&name) && name != "largest" => {
            if number == 0 {
                "none".to_owned()
            } else {
                "some".to_owned()
            }
        }
        _ => value.to_string(),
    }
}

fn without_numbers(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '0'..='9' if out.ends_with('#') => {}
            '0'..='9' => out.push('#'),
            c => out.push(c),
        }
    }
    out
}

/// What a provider calls its hosts, each with the name that both share.
struct Names(Vec<(String, String)>);

impl Names {
    fn of(status: &Value) -> Self {
        let string = |value: &Value| value.as_str().expect("a string").to_owned();
        let mut names = vec![(string(&status["client"]["address"]), "CLIENT".to_owned())];
        names.push((string(&status["service"]["cluster_ip"]), "CLUSTER-IP".to_owned()));
        for node in status["nodes"].as_array().expect("nodes") {
            names.push((string(&node["address"]), format!("NODE-{}", string(&node["name"]))));
        }
        let letters = ["A", "B", "C", "D"];
        for (backend, letter) in status["backends"].as_array().expect("backends").iter().zip(letters) {
            let address = string(&backend["address"]);
            let address = address.split(':').next().expect("an address").to_owned();
            names.push((string(&backend["pod"]), format!("POD-{letter}")));
            names.push((address, format!("POD-ADDRESS-{letter}")));
        }
        // The longest first: 172.18.0.1 is the beginning of 172.18.0.10.
        names.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
        Self(names)
    }

    fn replaced(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, (name, shared)| text.replace(name, shared))
    }
}

/// The lab in namespaces.
struct Netns;

impl Netns {
    /// What the lab of this mode finds there.
    fn verified(mode: &str, folder: &Path) -> Result {
        let lab = format!("n{}-{mode}", std::process::id());
        let labctl = |args: &[&str]| {
            let mut command = Command::new(program());
            let output = command.args(args).current_dir(folder).env("NO_COLOR", "1").output();
            output.expect("labctl runs")
        };
        let up = labctl(&["up", mode, "--name", &lab]);
        assert!(up.status.success(), "{}", text(&up));
        let verdict = Verdict::of(labctl(&["verify", &lab, "--format", "json"]), folder, &lab);
        let status = labctl(&["status", &lab, "--format", "json"]);
        let down = labctl(&["down", &lab]);
        assert!(down.status.success(), "{}", text(&down));
        let status = serde_json::from_slice(&status.stdout).expect("status gives JSON");
        verdict.assert_passes(&[]);
        Result::of(&verdict, &status)
    }
}

#[test]
fn dsr_passes_and_the_bridge_agrees() {
    need_kind!();
    let seen = verified("dsr");
    // Two more each, one by each protocol, to control-plane and to worker2.
    assert_eq!(seen.number("client-ip", "client_address_kept"), 16 + 4);
    assert_eq!(seen.number("return-path", "through_ingress"), 0);
    seen.agree_on_the_clients_link();
    seen.is_clean();
    assert_eq!(seen.replies_from("worker"), 0, "replies crossed the node that was asked");
    assert_eq!(seen.replies_from("worker2"), seen.number("return-path", "direct"));
    assert!(seen.with_option() > 0);
    assert_as_in_namespaces("dsr", &seen);
    seen.lab.take_down();
}

#[test]
fn snat_passes_and_the_bridge_agrees() {
    need_kind!();
    let seen = verified("snat");
    assert_eq!(seen.number("client-ip", "source_rewritten"), 16 + 2);
    seen.agree_on_the_clients_link();
    seen.is_clean();
    for asked in ["worker", "control-plane"] {
        assert_eq!(seen.replies_of(asked, "worker2"), 0, "a reply took the short way");
        assert!(seen.replies_of(asked, asked) > 0);
    }
    // What worker2 was asked itself it answers itself.
    assert_eq!(seen.replies_from("worker2"), seen.number("return-path", "direct"));
    let through = seen.replies_from("worker") + seen.replies_from("control-plane");
    assert_eq!(through, seen.number("return-path", "through_ingress"));
    assert_eq!(seen.bridge.count("ip[0] & 0xf > 5"), 0, "an option on the wire");
    assert_as_in_namespaces("snat", &seen);
    seen.lab.take_down();
}

#[test]
fn hybrid_passes_and_the_bridge_agrees() {
    need_kind!();
    let seen = verified("hybrid");
    assert_eq!(seen.number("client-ip", "client_address_kept"), 8 + 3, "tcp, and udp by worker2");
    assert_eq!(seen.number("client-ip", "source_rewritten"), 8 + 1, "udp");
    seen.agree_on_the_clients_link();
    seen.is_clean();
    assert_eq!(seen.replies_from("worker2"), seen.number("return-path", "direct"));
    let through = seen.replies_from("worker") + seen.replies_from("control-plane");
    assert_eq!(through, seen.number("return-path", "through_ingress"));
    assert!(seen.with_option() > 0);
    assert_as_in_namespaces("hybrid", &seen);
    seen.lab.take_down();
}

#[test]
fn local_passes_and_the_bridge_agrees() {
    need_kind!();
    let seen = verified("local");
    assert_eq!(seen.number("client-ip", "client_address_kept"), 16);
    seen.agree_on_the_clients_link();
    seen.is_clean();
    assert_eq!(seen.replies_from("worker"), 0, "a node without a backend answered");
    assert_eq!(seen.bridge.count("ip[0] & 0xf > 5"), 0, "an option on the wire");
    assert_as_in_namespaces("local", &seen);
    seen.lab.take_down();
}

#[test]
fn the_checks_are_those_of_the_namespace_labs() {
    let unique: BTreeSet<_> = CHECKS.iter().collect();
    assert_eq!(unique.len(), CHECKS.len());
    assert_eq!(without_numbers("64 of 64 from 10.0.1.108"), "# of # from #.#.#.#");
}
