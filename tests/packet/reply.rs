//! Mode dsr, pod to client: every packet leaves with the frontend's address, or not at all.

use datapath_agent::DatapathMode::Dsr;
use datapath_types::FlowKind;

use crate::frame::{ACK, FIN, Frame, RST, SYN, at};
use crate::harness::{
    CLIENT, Cluster, Context, LOCAL_POD, Node, OK, POD, WORKER2, client, datagram, pod, request, response,
    vip,
};

#[test]
fn every_reply_of_a_connection_has_the_frontend_as_source() {
    let mut cluster = Cluster::new(Dsr);
    cluster.deliver(&request(SYN));
    for reply in [
        response(SYN | ACK),
        response(ACK),
        response(ACK).total_len(1500),
        response(ACK).total_len(41),
        response(FIN | ACK),
        response(RST),
        response(RST | ACK),
    ] {
        let out = cluster.worker2.run("from_pod", &reply.bytes());
        out.assert_sent(&reply.from(vip()).hop().bytes());
    }
    assert_eq!(cluster.worker2.counter("reply-at-pod"), 7);
}

#[test]
fn every_datagram_back_has_the_frontend_as_source() {
    let mut cluster = Cluster::new(Dsr);
    for size in [28, 33, 900] {
        let frame = datagram().total_len(size);
        cluster.deliver(&frame).assert_sent(&frame.to(pod()).hop().hop().bytes());
        let reply = Frame::udp(pod(), client()).total_len(size + 500);
        let out = cluster.worker2.run("from_pod", &reply.bytes());
        out.assert_sent(&reply.from(vip()).hop().bytes());
    }
    assert_eq!(cluster.worker2.counter("flow-opened"), 1);
}

#[test]
fn options_of_a_reply_stay() {
    let mut cluster = Cluster::new(Dsr);
    cluster.deliver(&request(SYN));
    let reply = response(SYN | ACK).options(&[0x94, 4, 0, 0]);
    let out = cluster.worker2.run("from_pod", &reply.bytes());
    out.assert_sent(&reply.from(vip()).hop().bytes());
}

#[test]
fn without_the_reply_entry_nothing_leaves() {
    let mut cluster = Cluster::new(Dsr);
    cluster.deliver(&request(SYN));
    cluster.deliver(&datagram());
    assert_eq!(cluster.worker2.forget(FlowKind::REPLY), 2);
    for reply in [
        response(SYN | ACK),
        response(ACK).payload(b"HTTP/1.1 200 OK"),
        response(FIN | ACK),
        response(RST),
        Frame::udp(pod(), client()),
    ] {
        cluster.worker2.assert_drop("from_pod", &reply.bytes(), "no-reply-state");
        // The safety net: what a pod's hook missed does not pass the uplink either.
        cluster.worker2.assert_drop("to_netdev", &reply.bytes(), "no-reply-state");
    }
}

#[test]
fn a_silent_flow_expires_and_its_replies_stay() {
    let mut cluster = Cluster::new(Dsr);
    cluster.deliver(&datagram());
    cluster.worker2.age(100);
    let reply = Frame::udp(pod(), client());
    let out = cluster.worker2.run("from_pod", &reply.bytes());
    out.assert_sent(&reply.clone().from(vip()).hop().bytes());
    cluster.worker2.age(121);
    cluster.worker2.assert_drop("from_pod", &reply.bytes(), "no-reply-state");
    // The next datagram of the client carries the option, so the flow is there again at once.
    cluster.worker.age(121);
    cluster.deliver(&datagram());
    let out = cluster.worker2.run("from_pod", &reply.bytes());
    out.assert_sent(&reply.from(vip()).hop().bytes());
}

#[test]
fn the_pods_own_traffic_is_its_own() {
    let mut worker2 = Node::of(WORKER2, Dsr);
    // From another port than the service's, and from a pod without a service.
    for src in [at(POD, 40000), at(LOCAL_POD, 8080)] {
        for frame in [Frame::tcp(src, at(CLIENT, 443), SYN), Frame::udp(src, at(CLIENT, 53))] {
            worker2.run("from_pod", &frame.bytes()).assert_passed(&frame.bytes());
            worker2.run("to_netdev", &frame.bytes()).assert_passed(&frame.bytes());
        }
    }
}

#[test]
fn a_packet_with_the_mark_passes_the_egress_hooks_untouched() {
    let mut cluster = Cluster::new(Dsr);
    cluster.deliver(&request(SYN));
    let context = Context { mark: datapath_types::MARK_DONE, ..Context::default() };
    for program in ["to_netdev", "to_pod"] {
        let reply = response(SYN | ACK).bytes();
        let out = cluster.worker2.run_with(program, &reply, context);
        assert_eq!((out.action, &out.bytes), (OK, &reply), "{program} rewrote a marked packet");
        let out = cluster.worker2.run_with("to_netdev", &reply, Context { mark: 1, ..context });
        assert_ne!(out.bytes, reply, "another mark keeps a reply from being rewritten");
    }
}
