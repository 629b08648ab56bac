//! Modes snat and hybrid: the ingress node stands in for the client, and takes it back on the way home.

use std::collections::BTreeSet;
use std::net::SocketAddrV4;

use datapath_agent::DatapathMode::{self, Hybrid, Snat};
use datapath_types::FlowKind;

use crate::frame::{ACK, FIN, Frame, RST, SYN, at};
use crate::harness::{
    CLIENT, Cluster, Node, OPTION, POD, REDIRECT, WORKER, WORKER2, client, datagram, pod, request, state, vip,
};

/// A node with this range of SNAT ports.
fn worker_with_ports(ports: (u16, u16)) -> Node {
    let mut wanted = state(WORKER, Snat, &[(POD, WORKER2)]);
    wanted.options.snat_ports = ports;
    Node::new(&wanted).expect("loads")
}

/// Forwards a packet and gives the source that stands in for the client.
#[track_caller]
fn forward(worker: &mut Node, frame: &Frame) -> SocketAddrV4 {
    let out = worker.run("from_netdev", &frame.bytes());
    assert_eq!(out.action, REDIRECT, "the packet is not forwarded");
    let l4 = 14 + frame.ihl();
    let source = at(WORKER, u16::from_be_bytes([out.bytes[l4], out.bytes[l4 + 1]]));
    out.assert_sent(&frame.clone().from(source).to(pod()).hop().bytes());
    source
}

#[test]
fn source_and_destination_are_rewritten() {
    for frame in [request(SYN), datagram()] {
        let mut worker = Node::of(WORKER, Snat);
        let source = forward(&mut worker, &frame);
        assert!((61000..=65535).contains(&source.port()), "port {} is out of range", source.port());
        for direction in ["forward", "reply"] {
            let flow = worker.flow(direction);
            assert_eq!((flow.client, flow.frontend, flow.backend), (client(), vip(), pod()));
            assert_eq!(flow.snat, Some(source));
            assert_eq!(flow.flags, ["snat"]);
        }
        assert_eq!(worker.counter("forwarded-snat"), 1);
        assert_eq!(worker.counter("option-inserted"), 0, "snat needs no option");
        assert_eq!(worker.counter("flow-opened"), 1, "one flow counts as several");
    }
}

#[test]
fn the_whole_connection_keeps_its_port_and_comes_back_as_the_frontends() {
    let mut cluster = Cluster::new(Snat);
    let source = forward(&mut cluster.worker, &request(SYN));
    let mut sent = 0;
    for (there, flags, len) in [
        (request(SYN), SYN | ACK, 40),
        (request(ACK).payload(b"GET /"), ACK, 1500),
        (request(FIN | ACK).after(5), FIN | ACK, 40),
        (request(RST).after(6), RST, 40),
    ] {
        assert_eq!(forward(&mut cluster.worker, &there), source, "the port changed within a connection");
        let forwarded = there.clone().from(source).to(pod()).hop();
        let delivered = cluster.worker2.run("from_netdev", &forwarded.bytes());
        delivered.assert_sent(&forwarded.hop().bytes());
        // The backend's node knows nothing of the flow; it only sends the reply past its stack.
        let reply = Frame::tcp(pod(), source, flags).total_len(len).after(sent);
        sent += len as u32 - 40;
        let sent = cluster.worker2.run("from_pod", &reply.bytes());
        sent.assert_sent(&reply.clone().hop().bytes());
        let home = cluster.worker.run("from_netdev", &sent.bytes);
        home.assert_sent(&reply.from(vip()).to(client()).hop().hop().bytes());
    }
    assert!(cluster.worker2.flows().is_empty(), "the backend's node keeps state in snat");
    let reverse = cluster.worker.flow("reply");
    assert_eq!(reverse.flags, ["snat", "replied", "fin-client", "fin-backend", "rst"]);
}

#[test]
fn datagrams_come_back_as_the_frontends() {
    for mode in [Snat, Hybrid] {
        let mut worker = Node::of(WORKER, mode);
        let source = forward(&mut worker, &datagram());
        for (len, checksum) in [(28, true), (29, true), (1472, true), (100, false)] {
            let reply = Frame::udp(pod(), source).total_len(len);
            let reply = if checksum { reply } else { reply.no_checksum() };
            let home = worker.run("from_netdev", &reply.bytes());
            home.assert_sent(&reply.from(vip()).to(client()).hop().bytes());
        }
        assert_eq!(worker.counter("reply-reversed"), 4);
    }
}

#[test]
fn hybrid_sends_tcp_as_dsr_and_udp_as_snat() {
    let mut worker = Node::of(WORKER, Hybrid);
    let out = worker.run("from_netdev", &request(SYN).bytes());
    out.assert_sent(&request(SYN).to(pod()).hop().options(&OPTION).bytes());
    forward(&mut worker, &datagram());
    assert_eq!((worker.counter("forwarded-dsr"), worker.counter("forwarded-snat")), (1, 1));
}

#[test]
fn a_client_port_in_the_range_is_kept() {
    for port in [61000, 61234, 65535] {
        let mut worker = Node::of(WORKER, Snat);
        assert_eq!(forward(&mut worker, &request(SYN).from(at(CLIENT, port))).port(), port);
        assert_eq!(worker.counter("snat-collision"), 0);
    }
}

