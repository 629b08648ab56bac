//! Nodes with settings that break naive datapaths: strict reverse path filters, firewalls that drop what
//! conntrack calls invalid, a FORWARD chain that drops everything. The datapath passes by all of them.
//!
//! Each test first shows that the settings bite, with packets that the datapath does not touch.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use labctl_node::fetch::Transport;
use serde_json::Value;

use crate::ask::{POD, WORKER, WORKER2, assert_answered, frontend, requests};
use crate::kernel::on_one_cpu;
use crate::lab::Lab;
use crate::root::need_root;
use crate::traffic::{heavy, with_faults};
use crate::verdict::text;

const NODES: [&str; 3] = ["control-plane", "worker", "worker2"];

/// Packets that a table's rules have counted on a node, policy counters included.
fn counted(lab: &Lab, node: &str, table: &str) -> u64 {
    let output = lab.inside(node, "nft").args(["-j", "list", "table", "ip", table]).output();
    let output = output.expect("nft is installed");
    assert!(output.status.success(), "{node} has no table {table}: {}", text(&output));
    let json: Value = serde_json::from_slice(&output.stdout).expect("nft speaks JSON");
    sum_of_counters(&json)
}

fn sum_of_counters(json: &Value) -> u64 {
    match json {
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| match key.as_str() {
                "counter" => value["packets"].as_u64().unwrap_or(0),
                _ => sum_of_counters(value),
            })
            .sum(),
        Value::Array(list) => list.iter().map(sum_of_counters).sum(),
        _ => 0,
    }
}

fn ip(lab: &Lab, host: &str, args: &[&str]) {
    let output = lab.inside(host, "ip").args(args).output().expect("ip is installed");
    assert!(output.status.success(), "ip {args:?} on {host}: {}", text(&output));
}

/// Sends a datagram from one of the client's addresses and waits until `arrived` says so.
fn provoke(lab: &Lab, from: Ipv4Addr, to: SocketAddrV4, arrived: impl Fn() -> bool, what: &str) {
    let socket = lab.enter("client", || UdpSocket::bind((from, 0))).expect("the client has the address");
    let deadline = Instant::now() + Duration::from_secs(5);
    while !arrived() {
        assert!(Instant::now() < deadline, "{what}");
        socket.send_to(b"provocation", to).expect("send");
    }
}

/// The FORWARD chain of the worker drops what the kernel itself would forward.
fn assert_forward_drop_bites(lab: &Lab) {
    ip(lab, "client", &["route", "add", "10.0.1.0/24", "via", "172.18.0.3"]);
    let dropped = || counted(lab, "worker", "labctl_forward_drop") > 0;
    // Not the service's port: the datapath has nothing to do with it.
    let to = SocketAddrV4::new(POD, 5353);
    provoke(lab, crate::ask::CLIENT, to, dropped, "the FORWARD chain drops nothing");
    ip(lab, "client", &["route", "del", "10.0.1.0/24"]);
}

/// The backend's node refuses the pod's address as a source on its uplink.
fn assert_rp_filter_bites(lab: &Lab) {
    for node in NODES {
        for name in ["all", "default", "eth0"] {
            let name = format!("net/ipv4/conf/{name}/rp_filter");
            assert_eq!(lab.sysctl(node, &name), "1", "{name} of {node}");
        }
    }
    let before = lab.snmp("worker2", "TcpExt", "IPReversePathFilter");
    ip(lab, "client", &["address", "add", "10.0.1.108/32", "dev", "lo"]);
    let refused = || lab.snmp("worker2", "TcpExt", "IPReversePathFilter") > before;
    provoke(lab, POD, SocketAddrV4::new(WORKER2, 5353), refused, "the reverse path filter takes everything");
    ip(lab, "client", &["address", "del", "10.0.1.108/32", "dev", "lo"]);
}

/// A segment of no connection: conntrack calls it invalid, and the input chain drops it.
fn assert_drop_invalid_bites(lab: &Lab) {
    use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, SockaddrIn, sendto, socket};
    use std::os::fd::AsRawFd as _;

    let mut segment = [0u8; 20];
    segment[0..2].copy_from_slice(&4000u16.to_be_bytes());
    segment[2..4].copy_from_slice(&4001u16.to_be_bytes());
    segment[12] = 5 << 4;
    // SYN and FIN together are valid in no state.
    segment[13] = 0x03;
    let [a, b, c, d] = WORKER.octets();
    let sent = lab.enter("client", || {
        let raw = socket(
            AddressFamily::Inet,
            SockType::Raw,
            SockFlag::empty(),
            nix::sys::socket::SockProtocol::Tcp,
        )?;
        sendto(raw.as_raw_fd(), &segment, &SockaddrIn::new(a, b, c, d, 0), MsgFlags::empty())
    });
    sent.expect("a raw socket");
    let deadline = Instant::now() + Duration::from_secs(5);
    while counted(lab, "worker", "labctl_drop_invalid") == 0 {
        assert!(Instant::now() < deadline, "`ct state invalid drop` drops nothing");
    }
}

fn passes(mode: &str) {
    let faults = "{name: rp-filter-strict}, {name: drop-invalid}, {name: forward-drop}";
    let lab = on_one_cpu(|| with_faults(mode, faults));
    lab.calm_senders();
    let retransmitted = || ["client", "web-1"].map(|host| lab.snmp(host, "Tcp", "RetransSegs"));
    let before = retransmitted();
    assert_answered(&on_one_cpu(|| lab.ask(heavy(frontend(mode)))), 2002);
    lab.verify().assert_passes(&[]);
    assert_eq!(retransmitted(), before, "{mode}: segments were sent again");
    // The rules are there and had their chance: they saw nothing of it.
    for node in NODES {
        assert_eq!(counted(&lab, node, "labctl_forward_drop"), 0, "{mode}: {node} forwarded by its stack");
        assert_eq!(counted(&lab, node, "labctl_drop_invalid"), 0, "{mode}: {node} gave it to netfilter");
        assert_eq!(lab.snmp(node, "TcpExt", "IPReversePathFilter"), 0, "{mode}: {node} filtered");
    }
    assert_forward_drop_bites(&lab);
    assert_rp_filter_bites(&lab);
    assert_drop_invalid_bites(&lab);
    // And still, with the filters proven awake.
    assert_answered(&lab.ask(requests(1, 8, Transport::Tcp, frontend(mode), |_| {})), 8);
}

#[test]
fn dsr_passes_by_hostile_settings() {
    need_root!();
    passes("dsr");
}

#[test]
fn snat_passes_by_hostile_settings() {
    need_root!();
    passes("snat");
}

#[test]
fn hybrid_passes_by_hostile_settings() {
    need_root!();
    passes("hybrid");
}

#[test]
fn local_passes_by_hostile_settings() {
    need_root!();
    passes("local");
}
