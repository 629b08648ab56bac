//! Packets that cannot be moved as they are: no room for the option, too large, out of hops.

use datapath_agent::DatapathMode::{Dsr, Snat};

use crate::frame::{ACK, Frame, Icmp, SYN, at};
use crate::harness::{
    CLIENT, Cluster, Context, LOCAL_POD, Node, OPTION, POD, REDIRECT, WORKER, WORKER2, client, datagram, pod,
    request, response, state,
};

/// Router alert (RFC 2113).
const ALERT: [u8; 4] = [0x94, 4, 0, 0];

#[test]
fn our_option_comes_first() {
    let mut cluster = Cluster::new(Dsr);
    for options in [&ALERT[..], &[1, 1, 1, 1], &[0x44, 12, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[1; 32]] {
        for frame in [request(SYN), datagram()] {
            let frame = frame.options(options);
            let want = frame.clone().to(pod()).hop();
            let out = cluster.worker.run("from_netdev", &frame.bytes());
            out.assert_sent(&want.clone().options_first(&OPTION).bytes());
            let delivered = cluster.worker2.run("from_netdev", &out.bytes);
            delivered.assert_sent(&want.hop().bytes());
        }
    }
}

#[test]
fn a_header_without_room_is_dropped() {
    let mut worker = Node::of(WORKER, Dsr);
    for words in [9, 10] {
        for frame in [request(SYN), datagram()] {
            let frame = frame.options(&vec![1; words * 4]);
            worker.assert_drop("from_netdev", &frame.bytes(), "option-no-room");
        }
    }
    // What needs no option has room.
    let frame = request(ACK).options(&[1; 40]);
    let mut snat = Node::of(WORKER, Snat);
    assert_eq!(snat.run("from_netdev", &frame.bytes()).action, REDIRECT);
}

#[test]
fn a_request_out_of_hops_is_answered_by_the_node() {
    for mode in [Dsr, Snat] {
        let mut worker = Node::of(WORKER, mode);
        for ttl in [0, 1] {
            for frame in [request(SYN).ttl(ttl), datagram().ttl(ttl)] {
                let quoted = if frame.is_tcp() { 20 } else { 12 };
                let answer = Icmp::time_exceeded(WORKER, CLIENT, frame.quote(quoted)).bytes();
                worker.assert_answer("from_netdev", &frame.bytes(), &answer, "ttl-exceeded");
            }
        }
        let frame = request(SYN).ttl(2);
        assert_eq!(worker.run("from_netdev", &frame.bytes()).bytes[22], 1, "a TTL of 2 is enough");
    }
}

#[test]
fn a_request_out_of_hops_at_the_backends_node_shows_the_frontend() {
    let mut cluster = Cluster::new(Dsr);
    let forwarded = cluster.worker.run("from_netdev", &datagram().ttl(2).bytes());
    let seen = datagram().ttl(1).options(&OPTION);
    let answer = Icmp::time_exceeded(WORKER2, CLIENT, seen.quote(12)).bytes();
    cluster.worker2.assert_answer("from_netdev", &forwarded.bytes, &answer, "ttl-exceeded");
    // Without the option the flow's entry says which frontend it is.
    cluster.deliver(&request(SYN));
    let dying = request(ACK).to(pod()).ttl(1);
    let answer = Icmp::time_exceeded(WORKER2, CLIENT, request(ACK).ttl(1).quote(20)).bytes();
    cluster.worker2.assert_answer("from_netdev", &dying.bytes(), &answer, "ttl-exceeded");
}

#[test]
fn a_reply_out_of_hops_is_answered_to_the_pod() {
    let mut cluster = Cluster::new(Dsr);
    cluster.deliver(&request(SYN));
    let reply = response(SYN | ACK).ttl(1);
    let answer = Icmp::time_exceeded(WORKER2, POD, reply.quote(20)).bytes();
    cluster.worker2.assert_answer("from_pod", &reply.bytes(), &answer, "ttl-exceeded");
}

#[test]
fn a_datagram_that_the_option_makes_too_big_is_answered_with_the_mtu_that_fits() {
    let mut worker = Node::of(WORKER, Dsr);
    for len in [1493, 1499, 1500] {
        for frame in [datagram().total_len(len), datagram().total_len(len).may_fragment()] {
            let answer = Icmp::too_big(WORKER, CLIENT, 1492, frame.quote(48)).bytes();
            worker.assert_answer("from_netdev", &frame.bytes(), &answer, "too-big-for-option");
        }
    }
    let fits = datagram().total_len(1492);
    let want = fits.clone().to(pod()).hop().options(&OPTION);
    worker.run("from_netdev", &fits.bytes()).assert_sent(&want.bytes());
}

#[test]
fn a_syn_with_too_much_data_is_answered_too() {
    let mut worker = Node::of(WORKER, Dsr);
    let frame = request(SYN).total_len(1500);
    let answer = Icmp::too_big(WORKER, CLIENT, 1492, frame.quote(48)).bytes();
    worker.assert_answer("from_netdev", &frame.bytes(), &answer, "too-big-for-option");
}

#[test]
fn a_full_size_packet_without_option_passes() {
    let mut cluster = Cluster::new(Dsr);
    cluster.deliver(&request(SYN));
    let frame = request(ACK).total_len(1500);
    cluster.deliver(&frame).assert_sent(&frame.to(pod()).hop().hop().bytes());
}

#[test]
fn a_packet_larger_than_the_uplink_is_answered() {
    let mut worker = Node::of(WORKER, Snat);
    let frame = datagram().total_len(1501);
    let answer = Icmp::too_big(WORKER, CLIENT, 1500, frame.quote(48)).bytes();
    worker.assert_answer("from_netdev", &frame.bytes(), &answer, "too-big");
}

#[test]
fn a_pod_with_a_smaller_mtu_is_told_of_in_the_frontends_name() {
    let mut worker = Node::of(WORKER, Dsr);
    let mut worker2 = Node::with_pod_mtu(&state(WORKER2, Dsr, &[(POD, WORKER2)]), 1400).expect("loads");
    // The option does not count: the pod does not get it.
    let fits = datagram().total_len(1400);
    let out = worker.run("from_netdev", &fits.bytes());
    worker2.run("from_netdev", &out.bytes).assert_sent(&fits.to(pod()).hop().hop().bytes());

    let frame = datagram().total_len(1401);
    let out = worker.run("from_netdev", &frame.bytes());
    let seen = frame.hop().options(&OPTION);
    let answer = Icmp::too_big(WORKER, CLIENT, 1400, seen.quote(40)).bytes();
    worker2.assert_answer("from_netdev", &out.bytes, &answer, "too-big");

    let out = worker.run("from_netdev", &request(SYN).bytes());
    worker2.run("from_netdev", &out.bytes);
    let frame = request(ACK).total_len(1500);
    let out = worker.run("from_netdev", &frame.bytes());
    let answer = Icmp::too_big(WORKER, CLIENT, 1400, frame.hop().quote(48)).bytes();
    worker2.assert_answer("from_netdev", &out.bytes, &answer, "too-big");
}

#[test]
fn a_reply_larger_than_the_uplink_is_answered_by_the_node() {
    let mut cluster = Cluster::new(Dsr);
    cluster.deliver(&datagram());
    let reply = Frame::udp(pod(), client()).total_len(1600);
    let answer = Icmp::too_big(WORKER2, POD, 1500, reply.quote(48)).bytes();
    cluster.worker2.assert_answer("from_pod", &reply.bytes(), &answer, "too-big");
}

#[test]
fn a_pods_own_request_that_is_too_big_is_answered_to_the_pod() {
    let mut worker = Node::of(WORKER, Dsr);
    let asker = at(LOCAL_POD, 50000);
    let frame = Frame::udp(asker, at(crate::harness::CLUSTER_IP, 80)).total_len(1501);
    let answer = Icmp::too_big(WORKER, LOCAL_POD, 1500, frame.quote(48)).bytes();
    worker.assert_answer("from_pod", &frame.bytes(), &answer, "too-big");
}

#[test]
fn of_a_gso_packet_the_segments_count() {
    let mut cluster = Cluster::new(Dsr);
    cluster.deliver(&request(SYN));
    let frame = request(ACK).total_len(3040);
    let segments = |gso_size| Context { gso_size, gso_segs: 3, ..Context::default() };
    // 20 + 20 + 1460 is the MTU.
    let out = cluster.worker.run_with("from_netdev", &frame.bytes(), segments(1460));
    out.assert_sent(&frame.clone().to(pod()).hop().bytes());
    let out = cluster.worker.run_with("from_netdev", &frame.bytes(), segments(1461));
    out.assert_sent(&Icmp::too_big(WORKER, CLIENT, 1500, frame.quote(48)).bytes());
    assert_eq!(cluster.worker.drops("too-big"), 1);

    // 20 + 8 + 1464 and the option are the MTU; one byte more is not.
    let frame = datagram().total_len(3000);
    let out = cluster.worker.run_with("from_netdev", &frame.bytes(), segments(1465));
    out.assert_sent(&Icmp::too_big(WORKER, CLIENT, 1492, frame.quote(48)).bytes());
    assert_eq!(cluster.worker.drops("too-big-for-option"), 1);
}

#[test]
fn nobody_is_told_about_a_packet_without_a_source() {
    let mut worker = Node::of(WORKER, Dsr);
    let frame = request(SYN).from(at([0, 0, 0, 0].into(), 1)).ttl(1);
    worker.assert_drop("from_netdev", &frame.bytes(), "martian-source");
    assert_eq!(worker.counter("icmp-sent"), 0);
}
