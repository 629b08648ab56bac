//! Pods and hosts as clients, and hosts as backends.

use std::net::{Ipv4Addr, SocketAddrV4};

use datapath_agent::DatapathMode::{self, *};

use crate::frame::{ACK, Frame, Icmp, SYN, at};
use crate::harness::{
    CLIENT, CLUSTER_IP, CONTROL, LOCAL_POD, NODE_PORT, Node, OPTION, POD, POD_PORT, WORKER, WORKER2, client,
    datagram, pod, request, state, vip,
};

/// A pod on worker that asks.
const ASKER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 50);
/// What stands in for a pod that asks itself.
const HAIRPIN: Ipv4Addr = Ipv4Addr::new(169, 254, 42, 1);

const MODES: [DatapathMode; 4] = [Dsr, Snat, Hybrid, Local];

fn asker() -> SocketAddrV4 {
    at(ASKER, 50000)
}

fn cluster_ip() -> SocketAddrV4 {
    at(CLUSTER_IP, 80)
}

/// A node with the asking pod, and these backends.
fn node(address: Ipv4Addr, mode: DatapathMode, backends: &[(Ipv4Addr, Ipv4Addr)]) -> Node {
    let mut wanted = state(address, mode, backends);
    if address == WORKER {
        wanted.pods.push(datapath_agent::LocalPod { address: ASKER, interface: "lxc".into() });
    }
    Node::new(&wanted).expect("loads")
}

/// The TCP and the UDP packet from here to there.
fn both(src: SocketAddrV4, dst: SocketAddrV4) -> [Frame; 2] {
    [Frame::tcp(src, dst, SYN), Frame::udp(src, dst)]
}

#[test]
fn a_pod_asks_a_remote_backend_through_the_cluster_ip_or_any_nodes_port() {
    for mode in MODES {
        for frontend in [cluster_ip(), at(CONTROL, NODE_PORT), at(WORKER2, NODE_PORT), vip()] {
            let mut worker = node(WORKER, mode, &[(POD, WORKER2)]);
            let mut worker2 = node(WORKER2, mode, &[(POD, WORKER2)]);
            for frame in both(asker(), frontend) {
                // The pods' network is flat: no SNAT and no option, whatever the mode.
                let sent = worker.run("from_pod", &frame.bytes());
                sent.assert_sent(&frame.clone().to(pod()).hop().bytes());
                let delivered = worker2.run("from_netdev", &sent.bytes);
                delivered.assert_sent(&frame.clone().to(pod()).hop().hop().bytes());
                let reply = frame.clone().from(pod()).to(asker());
                worker2.run("from_pod", &reply.bytes()).assert_passed(&reply.bytes());
                worker2.run("to_netdev", &reply.bytes()).assert_passed(&reply.bytes());
                let home = worker.run("from_netdev", &reply.bytes());
                home.assert_sent(&reply.from(frontend).hop().bytes());
            }
            assert_eq!(worker.counter("forwarded-inside"), 2);
            assert!(worker2.flows().is_empty(), "pod to pod left a flow at the backend's node");
        }
    }
}

#[test]
fn a_pod_asks_a_pod_of_its_own_node() {
    for mode in MODES {
        let mut worker = node(WORKER, mode, &[(LOCAL_POD, WORKER)]);
        let local = at(LOCAL_POD, POD_PORT);
        for frame in both(asker(), cluster_ip()) {
            worker.run("from_pod", &frame.bytes()).assert_sent(&frame.clone().to(local).hop().bytes());
            let reply = frame.from(local).to(asker());
            worker.run("from_pod", &reply.bytes()).assert_sent(&reply.from(cluster_ip()).hop().bytes());
        }
    }
}

#[test]
fn a_pod_asks_itself() {
    for mode in MODES {
        let mut worker = node(WORKER, mode, &[(LOCAL_POD, WORKER)]);
        let (own, server) = (at(LOCAL_POD, 50000), at(LOCAL_POD, POD_PORT));
        let stand_in = at(HAIRPIN, 50000);
        for frame in both(own, cluster_ip()) {
            let sent = worker.run("from_pod", &frame.bytes());
            sent.assert_sent(&frame.clone().from(stand_in).to(server).hop().bytes());
            let reply = frame.from(server).to(stand_in);
            let home = worker.run("from_pod", &reply.bytes());
            home.assert_sent(&reply.from(cluster_ip()).to(own).hop().bytes());
        }
        assert_eq!(worker.counter("twin-repaired"), 0, "a first packet counts as a repair");
        assert_eq!(worker.counter("flow-opened"), 2);
    }
}

#[test]
fn the_host_asks_a_remote_backend() {
    for mode in MODES {
        let mut worker = node(WORKER, mode, &[(POD, WORKER2)]);
        let host = at(WORKER, 50000);
        for frontend in [cluster_ip(), at(CONTROL, NODE_PORT)] {
            for frame in both(host, frontend) {
                let sent = worker.run("to_netdev", &frame.bytes());
                sent.assert_sent(&frame.clone().to(pod()).hop().bytes());
                let reply = frame.from(pod()).to(host);
                let home = worker.run("from_netdev", &reply.bytes());
                home.assert_passed(&reply.from(frontend).bytes());
            }
            worker.forget_all();
        }
    }
}

#[test]
fn the_host_asks_a_pod_of_its_own() {
    let mut worker = node(WORKER, Dsr, &[(LOCAL_POD, WORKER)]);
    let (host, local) = (at(WORKER, 50000), at(LOCAL_POD, POD_PORT));
    for frame in both(host, cluster_ip()) {
        worker.run("to_netdev", &frame.bytes()).assert_sent(&frame.clone().to(local).hop().bytes());
        let reply = frame.from(local).to(host);
        worker.run("from_pod", &reply.bytes()).assert_passed(&reply.from(cluster_ip()).bytes());
    }
}

