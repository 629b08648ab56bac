//! Real amounts of traffic through every mode, judged without labctl's own verdict: the client and the backend
//! compare every byte, tcpdump and tshark look at the packets, the kernel counts retransmissions.
//!
//! Also the traffic that must fail, and how: too large a datagram, a port that nobody listens on.

use std::net::SocketAddrV4;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use labctl_node::fetch::{Request, Transport};
use labctl_wire::Exchange;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::ask::{POD_NAME, assert_answered, failure, frontend, requests};
use crate::kernel::on_one_cpu;
use crate::lab::Lab;
use crate::root::need_root;
use crate::tcpdump::{Pcap, Tcpdump};

const MIB: u64 = 1 << 20;
/// A failure that the network reports comes in a round trip; a timeout would take seconds.
const AT_ONCE: Duration = Duration::from_millis(500);
/// UDP payload that fills a packet of 1500 bytes.
const FULL: u64 = 1500 - 20 - 8;
/// The same with room for the option.
const FULL_WITH_OPTION: u64 = FULL - 8;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Offloads {
    On,
    Off,
}

/// A lab of a mode with faults, in the flow style of YAML.
pub(crate) fn with_faults(mode: &str, faults: &str) -> Lab {
    let lab = Lab::new(mode, |text| format!("{text}\nfaults: [{faults}]\n"));
    lab.bring_up();
    lab
}

/// Everything that a mode must carry: 10 MiB down, 10 MiB up, 1,000 connections, 1,000 datagrams.
pub(crate) fn heavy(to: SocketAddrV4) -> Vec<Request> {
    let mut all = requests(1, 1, Transport::Tcp, to, |r| r.response_bytes = 10 * MIB);
    all.extend(requests(2, 1, Transport::Tcp, to, |r| r.upload_bytes = 10 * MIB));
    all.extend(requests(3, 1000, Transport::Tcp, to, |_| {}));
    all.extend(requests(1003, 1000, Transport::Udp, to, |r| {
        (r.upload_bytes, r.response_bytes) = (600, 1200);
    }));
    all
}

fn carries(mode: &str, offloads: Offloads) {
    let lab = Lab::new(mode, |text| format!("{text}\noffloads: {}\n", offloads == Offloads::On));
    on_one_cpu(|| lab.bring_up());
    lab.calm_senders();
    let retransmitted = || ["client", POD_NAME].map(|host| lab.snmp(host, "Tcp", "RetransSegs"));
    let before = retransmitted();
    let watches = ["client", POD_NAME].map(|host| lab.tcpdump(host, "ip"));
    let exchanges = on_one_cpu(|| lab.ask(heavy(frontend(mode))));
    let [at_client, at_pod] = watches.map(Tcpdump::stop);
    assert_answered(&exchanges, 2002);
    assert_eq!(exchanges[0].received, 10 * MIB);
    assert_eq!(retransmitted(), before, "segments were sent again by the client or the pod");
    assert_eq!(lab.drops(), <_>::default(), "the datapath dropped packets");
    judge("client", &at_client, offloads);
    judge("pod", &at_pod, offloads);
    assert_eq!(at_client.count("net 10.0.0.0/8"), 0, "a pod's address on the client's link");
}

/// Every packet of the traffic, seen by somebody else.
fn judge(host: &str, pcap: &Pcap, offloads: Offloads) {
    let found = pcap.analyse();
    // A connection has at least eight packets, a datagram two.
    assert!(found.packets > 10_000, "the {host}'s tcpdump saw {} packets", found.packets);
    assert_eq!(found.resets, 0, "resets at the {host}");
    assert_eq!(found.retransmissions, 0, "retransmissions at the {host}");
    if offloads == Offloads::Off {
        assert_eq!(found.wrong, 0, "wrong checksums at the {host}: {found:?}");
        // One of IPv4 and one of TCP or UDP: none was left out.
        assert_eq!(found.right, 2 * found.packets, "checksums not computed at the {host}: {found:?}");
    }
}

