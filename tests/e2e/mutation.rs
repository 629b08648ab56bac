//! Every check of the verdict can fail, and fails for its own reason: datapaths that misbehave on purpose and
//! labs that are disturbed behind labctl's back, each with the checks that must notice.
//!
//! Owns: the table. A check that no row makes fail is a failure of this test.

use std::collections::BTreeSet;

use datapath_types::Mutation;

use crate::lab::Lab;
use crate::root::need_root;
use crate::verdict::CHECKS;
use crate::verdict::text;

/// What is wrong with the lab.
enum Wrong {
    /// The datapath of every node.
    Datapath(Mutation),
    /// Something that is done to the lab once it is up.
    Lab(fn(&Lab)),
}

/// Who must notice.
#[derive(Clone, Copy)]
enum Noticed {
    /// These checks, and no other: the rest of the lab is as it should be.
    Only(&'static [&'static str]),
    /// These checks; what else follows depends on which packet it hit.
    AtLeast(&'static [&'static str]),
}

use Noticed::{AtLeast, Only};

impl Noticed {
    const fn checks(self) -> &'static [&'static str] {
        match self {
            Only(checks) | AtLeast(checks) => checks,
        }
    }
}

/// One row: what it is, in which mode, faults of its lab file, what goes wrong, who must notice.
struct Row {
    name: &'static str,
    mode: &'static str,
    faults: &'static str,
    wrong: Wrong,
    noticed: Noticed,
}

const fn datapath(name: &'static str, mode: &'static str, mutation: Mutation, noticed: Noticed) -> Row {
    Row { name, mode, faults: "", wrong: Wrong::Datapath(mutation), noticed }
}

const ROWS: &[Row] = &[
    datapath("pod address leaks", "dsr", Mutation::LeakPodAddress, Only(&["handshake", "reply-source"])),
    datapath(
        "only the SYN-ACK is rewritten",
        "dsr",
        Mutation::OnlySynAck,
        Only(&["handshake", "reply-source"]),
    ),
    datapath("every packet is tagged", "dsr", Mutation::TagEveryPacket, Only(&["carrier"])),
    datapath("wrong port in the option", "dsr", Mutation::WrongOptionPort, AtLeast(&["carrier"])),
    datapath("option not stripped", "dsr", Mutation::KeepOption, Only(&["carrier"])),
    datapath("wrong transport checksum", "dsr", Mutation::BadL4Checksum, AtLeast(&["checksums"])),
    datapath("wrong header checksum", "dsr", Mutation::BadIpChecksum, AtLeast(&["checksums"])),
    datapath("time to live kept", "dsr", Mutation::KeepTtl, Only(&["ttl"])),
    datapath("source rewritten", "dsr", Mutation::SnatInDsr, AtLeast(&["client-ip", "return-path"])),
    datapath("replies vanish", "dsr", Mutation::SilentDrop, AtLeast(&["conservation"])),
    datapath("forged reset", "dsr", Mutation::ForgeReset, AtLeast(&["no-resets"])),
    datapath("foreign source address", "dsr", Mutation::WrongSourceMac, Only(&["l2-source"])),
    datapath(
        "replies through the ingress node",
        "dsr",
        Mutation::ReplyThroughIngress,
        AtLeast(&["return-path"]),
    ),
    datapath("policy ignored", "local", Mutation::IgnoreLocalPolicy, Only(&["request-path"])),
    Row {
        name: "the switch eats options",
        mode: "dsr",
        faults: "",
        wrong: Wrong::Lab(eat_options),
        noticed: AtLeast(&["handshake", "conservation"]),
    },
    Row {
        name: "the switch marks what passes it",
        mode: "dsr",
        faults: "",
        wrong: Wrong::Lab(mark_class),
        noticed: Only(&["unaltered"]),
    },
    Row {
        name: "somebody asks for a pod on the segment",
        mode: "snat",
        faults: "",
        wrong: Wrong::Lab(ask_for_pod),
        noticed: Only(&["no-strangers"]),
    },
    Row {
        name: "a pod's link is larger than the lab says",
        mode: "dsr",
        faults: "{name: pod-mtu, mtu: 1280}",
        wrong: Wrong::Lab(enlarge_pod_link),
        noticed: Only(&["mtu"]),
    },
];

/// As many routers and clouds do.
fn eat_options(lab: &Lab) {
    let rule = "add table bridge t; add chain bridge t f { type filter hook forward priority 0; }; \
                add rule bridge t f ether type ip ip hdrlength > 5 drop";
    nft(lab, "switch", rule);
}