#[test]
fn the_host_cannot_ask_itself_through_the_uplink() {
    // The packet would go out with this node's address at both ends.
    let mut worker = node(WORKER, Dsr, &[(WORKER, WORKER)]);
    for frame in both(at(WORKER, 50000), cluster_ip()) {
        worker.assert_drop("to_netdev", &frame.bytes(), "host-to-itself");
    }
}

#[test]
fn the_host_gets_no_error_through_the_uplink() {
    // It would leave with this node's address as destination.
    let mut worker = node(WORKER, Dsr, &[]);
    for frame in both(at(WORKER, 50000), cluster_ip()) {
        worker.assert_drop("to_netdev", &frame.bytes(), "no-backend");
    }
    assert_eq!(worker.counter("icmp-sent"), 0);
}

#[test]
fn a_pod_asks_a_backend_in_its_own_hosts_network() {
    let mut worker = node(WORKER, Dsr, &[(WORKER, WORKER)]);
    let host = at(WORKER, POD_PORT);
    for frame in both(asker(), cluster_ip()) {
        worker.run("from_pod", &frame.bytes()).assert_passed(&frame.clone().to(host).bytes());
        let reply = frame.from(host).to(asker());
        worker.run("to_pod", &reply.bytes()).assert_passed(&reply.from(cluster_ip()).bytes());
    }
    // The host's other traffic to the pod is its own.
    for frame in both(at(WORKER, 22), asker()) {
        worker.run("to_pod", &frame.bytes()).assert_passed(&frame.bytes());
    }
}

#[test]
fn a_backend_in_the_hosts_network_gets_the_request_and_answers_as_the_frontend() {
    for mode in [Dsr, Hybrid] {
        let backends = [(WORKER2, WORKER2)];
        let mut worker = node(WORKER, mode, &backends);
        let mut worker2 = node(WORKER2, mode, &backends);
        let host = at(WORKER2, POD_PORT);
        let frame = request(SYN);
        let sent = worker.run("from_netdev", &frame.bytes());
        sent.assert_sent(&frame.clone().to(host).hop().options(&OPTION).bytes());
        let delivered = worker2.run("from_netdev", &sent.bytes);
        delivered.assert_passed(&frame.to(host).hop().bytes());
        assert!(worker2.flow("reply").flags.contains(&"host".to_string()));
        let reply = Frame::tcp(host, client(), SYN | ACK);
        worker2.run("to_netdev", &reply.bytes()).assert_passed(&reply.from(vip()).bytes());
        assert_eq!(worker2.counter("reply-at-uplink"), 1);
    }
}

#[test]
fn a_backend_in_the_network_of_the_host_that_was_asked() {
    for mode in MODES {
        let mut worker = node(WORKER, mode, &[(WORKER, WORKER)]);
        let host = at(WORKER, POD_PORT);
        for frame in both(client(), vip()) {
            worker.run("from_netdev", &frame.bytes()).assert_passed(&frame.clone().to(host).bytes());
            let reply = frame.from(host).to(client());
            worker.run("to_netdev", &reply.bytes()).assert_passed(&reply.from(vip()).bytes());
        }
    }
}

#[test]
fn a_backend_in_a_remote_hosts_network_answers_through_the_ingress_node_in_snat() {
    let backends = [(WORKER2, WORKER2)];
    let mut worker = node(WORKER, Snat, &backends);
    let mut worker2 = node(WORKER2, Snat, &backends);
    let host = at(WORKER2, POD_PORT);
    let sent = worker.run("from_netdev", &datagram().bytes());
    let source = worker.flow("forward").snat.expect("a SNAT source");
    let forwarded = datagram().from(source).to(host).hop();
    sent.assert_sent(&forwarded.bytes());
    worker2.run("from_netdev", &sent.bytes).assert_passed(&forwarded.bytes());
    let reply = Frame::udp(host, source);
    worker2.run("to_netdev", &reply.bytes()).assert_passed(&reply.bytes());
    worker.run("from_netdev", &reply.bytes()).assert_sent(&reply.from(vip()).to(client()).hop().bytes());
}

#[test]
fn frontends_for_the_inside_do_not_answer_the_outside() {
    for mode in MODES {
        let mut worker = node(WORKER, mode, &[(POD, WORKER2)]);
        for frontend in [cluster_ip(), at(CONTROL, NODE_PORT)] {
            for frame in both(at(CLIENT, 50000), frontend) {
                worker.run("from_netdev", &frame.bytes()).assert_passed(&frame.bytes());
            }
        }
        assert!(worker.flows().is_empty());
    }
}

#[test]
fn a_pods_error_about_a_clusters_flow_comes_back_as_the_frontends() {
    let mut worker = node(WORKER, Dsr, &[(POD, WORKER2)]);
    let frame = Frame::udp(asker(), cluster_ip());
    worker.run("from_pod", &frame.bytes());
    let seen = frame.clone().to(pod()).hop();
    let error = Icmp::port_unreachable(POD, ASKER, seen.quote(12));
    let out = worker.run("from_netdev", &error.bytes());
    out.assert_sent(&error.from(CLUSTER_IP).hop().about(frame.hop().quote(12)).bytes());
}

#[test]
fn packets_between_pods_are_left_alone() {
    let mut worker2 = node(WORKER2, Dsr, &[(POD, WORKER2)]);
    for frame in both(asker(), pod()) {
        worker2.run("from_netdev", &frame.bytes()).assert_sent(&frame.clone().hop().bytes());
        let reply = frame.from(pod()).to(asker());
        worker2.run("from_pod", &reply.bytes()).assert_passed(&reply.bytes());
    }
    assert!(worker2.flows().is_empty());
}