#[test]
fn dsr_carries_heavy_traffic() {
    need_root!();
    carries("dsr", Offloads::On);
}

#[test]
fn dsr_carries_heavy_traffic_without_offloads() {
    need_root!();
    carries("dsr", Offloads::Off);
}

#[test]
fn snat_carries_heavy_traffic() {
    need_root!();
    carries("snat", Offloads::On);
}

#[test]
fn snat_carries_heavy_traffic_without_offloads() {
    need_root!();
    carries("snat", Offloads::Off);
}

#[test]
fn hybrid_carries_heavy_traffic() {
    need_root!();
    carries("hybrid", Offloads::On);
}

#[test]
fn hybrid_carries_heavy_traffic_without_offloads() {
    need_root!();
    carries("hybrid", Offloads::Off);
}

#[test]
fn local_carries_heavy_traffic() {
    need_root!();
    carries("local", Offloads::On);
}

#[test]
fn local_carries_heavy_traffic_without_offloads() {
    need_root!();
    carries("local", Offloads::Off);
}

/// One datagram of this size and a short reply.
fn datagram(lab: &Lab, mode: &str, bytes: u64) -> Exchange {
    lab.ask_one(Transport::Udp, frontend(mode), |r| (r.upload_bytes, r.timeout_ms) = (bytes, 2000))
}

fn took(exchange: &Exchange) -> Duration {
    Duration::from_micros(exchange.timings.total_us.expect("it ended"))
}

#[test]
fn a_datagram_without_room_for_the_option_is_answered_with_its_mtu() {
    need_root!();
    let lab = Lab::up("dsr");
    let watch = lab.tcpdump("client", "icmp or udp");
    let first = datagram(&lab, "dsr", FULL);
    assert!(failure(&first).contains("Message too long"), "{first:?}");
    assert!(took(&first) < AT_ONCE, "the client had to wait: {first:?}");
    // The client's stack has learned the path's MTU: smaller ones pass, and large ones go as fragments.
    assert_answered(&[datagram(&lab, "dsr", FULL_WITH_OPTION)], 1);
    assert_answered(&[datagram(&lab, "dsr", FULL)], 1);
    let seen = watch.stop();
    let errors = seen.lines("icmp", &[]);
    assert_eq!(errors.len(), 1, "{errors:?}");
    let words =
        "172.18.0.3 > 172.18.0.1: ICMP 172.18.0.3 udp port 32000 unreachable - need to frag (mtu 1492)";
    assert!(errors[0].contains(words) || needs_fragmentation(&errors[0]), "{errors:?}");
    assert_eq!(seen.count("net 10.0.0.0/8"), 0, "a pod's address on the client's link");
    let drops = lab.drops();
    assert_eq!(drops["worker"]["too-big-for-option"], 1, "{drops:?}");
}

/// `IP 172.18.0.3 > 172.18.0.1: ICMP 172.18.0.3 unreachable - need to frag (mtu 1492), length 556`.
fn needs_fragmentation(line: &str) -> bool {
    line.starts_with("IP 172.18.0.3 > 172.18.0.1: ICMP 172.18.0.3 unreachable - need to frag (mtu 1492)")
}

#[test]
fn snat_has_no_option_to_make_room_for() {
    need_root!();
    let lab = Lab::up("snat");
    assert_answered(&[datagram(&lab, "snat", FULL)], 1);
    assert_eq!(lab.drops(), <_>::default());
}

