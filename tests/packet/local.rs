//! Backends on the node that was asked: mode local, and the same case in the other modes.

use datapath_agent::DatapathMode::{Dsr, Hybrid, Local, Snat};
use datapath_types::FlowKind;

use crate::frame::{ACK, FIN, Frame, SYN, at};
use crate::harness::{
    LOCAL_POD, Node, POD, POD_PORT, WORKER, WORKER2, client, datagram, request, state, vip,
};

fn local() -> std::net::SocketAddrV4 {
    at(LOCAL_POD, POD_PORT)
}

#[test]
fn a_local_backend_gets_the_packet_with_the_clients_address_and_no_option() {
    for mode in [Dsr, Snat, Hybrid, Local] {
        let mut worker = Node::new(&state(WORKER, mode, &[(LOCAL_POD, WORKER)])).expect("loads");
        for frame in [request(SYN), request(ACK).payload(b"GET /"), request(FIN | ACK), datagram()] {
            worker.run("from_netdev", &frame.bytes()).assert_sent(&frame.to(local()).hop().bytes());
        }
        assert_eq!(worker.counter("forwarded-local"), 4);
        assert_eq!(worker.counter("option-inserted"), 0);
        let reply = Frame::tcp(local(), client(), SYN | ACK);
        worker.run("from_pod", &reply.bytes()).assert_sent(&reply.from(vip()).hop().bytes());
        let reply = Frame::udp(local(), client()).no_checksum();
        worker.run("from_pod", &reply.bytes()).assert_sent(&reply.from(vip()).hop().bytes());
    }
}

#[test]
fn both_entries_say_that_the_backend_is_local() {
    let mut worker = Node::new(&state(WORKER, Local, &[(LOCAL_POD, WORKER)])).expect("loads");
    worker.run("from_netdev", &request(SYN).bytes());
    for direction in ["forward", "reply"] {
        let flow = worker.flow(direction);
        assert_eq!((flow.client, flow.frontend, flow.backend), (client(), vip(), local()));
        assert_eq!(flow.snat, None);
        assert!(flow.flags.contains(&"local".to_string()), "{direction}: {:?}", flow.flags);
    }
}

#[test]
fn a_lost_reply_entry_is_rebuilt_by_the_next_request() {
    let mut worker = Node::new(&state(WORKER, Local, &[(LOCAL_POD, WORKER)])).expect("loads");
    worker.run("from_netdev", &request(SYN).bytes());
    assert_eq!(worker.forget(FlowKind::REPLY), 1);
    let reply = Frame::tcp(local(), client(), ACK);
    worker.assert_drop("from_pod", &reply.bytes(), "no-reply-state");
    worker.run("from_netdev", &request(ACK).bytes());
    worker.run("from_pod", &reply.bytes()).assert_sent(&reply.from(vip()).hop().bytes());
}

#[test]
fn a_node_without_a_local_backend_looks_dead() {
    let mut worker = Node::of(WORKER, Local);
    for frame in [request(SYN), request(ACK), datagram()] {
        worker.assert_drop("from_netdev", &frame.bytes(), "no-local-backend");
    }
    assert!(worker.flows().is_empty());
    assert_eq!(worker.counter("icmp-sent"), 0, "a node that must look dead answers");
}

#[test]
fn only_local_backends_are_chosen() {
    let backends = [(POD, WORKER2), (LOCAL_POD, WORKER), ([10, 0, 1, 109].into(), WORKER2)];
    let mut worker = Node::new(&state(WORKER, Local, &backends)).expect("loads");
    for port in 40000..40064 {
        let frame = request(SYN).from(at(*client().ip(), port));
        worker.run("from_netdev", &frame.bytes()).assert_sent(&frame.to(local()).hop().bytes());
    }
}

#[test]
fn pods_may_use_remote_backends_of_a_local_service() {
    // Kubernetes: externalTrafficPolicy is about traffic from outside; inside, all backends serve.
    let mut worker = Node::of(WORKER, Local);
    let asker = at([10, 0, 2, 50].into(), 50000);
    let frame = Frame::tcp(asker, at(crate::harness::CLUSTER_IP, 80), SYN);
    let want = frame.clone().to(crate::harness::pod()).hop();
    worker.run("from_pod", &frame.bytes()).assert_sent(&want.bytes());
}
