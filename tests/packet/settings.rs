//! Switches of a node and of a service: events, session affinity.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use datapath_agent::DatapathMode::{Dsr, Snat};
use datapath_agent::NodeState;
use datapath_types::{EventAction, Hook};

use crate::frame::{ACK, Frame, RST, SYN, at};
use crate::harness::{
    CLIENT, Cluster, Node, POD, REDIRECT, WORKER, WORKER2, client, datagram, pod, request, response, state,
    vip,
};

fn with_events(node: Ipv4Addr, mode: datapath_agent::DatapathMode) -> Node {
    let mut wanted = state(node, mode, &[(POD, WORKER2)]);
    wanted.options.events = true;
    Node::new(&wanted).expect("loads")
}

/// Before and after of an event, in words.
fn words(event: &datapath_types::Event) -> [std::net::SocketAddrV4; 4] {
    let socket = |addr: u32, port| at(Ipv4Addr::from(addr.to_ne_bytes()), u16::from_be(port));
    [
        socket(event.src, event.sport),
        socket(event.dst, event.dport),
        socket(event.new_src, event.new_sport),
        socket(event.new_dst, event.new_dport),
    ]
}

#[test]
fn each_rewrite_is_one_event() {
    let mut worker = with_events(WORKER, Dsr);
    let mut worker2 = with_events(WORKER2, Dsr);
    let sent = worker.run("from_netdev", &request(SYN).id(0x1234).bytes());
    let [event] = worker.events()[..] else { panic!("the forward rewrite is not one event") };
    assert_eq!((event.hook, event.action), (Hook::FromNetdev as u8, EventAction::Dnat as u8));
    assert_eq!(words(&event), [client(), vip(), client(), pod()]);
    assert_eq!((event.proto, event.tcp_flags, event.pad), (6, SYN, 0));
    assert_eq!(u16::from_be(event.ip_id), 0x1234);
    assert!(event.time > 0);

    worker2.run("from_netdev", &sent.bytes);
    let [event] = worker2.events()[..] else { panic!("the delivery is not one event") };
    assert_eq!((event.hook, event.action), (Hook::FromNetdev as u8, EventAction::Deliver as u8));
    assert_eq!(words(&event), [client(), pod(), client(), pod()]);

    worker2.run("from_pod", &response(SYN | ACK).bytes());
    let [event] = worker2.events()[..] else { panic!("the reply is not one event") };
    assert_eq!((event.hook, event.action), (Hook::FromPod as u8, EventAction::Reply as u8));
    assert_eq!(words(&event), [pod(), client(), vip(), client()]);
    assert_eq!(event.tcp_flags, SYN | ACK);
}

#[test]
fn snat_events_name_both_rewrites() {
    let mut worker = with_events(WORKER, Snat);
    worker.run("from_netdev", &datagram().bytes());
    let source = worker.flow("forward").snat.expect("a SNAT source");
    worker.run("from_netdev", &Frame::udp(pod(), source).bytes());
    let [there, back] = worker.events()[..] else { panic!("there and back are not two events") };
    assert_eq!(there.action, EventAction::DnatSnat as u8);
    assert_eq!(words(&there), [client(), vip(), source, pod()]);
    assert_eq!(back.action, EventAction::ReverseSnat as u8);
    assert_eq!(words(&back), [pod(), source, vip(), client()]);
}

#[test]
fn what_is_not_rewritten_makes_no_event() {
    let mut worker2 = with_events(WORKER2, Dsr);
    worker2.run("from_netdev", &request(SYN).to(at(WORKER2, 22)).bytes());
    worker2.run("from_pod", &response(RST).bytes());
    let bad = request(SYN).to(pod()).options(&[0x9a, 8, 0, 1, 1, 2, 3, 4]);
    worker2.run("from_netdev", &bad.bytes());
    assert!(worker2.events().is_empty());
}

#[test]
fn without_the_switch_there_are_no_events() {
    let mut cluster = Cluster::new(Dsr);
    cluster.deliver(&request(SYN));
    cluster.worker2.run("from_pod", &response(SYN | ACK).bytes());
    assert!(cluster.worker.events().is_empty() && cluster.worker2.events().is_empty());
}

/// Eight backends behind a service with session affinity.
fn sticky(seconds: u32) -> NodeState {
    let backends: Vec<_> = (1..=8u8).map(|n| (Ipv4Addr::new(10, 0, 1, n), WORKER2)).collect();
    let mut wanted = state(WORKER, Dsr, &backends);
    for service in &mut wanted.services {
        service.affinity_seconds = Some(seconds);
    }
    wanted
}

/// The backends that a client's connections from these ports go to.
fn chosen(worker: &mut Node, client: Ipv4Addr, ports: std::ops::Range<u16>) -> BTreeSet<Ipv4Addr> {
    let choose = |port| {
        let out = worker.run("from_netdev", &request(SYN).from(at(client, port)).bytes());
        assert_eq!(out.action, REDIRECT);
        Ipv4Addr::from(<[u8; 4]>::try_from(&out.bytes[30..34]).expect("four bytes"))
    };
    ports.map(choose).collect()
}

#[test]
fn a_client_sticks_to_its_backend() {
    let mut worker = Node::new(&sticky(10_800)).expect("loads");
    assert_eq!(chosen(&mut worker, CLIENT, 30000..30040).len(), 1, "the client changed its backend");
    let all: BTreeSet<_> =
        (1..40u8).flat_map(|n| chosen(&mut worker, [172, 18, 2, n].into(), 1..2)).collect();
    assert!(all.len() > 4, "different clients all got the same backends: {all:?}");
}

#[test]
fn a_client_leaves_a_backend_that_leaves() {
    let mut worker = Node::new(&sticky(10_800)).expect("loads");
    let before = chosen(&mut worker, CLIENT, 30000..30001);
    let mut leaving = sticky(10_800);
    for backend in leaving.services.iter_mut().flat_map(|s| &mut s.backends) {
        backend.terminating = before.contains(&backend.address);
    }
    worker.sync(&leaving);
    let after = chosen(&mut worker, CLIENT, 30001..30020);
    assert!(after.is_disjoint(&before), "the client sticks to a terminating backend");
    assert_eq!(after.len(), 1, "the client does not stick to its new backend");
}

#[test]
fn without_affinity_connections_are_spread() {
    let backends: Vec<_> = (1..=8u8).map(|n| (Ipv4Addr::new(10, 0, 1, n), WORKER2)).collect();
    let mut worker = Node::new(&state(WORKER, Dsr, &backends)).expect("loads");
    assert_eq!(chosen(&mut worker, CLIENT, 30000..30100).len(), 8);
    let frame = request(ACK);
    assert_eq!(worker.run("from_netdev", &frame.bytes()).action, REDIRECT);
}