#[test]
fn pods_with_a_smaller_mtu_are_reached() {
    need_root!();
    for mode in ["dsr", "snat", "local"] {
        let lab = with_faults(mode, "{name: pod-mtu, mtu: 1280}");
        let mut both = requests(1, 1, Transport::Tcp, frontend(mode), |r| r.response_bytes = 2 * MIB);
        both.extend(requests(2, 1, Transport::Tcp, frontend(mode), |r| r.upload_bytes = 2 * MIB));
        assert_answered(&lab.ask(both), 2);
        // A reply that fits, to a request that does not: the first is refused with the pod's MTU.
        let watch = lab.tcpdump("client", "icmp");
        let first = datagram(&lab, mode, 1400);
        assert!(failure(&first).contains("Message too long"), "{mode}: {first:?}");
        assert_answered(&[datagram(&lab, mode, 1400)], 1);
        let errors = watch.stop().lines("icmp", &[]);
        assert!(errors.iter().all(|e| e.contains("need to frag")), "{mode}: {errors:?}");
        assert!(errors.iter().all(|e| !e.contains("10.0.")), "{mode} shows the pod: {errors:?}");
    }
}

/// The backend process of a lab, stopped and started again.
struct Backend<'a> {
    lab: &'a Lab,
    again: Option<Child>,
}

impl<'a> Backend<'a> {
    /// Ends the process that `up` started and waits until it is gone.
    fn stop(lab: &'a Lab) -> Self {
        let pids = Self::pids(lab);
        assert_eq!(pids.len(), 1, "one process in the pod");
        kill(Pid::from_raw(pids[0]), Signal::SIGTERM).expect("it runs");
        let deadline = Instant::now() + Duration::from_secs(5);
        while !Self::pids(lab).is_empty() {
            assert!(Instant::now() < deadline, "the backend does not end");
        }
        Self { lab, again: None }
    }

    fn pids(lab: &Lab) -> Vec<i32> {
        let output = std::process::Command::new("ip")
            .args(["netns", "pids", &lab.namespace(POD_NAME)])
            .output()
            .expect("ip is installed");
        String::from_utf8_lossy(&output.stdout).lines().map(|pid| pid.parse().expect("a number")).collect()
    }

    /// Starts it again and waits for its ready line.
    fn start(&mut self) {
        use std::io::BufRead as _;
        let mut child = self
            .lab
            .inside(POD_NAME, env!("CARGO_BIN_EXE_labctl"))
            .args(["node", "serve", "--lab", &self.lab.name, "--node", "worker2", "--pod", POD_NAME])
            .args(["--port", "8080", "--address", "10.0.1.108"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("serve starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("it was piped");
        std::io::BufReader::new(stdout).read_line(&mut line).expect("a ready line");
        assert!(line.contains("\"ready\":true"), "{line}");
        self.again = Some(child);
    }
}

impl Drop for Backend<'_> {
    fn drop(&mut self) {
        if let Some(child) = &mut self.again {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn a_backend_that_is_gone_refuses_from_the_frontend() {
    need_root!();
    for mode in ["dsr", "snat", "hybrid", "local"] {
        let lab = Lab::up(mode);
        let to = frontend(mode);
        let mut backend = Backend::stop(&lab);
        let watch = lab.tcpdump("client", "ip");
        for protocol in [Transport::Tcp, Transport::Udp] {
            let refused = lab.ask_one(protocol, to, |r| r.timeout_ms = 3000);
            assert!(failure(&refused).contains("refused"), "{mode}: {refused:?}");
            assert!(took(&refused) < AT_ONCE, "{mode}: the client had to wait: {refused:?}");
        }
        let seen = watch.stop();
        assert_eq!(seen.count("net 10.0.0.0/8"), 0, "{mode}: a pod's address on the client's link");
        let vip = to.ip();
        let reset = format!("src host {vip} and src port 32000 and tcp[tcpflags] & tcp-rst != 0");
        assert_eq!(seen.count(&reset), 1, "{mode}: one reset, from the frontend");
        let errors = seen.lines("icmp", &[]);
        let words = format!("IP {vip} > 172.18.0.1: ICMP {vip} udp port 32000 unreachable");
        assert!(errors.len() == 1 && errors[0].starts_with(&words), "{mode}: {errors:?}");
        backend.start();
        let mut both = requests(1, 4, Transport::Tcp, to, |_| {});
        both.extend(requests(5, 4, Transport::Udp, to, |_| {}));
        assert_answered(&lab.ask(both), 8);
    }
}