/// A client of its own address, which asks from port 40000.
fn other_client(n: u8) -> SocketAddrV4 {
    at([172, 18, 1, n].into(), 40000)
}

#[test]
fn two_clients_never_share_a_port_until_none_is_left() {
    let mut worker = worker_with_ports((61000, 61003));
    let mut ports = BTreeSet::new();
    for n in 0..4 {
        ports.insert(forward(&mut worker, &request(SYN).from(other_client(n))).port());
    }
    assert_eq!(ports, (61000..=61003).collect(), "four clients did not get the four ports");
    worker.assert_drop("from_netdev", &request(SYN).from(other_client(4)).bytes(), "snat-exhausted");
    assert_eq!(worker.flows().len(), 8, "a refused flow left an entry");
    // The same ports are free towards the other protocol, and for those who have them.
    forward(&mut worker, &datagram().from(other_client(4)));
    forward(&mut worker, &request(ACK).from(other_client(0)));
}

#[test]
fn a_collision_takes_the_next_port() {
    let mut worker = Node::of(WORKER, Snat);
    let port = 61000;
    let first = forward(&mut worker, &request(SYN).from(at(CLIENT, port)));
    let second = forward(&mut worker, &request(SYN).from(at([172, 18, 0, 77].into(), port)));
    assert_eq!((first.port(), second.port()), (port, port + 1));
    assert_eq!(worker.counter("snat-collision"), 1);
}

#[test]
fn the_last_port_is_followed_by_the_first() {
    let mut worker = Node::of(WORKER, Snat);
    forward(&mut worker, &request(SYN).from(at(CLIENT, 65535)));
    let next = forward(&mut worker, &request(SYN).from(at([172, 18, 0, 77].into(), 65535)));
    assert_eq!(next.port(), 61000);
}

#[test]
fn an_expired_flow_gives_its_port_back() {
    let mut worker = worker_with_ports((61000, 61000));
    forward(&mut worker, &datagram().from(other_client(0)));
    worker.assert_drop("from_netdev", &datagram().from(other_client(1)).bytes(), "snat-exhausted");
    worker.age(121);
    forward(&mut worker, &datagram().from(other_client(1)));
}

#[test]
fn a_lost_reverse_entry_is_rebuilt_by_the_next_request() {
    let mut worker = Node::of(WORKER, Snat);
    let source = forward(&mut worker, &request(SYN));
    assert_eq!(worker.forget(FlowKind::REPLY), 1);
    let reply = Frame::tcp(pod(), source, ACK);
    worker.assert_drop("from_netdev", &reply.bytes(), "no-snat-state");
    assert_eq!(forward(&mut worker, &request(ACK)), source);
    assert_eq!(worker.counter("twin-repaired"), 1);
    worker.run("from_netdev", &reply.bytes()).assert_sent(&reply.from(vip()).to(client()).hop().bytes());
}

#[test]
fn a_lost_forward_entry_finds_its_port_again() {
    for port in [43210, 61500] {
        let mut worker = Node::of(WORKER, Snat);
        let from = at(CLIENT, port);
        let source = forward(&mut worker, &request(SYN).from(from));
        assert_eq!(worker.forget(FlowKind::FORWARD), 1);
        assert_eq!(forward(&mut worker, &request(ACK).from(from)), source, "the connection is broken");
        let reply = Frame::tcp(pod(), source, ACK);
        let home = worker.run("from_netdev", &reply.bytes());
        home.assert_sent(&reply.from(vip()).to(from).hop().bytes());
        assert_eq!(worker.flows().len(), 2);
    }
}

#[test]
fn a_reply_without_state_does_not_reach_the_stack() {
    for mode in [Snat, Hybrid, DatapathMode::Dsr] {
        let mut worker = Node::of(WORKER, mode);
        let lost = at(WORKER, 62000);
        for reply in [Frame::tcp(pod(), lost, SYN | ACK), Frame::udp(pod(), lost)] {
            worker.assert_drop("from_netdev", &reply.bytes(), "no-snat-state");
        }
        // What the node itself asked is not in the range, or is not from a backend.
        for own in [Frame::tcp(pod(), at(WORKER, 40000), ACK), Frame::udp(at(CLIENT, 53), lost)] {
            worker.run("from_netdev", &own.bytes()).assert_passed(&own.bytes());
        }
    }
}

#[test]
fn a_new_connection_from_the_same_port_after_the_end_of_the_first() {
    let mut worker = Node::of(WORKER, Snat);
    let source = forward(&mut worker, &request(SYN));
    forward(&mut worker, &request(FIN | ACK));
    assert_eq!(forward(&mut worker, &request(SYN)), source);
    assert_eq!(worker.flow("reply").flags, ["snat"], "the old connection's end is still noted");
    assert_eq!(worker.flow("forward").flags, ["snat"]);
}

#[test]
fn full_size_packets_pass_in_snat() {
    let mut worker = Node::of(WORKER, Snat);
    let source = forward(&mut worker, &datagram().total_len(1500));
    forward(&mut worker, &request(SYN).total_len(1500));
    let reply = Frame::udp(pod(), source).total_len(1500);
    let home = worker.run("from_netdev", &reply.bytes());
    home.assert_sent(&reply.from(vip()).to(client()).hop().bytes());
}