fn nft(lab: &Lab, host: &str, rules: &str) {
    let output = lab.inside(host, "nft").arg(rules).output().expect("nft is installed");
    assert!(output.status.success(), "nft on {host}: {}", text(&output));
}

fn enlarge_pod_link(lab: &Lab) {
    for (host, interface) in [("worker2", "lxc-web-1"), ("web-1", "eth0")] {
        let output = lab.inside(host, "ip").args(["link", "set", interface, "mtu", "1500"]).output();
        assert!(output.expect("ip is installed").status.success());
    }
}

/// A switch that writes a traffic class into what it forwards.
fn mark_class(lab: &Lab) {
    let rule = "add table bridge t; add chain bridge t f { type filter hook forward priority 0; }; \
                add rule bridge t f ip dscp set cs1";
    nft(lab, "switch", rule);
}

/// A node believes an address of another node's pods to be its neighbour, and asks for it all the time.
fn ask_for_pod(lab: &Lab) {
    let script = "ip route replace 10.0.1.109/32 dev eth0; \
                  (for i in $(seq 200); do ip neigh flush 10.0.1.109 dev eth0; \
                   echo x > /dev/udp/10.0.1.109/7; read -t 0.02 < /dev/zero; done) > /dev/null 2>&1 &";
    let output = lab.inside("control-plane", "bash").args(["-c", script]).output();
    assert!(output.expect("bash is installed").status.success());
}

/// Checks that nothing in a lab of one backend can make fail; the tests of the judge damage its evidence instead.
const ON_PAPER: [&str; 5] = ["backend", "icmp", "loop", "spread", "affinity"];

/// Runs one row.
fn try_row(row: &Row) {
    let lab = crate::traffic::with_faults(row.mode, row.faults);
    match row.wrong {
        Wrong::Lab(disturb) => disturb(&lab),
        Wrong::Datapath(mutation) => {
            for mut state in lab.node_states() {
                state.options.mutation = mutation as u32;
                lab.run_agent(&state);
            }
        }
    }
    let verdict = lab.verify();
    let (failed, expected) =
        (verdict.checks("fail"), BTreeSet::from_iter(row.noticed.checks().iter().copied()));
    let noticed = match row.noticed {
        Only(_) => failed == expected,
        AtLeast(_) => failed.is_superset(&expected),
    };
    assert!(noticed, "{}: {failed:?} failed, expected {expected:?}\n{}", row.name, verdict.said());
    assert_eq!((verdict.code(), verdict.word()), (1, "fail"), "{}:\n{}", row.name, verdict.said());
}

#[test]
#[cfg_attr(not(feature = "mutations"), ignore = "needs --features mutations")]
fn every_check_can_fail() {
    need_root!();
    ROWS.iter().for_each(try_row);
    let seen: BTreeSet<_> = ROWS.iter().flat_map(|row| row.noticed.checks()).copied().collect();
    let all: BTreeSet<_> = seen.into_iter().chain(ON_PAPER).collect();
    assert_eq!(all, BTreeSet::from(CHECKS), "some check has never been made to fail");
}

#[test]
#[cfg_attr(not(feature = "mutations"), ignore = "needs --features mutations")]
fn up_takes_a_mutation_by_number() {
    need_root!();
    let lab = Lab::new("dsr", |text| text).mutated(Mutation::KeepTtl as u32);
    lab.bring_up();
    let verdict = lab.verify();
    assert_eq!(verdict.code(), 1);
    assert_eq!(verdict.checks("fail"), BTreeSet::from(["ttl"]), "{}", verdict.said());
}

/// A capture that no canary reached may be blind: what was not seen there proves nothing.
#[test]
fn a_capture_that_is_not_proven_live_is_inconclusive() {
    need_root!();
    let lab = Lab::up("dsr");
    let rule = "add table bridge t; add chain bridge t f { type filter hook forward priority 0; }; \
                add rule bridge t f oifname \"p-worker\" udp dport 9 counter drop";
    nft(&lab, "switch", rule);
    let verdict = lab.verify();
    assert_eq!((verdict.code(), verdict.word()), (6, "inconclusive"), "{}", verdict.said());
    let doubtful = verdict.checks("inconclusive");
    assert!(doubtful.contains("return-path"), "absence on the worker was believed: {}", verdict.said());
    assert!(verdict.checks("fail").is_empty(), "{}", verdict.said());
    // Requests were answered all the same, and that is proven.
    assert!(verdict.checks("pass").contains("handshake"), "{}", verdict.said());
}
