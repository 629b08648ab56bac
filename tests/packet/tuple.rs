//! One client port, two frontends, one pod: the pod sees the same 5-tuple twice, and must not answer one
//! client socket as the other's frontend (Cilium issues 18632 and 11810).

use datapath_agent::DatapathMode::Dsr;

use crate::frame::{ACK, FIN, Frame, RST, SYN, at};
use crate::harness::{
    CONTROL, LOCAL_POD, NODE_PORT, Node, OPTION, POD_PORT, WORKER, WORKER2, client, datagram, pod, request,
    response, state, vip,
};

/// The frontend of another node, and the option that names it.
fn other_vip() -> std::net::SocketAddrV4 {
    at(CONTROL, NODE_PORT)
}

const OTHER_OPTION: [u8; 8] = [0x9a, 8, 0x7d, 0x00, 172, 18, 0, 4];

/// As it arrives at the pod's node from the first or the second frontend.
fn first(frame: Frame) -> Vec<u8> {
    frame.to(pod()).options(&OPTION).bytes()
}

fn second(frame: Frame) -> Vec<u8> {
    frame.to(pod()).options(&OTHER_OPTION).bytes()
}

/// The source that the client sees on a reply.
#[track_caller]
fn assert_reply_from(worker2: &mut Node, reply: Frame, source: std::net::SocketAddrV4) {
    let out = worker2.run("from_pod", &reply.bytes());
    out.assert_sent(&reply.from(source).hop().bytes());
}

#[test]
fn a_second_frontend_cannot_steal_a_living_connection() {
    let mut worker2 = Node::of(WORKER2, Dsr);
    worker2.run("from_netdev", &first(request(SYN)));
    worker2.assert_drop("from_netdev", &second(request(SYN)), "tuple-in-use");
    worker2.assert_drop("from_netdev", &second(request(ACK)), "tuple-in-use");
    assert_reply_from(&mut worker2, response(SYN | ACK), vip());
}

#[test]
fn it_gets_the_tuple_when_the_first_is_closing() {
    let client_ends = ("from_netdev", request(FIN | ACK).to(pod()));
    let backend_ends = ("from_pod", response(FIN | ACK));
    let ends = [
        vec![client_ends.clone(), backend_ends.clone()],
        vec![backend_ends, client_ends],
        vec![("from_netdev", request(RST).to(pod()))],
        vec![("from_pod", response(RST))],
    ];
    for end in ends {
        let mut worker2 = Node::of(WORKER2, Dsr);
        worker2.run("from_netdev", &first(request(SYN)));
        worker2.run("from_pod", &response(SYN | ACK).bytes());
        for (program, frame) in end {
            worker2.run(program, &frame.bytes());
        }
        let want = request(SYN).to(pod()).hop();
        worker2.run("from_netdev", &second(request(SYN))).assert_sent(&want.bytes());
        assert_reply_from(&mut worker2, response(SYN | ACK), other_vip());
        assert_eq!(worker2.flow("reply").flags, ["dsr", "replied"]);
    }
}

#[test]
fn it_gets_the_tuple_when_the_first_has_long_been_silent() {
    let mut worker2 = Node::of(WORKER2, Dsr);
    worker2.run("from_netdev", &first(request(SYN)));
    worker2.age(59);
    worker2.assert_drop("from_netdev", &second(request(SYN)), "tuple-in-use");
    worker2.age(2);
    worker2.run("from_netdev", &second(request(SYN)));
    assert_reply_from(&mut worker2, response(SYN | ACK), other_vip());
}

#[test]
fn a_direct_connection_to_the_pod_cannot_steal_it_either() {
    let mut worker2 = Node::of(WORKER2, Dsr);
    worker2.run("from_netdev", &first(request(SYN)));
    let direct = request(SYN).to(pod());
    worker2.assert_drop("from_netdev", &direct.bytes(), "tuple-in-use");
    assert_reply_from(&mut worker2, response(SYN | ACK), vip());
}

#[test]
fn a_direct_connection_after_the_end_is_not_answered_as_the_frontend() {
    let mut worker2 = Node::of(WORKER2, Dsr);
    worker2.run("from_netdev", &first(request(SYN)));
    worker2.run("from_netdev", &request(RST).to(pod()).bytes());
    let direct = request(SYN).to(pod());
    worker2.run("from_netdev", &direct.bytes()).assert_sent(&direct.hop().bytes());
    assert!(worker2.flows().is_empty(), "the old flow would rewrite the new connection");
    worker2.assert_drop("from_pod", &response(SYN | ACK).bytes(), "no-reply-state");
}

#[test]
fn datagrams_follow_the_newest_frontend() {
    let mut worker2 = Node::of(WORKER2, Dsr);
    let reply = Frame::udp(pod(), client());
    for _ in 0..2 {
        worker2.run("from_netdev", &first(datagram()));
        assert_reply_from(&mut worker2, reply.clone(), vip());
        worker2.run("from_netdev", &second(datagram()));
        assert_reply_from(&mut worker2, reply.clone(), other_vip());
    }
    // A datagram straight to the pod is nobody's flow.
    worker2.run("from_netdev", &datagram().to(pod()).bytes());
    worker2.assert_drop("from_pod", &reply.bytes(), "no-reply-state");
}

#[test]
fn a_local_flow_is_protected_like_a_remote_one() {
    let mut worker = Node::new(&state(WORKER, Dsr, &[(LOCAL_POD, WORKER)])).expect("loads");
    let local = at(LOCAL_POD, POD_PORT);
    worker.run("from_netdev", &request(SYN).bytes());
    let through_control = request(SYN).to(local).options(&OTHER_OPTION);
    worker.assert_drop("from_netdev", &through_control.bytes(), "tuple-in-use");
    worker.run("from_netdev", &request(RST).bytes());
    let want = request(SYN).to(local).hop();
    worker.run("from_netdev", &through_control.bytes()).assert_sent(&want.bytes());
    let reply = Frame::tcp(local, client(), SYN | ACK);
    worker.run("from_pod", &reply.bytes()).assert_sent(&reply.from(other_vip()).hop().bytes());
}

#[test]
fn other_tuples_are_not_touched() {
    let mut worker2 = Node::of(WORKER2, Dsr);
    worker2.run("from_netdev", &first(request(SYN)));
    let neighbour = at(*client().ip(), client().port() + 1);
    let frame = request(SYN).from(neighbour);
    worker2
        .run("from_netdev", &second(frame))
        .assert_sent(&request(SYN).from(neighbour).to(pod()).hop().bytes());
    assert_reply_from(&mut worker2, response(SYN | ACK), vip());
    assert_reply_from(&mut worker2, Frame::tcp(pod(), neighbour, SYN | ACK), other_vip());
}
