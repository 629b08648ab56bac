//! What labctl claims, seen by somebody else: tcpdump in the lab's namespaces, tshark on the evidence.

use std::collections::BTreeSet;

use labctl_node::fetch::Transport;

use crate::ask::{POD_NAME, assert_answered, frontend, requests};
use crate::lab::Lab;
use crate::root::need_root;
use crate::tcpdump::{Pcap, tshark};

/// Everything of the service that is on its way to the client, whatever its source is by now.
const TO_CLIENT: &str = "dst host 172.18.0.1 and (tcp or udp) and (src port 32000 or src port 8080)";
/// Everything that the client sends to the service.
const FROM_CLIENT: &str = "src host 172.18.0.1 and (tcp or udp)";

/// Captures of one exchange: the client, the node that was asked, the pod.
struct Seen {
    client: Pcap,
    worker: Pcap,
    pod: Pcap,
}

/// Sends requests of both protocols past three witnesses.
fn observe(lab: &Lab, mode: &str) -> Seen {
    let [client, worker, pod] = ["client", "worker", POD_NAME].map(|host| lab.tcpdump(host, ""));
    let mut both = requests(1, 20, Transport::Tcp, frontend(mode), |r| r.response_bytes = 50_000);
    both.extend(requests(21, 20, Transport::Udp, frontend(mode), |r| r.response_bytes = 500));
    assert_answered(&lab.ask(both), 40);
    Seen { client: client.stop(), worker: worker.stop(), pod: pod.stop() }
}

/// Only the client's address, or only the other one, appears as the peer of the pod.
fn assert_pod_sees(pod: &Pcap, peer: &str) {
    let requests = pod.count("dst host 10.0.1.108 and dst port 8080");
    assert!(requests > 100, "the pod's tcpdump saw {requests} packets");
    assert_eq!(pod.count(&format!("src host {peer} and dst host 10.0.1.108 and dst port 8080")), requests);
    assert_eq!(
        pod.count("src host 10.0.1.108 and src port 8080"),
        pod.count(&format!("dst host {peer} and src host 10.0.1.108 and src port 8080")),
        "the pod answered somebody else than {peer}"
    );
}

#[test]
fn in_dsr_no_reply_crosses_the_node_that_was_asked() {
    need_root!();
    let lab = Lab::up("dsr");
    let seen = observe(&lab, "dsr");
    let replies = seen.client.count(TO_CLIENT);
    assert!(replies > 100, "the client's tcpdump saw {replies} replies");
    assert!(seen.worker.count(FROM_CLIENT) > 100, "the worker's tcpdump was blind");
    assert_eq!(seen.worker.count(TO_CLIENT), 0, "replies crossed the worker");
    assert_eq!(seen.worker.count("src host 10.0.1.108"), 0, "the pod's packets crossed the worker");
    assert_eq!(
        replies,
        seen.client.count("src host 172.18.0.3 and src port 32000"),
        "a reply that is not from the frontend"
    );
    assert_pod_sees(&seen.pod, "172.18.0.1");
}

#[test]
fn in_snat_every_reply_crosses_the_node_that_was_asked() {
    need_root!();
    let lab = Lab::up("snat");
    let seen = observe(&lab, "snat");
    let replies = seen.client.count(TO_CLIENT);
    assert!(replies > 100, "the client's tcpdump saw {replies} replies");
    let came_in = seen.worker.count("src host 10.0.1.108 and src port 8080 and dst host 172.18.0.3");
    let went_out = seen.worker.count("src host 172.18.0.3 and src port 32000 and dst host 172.18.0.1");
    assert_eq!((came_in, went_out), (replies, replies), "in, out against what the client got");
    assert_eq!(seen.pod.count("src host 10.0.1.108 and src port 8080"), replies, "what the pod sent");
    assert_pod_sees(&seen.pod, "172.18.0.3");
}

#[test]
fn no_mode_shows_the_pods_address_on_the_clients_link() {
    need_root!();
    for mode in ["dsr", "snat", "hybrid", "local"] {
        let lab = Lab::up(mode);
        let watch = lab.tcpdump("client", "");
        let mut both = requests(1, 50, Transport::Tcp, frontend(mode), |r| r.response_bytes = 20_000);
        both.extend(requests(51, 50, Transport::Udp, frontend(mode), |_| {}));
        assert_answered(&lab.ask(both), 100);
        lab.verify().assert_passes(&[]);
        let seen = watch.stop();
        assert!(seen.count(TO_CLIENT) > 500, "{mode}: the client's tcpdump was blind");
        // `net` matches ARP too.
        assert_eq!(seen.lines("net 10.0.0.0/8", &["-e"]), Vec::<String>::new(), "{mode}");
    }
}

/// The option bytes right behind the fixed IPv4 header, as hexadecimal digits.
fn option_of(packet: &str) -> &str {
    const ETHERNET_AND_IPV4: usize = 14 + 20;
    &packet[2 * ETHERNET_AND_IPV4..2 * (ETHERNET_AND_IPV4 + 8)]
}

fn assert_option(wire: &str, bytes: &str) {
    let lab = Lab::new("dsr", |text| text.replace("mode: dsr", &format!("mode: dsr\nwire: {wire}")));
    lab.bring_up();
    let seen = observe(&lab, "dsr");
    // An IHL above five: something stands behind the fixed header.
    let syns = seen.worker.hex("ip[0] & 0xf > 5 and tcp");
    let datagrams = seen.worker.hex("ip[0] & 0xf > 5 and udp");
    assert_eq!((syns.len(), datagrams.len()), (20, 20), "one option a connection, one a datagram");
    assert_eq!(
        seen.worker.count("ip[0] & 0xf == 7 and tcp[tcpflags] & (tcp-syn|tcp-ack) == tcp-syn"),
        20,
        "the option is on SYNs, and makes IHL 7"
    );
    for packet in syns.iter().chain(&datagrams) {
        assert_eq!(option_of(packet), bytes, "in {packet}");
    }
    assert_eq!(seen.pod.count("ip[0] & 0xf > 5"), 0, "the pod got an option");
    assert_eq!(seen.client.count("ip[0] & 0xf > 5"), 0, "the client's link carried an option");
}

#[test]
fn the_option_is_the_frontend_in_network_order() {
    need_root!();
    assert_option("network", "9a087d00ac120003");
}

#[test]
fn the_option_is_the_frontend_in_ciliums_order() {
    need_root!();
    assert_option("cilium", "9a08007d030012ac");
}

#[test]
fn tshark_reads_the_evidence() {
    need_root!();
    let lab = Lab::up("dsr");
    let verdict = lab.verify();
    verdict.assert_passes(&[]);
    let rows = tshark(&verdict.evidence.join("flow.pcapng"), &["frame.interface_name", "ip.src", "udp.port"]);
    let points: BTreeSet<_> = rows.iter().filter_map(|row| row.split('\t').next()).collect();
    let expected = [
        "client:eth0",
        "control-plane:eth0",
        "web-1:eth0",
        "worker2:eth0",
        "worker2:lxc-web-1",
        "worker:eth0",
    ];
    assert_eq!(points, BTreeSet::from(expected));
    // Two independent ways to one number.
    let captured = verdict.evidence_of("reply-source")["packets_on_client_link"].as_u64().expect("a number");
    let on_link = |row: &&String| {
        let fields: Vec<_> = row.split('\t').collect();
        fields[0] == "client:eth0" && !fields[1].is_empty() && !fields[2].split(',').any(|port| port == "9")
    };
    assert_eq!(rows.iter().filter(on_link).count() as u64, captured);
}
