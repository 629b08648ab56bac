//! What of TCP the entries of a flow follow: nobody who does not see a connection can end its entry, half a
//! connection is a connection, and what the client sends again finds a backend's node that has forgotten.

use datapath_agent::DatapathMode::{self, Dsr, Hybrid, Local, Snat};
use datapath_types::FlowKind;

use crate::frame::{ACK, FIN, Frame, ISN, Icmp, RST, SYN, at};
use crate::harness::{
    CLIENT, Cluster, Context, LOCAL_POD, Node, OPTION, POD, POD_PORT, SHOT, WORKER, WORKER2, client, pod,
    request, response, state, vip,
};

/// An established connection of a cluster: the client asked, the pod answered.
fn established() -> Cluster {
    let mut cluster = Cluster::new(Dsr);
    cluster.deliver(&request(SYN));
    cluster.worker2.run("from_pod", &response(SYN | ACK).bytes());
    cluster.deliver(&request(ACK));
    cluster
}

/// Every node that sees both directions of the connection: its request to a pod of its own, and the reply.
fn local(mode: DatapathMode) -> Node {
    let mut worker = Node::new(&state(WORKER, mode, &[(LOCAL_POD, WORKER)])).expect("loads");
    worker.run("from_netdev", &request(SYN).bytes());
    worker.run("from_pod", &from_local(SYN | ACK).bytes());
    worker.run("from_netdev", &request(ACK).bytes());
    worker
}

fn from_local(flags: u8) -> Frame {
    Frame::tcp(at(LOCAL_POD, POD_PORT), client(), flags)
}

/// Sequence numbers that somebody who does not see the connection may try.
fn guesses() -> Vec<u32> {
    let near = [2, 3, 100, 65_535, 1 << 19, 1 << 20, 1 << 21, 1 << 31];
    let around = near.iter().flat_map(|n| [ISN.wrapping_add(*n), ISN.wrapping_sub(*n)]);
    around.chain([0, 1, ISN, u32::MAX]).collect()
}

/// Whether an entry lasts as long as that of a living connection.
#[track_caller]
fn assert_lives(node: &mut Node, program: &str, frame: &Frame) {
    node.age(7_000);
    let out = node.run(program, &frame.bytes());
    assert_eq!(out.action, crate::harness::REDIRECT, "the flow is gone after two hours");
}

#[test]
fn a_guessed_reset_ends_nothing() {
    let mut cluster = established();
    for seq in guesses() {
        for flags in [RST, RST | ACK] {
            cluster.deliver(&request(flags).seq(seq));
        }
    }
    assert!(!cluster.worker2.flow("reply").flags.contains(&"rst".into()));
    assert!(!cluster.worker.flow("forward").flags.contains(&"rst".into()));
    assert_lives(&mut cluster.worker2, "from_pod", &response(ACK).payload(b"push"));
    assert_lives(&mut cluster.worker, "from_netdev", &request(ACK));
}

#[test]
fn a_guessed_reset_ends_nothing_where_both_directions_pass() {
    for mode in [Dsr, Snat, Hybrid, Local] {
        let mut worker = local(mode);
        for seq in guesses() {
            worker.run("from_netdev", &request(RST).seq(seq).bytes());
        }
        for direction in ["forward", "reply"] {
            let flags = worker.flow(direction).flags;
            assert!(!flags.contains(&"rst".into()), "{mode:?}, {direction}: {flags:?}");
        }
        assert_lives(&mut worker, "from_pod", &from_local(ACK).payload(b"push"));
    }
}

#[test]
fn a_guessed_reset_in_the_backends_name_ends_nothing_in_snat() {
    let mut cluster = Cluster::new(Snat);
    cluster.deliver(&request(SYN));
    let source = cluster.worker.flow("forward").snat.expect("a SNAT source");
    let reply = |flags| Frame::tcp(pod(), source, flags);
    cluster.worker.run("from_netdev", &reply(SYN | ACK).bytes());
    cluster.worker.run("from_netdev", &request(ACK).bytes());
    for seq in guesses() {
        cluster.worker.run("from_netdev", &reply(RST).seq(seq).bytes());
        cluster.worker.run("from_netdev", &reply(RST | ACK).seq(seq).ack(seq).bytes());
    }
    assert!(!cluster.worker.flow("reply").flags.contains(&"rst".into()));
    cluster.worker.run("from_netdev", &reply(RST).bytes());
    assert!(cluster.worker.flow("reply").flags.contains(&"rst".into()), "a true reset does not count");
}

#[test]
fn data_beyond_the_window_and_then_a_reset_there_end_nothing_either() {
    let mut cluster = established();
    for seq in guesses().into_iter().filter(|seq| seq.wrapping_sub(ISN).wrapping_add(1 << 20) > 1 << 21) {
        cluster.deliver(&request(ACK).payload(b"guess").seq(seq));
        cluster.deliver(&request(RST).seq(seq.wrapping_add(5)));
    }
    assert!(!cluster.worker2.flow("reply").flags.contains(&"rst".into()));
}

#[test]
fn a_forged_syn_moves_nothing() {
    let mut cluster = established();
    for seq in guesses() {
        cluster.deliver(&request(SYN).seq(seq));
        cluster.deliver(&request(RST).seq(seq.wrapping_add(1)));
    }
    // One of the guesses is one before the connection's own next: that is no guess.
    let mut clean = established();
    clean.deliver(&request(SYN).seq(0x7000_0000));
    clean.deliver(&request(RST).seq(0x7000_0001));
    assert!(!clean.worker2.flow("reply").flags.contains(&"rst".into()));
    assert_lives(&mut clean.worker2, "from_pod", &response(ACK));
}

#[test]
fn true_resets_count() {
    // Of the client: after its SYN alone, in the middle, and behind data; of the backend: refusing, and in the
    // middle.
    let mut cluster = Cluster::new(Dsr);
    cluster.deliver(&request(SYN));
    cluster.deliver(&request(RST));
    assert_eq!(cluster.worker2.flow("reply").flags, ["dsr", "rst"]);
    assert_eq!(cluster.worker.flow("forward").flags, ["dsr", "rst"]);

    let mut cluster = established();
    cluster.deliver(&request(ACK).payload(b"GET /"));
    cluster.deliver(&request(RST | ACK).after(5));
    assert_eq!(cluster.worker2.flow("reply").flags, ["dsr", "replied", "rst"]);

    let mut cluster = Cluster::new(Dsr);
    cluster.deliver(&request(SYN));
    cluster.worker2.run("from_pod", &response(RST | ACK).seq(0).bytes());
    assert_eq!(cluster.worker2.flow("reply").flags, ["dsr", "replied", "rst"]);

    let mut cluster = established();
    cluster.worker2.run("from_pod", &response(ACK).payload(b"200 OK").bytes());
    cluster.worker2.run("from_pod", &response(RST).after(6).bytes());
    assert_eq!(cluster.worker2.flow("reply").flags, ["dsr", "replied", "rst"]);
    // A closed flow ends after a minute.
    cluster.worker2.age(61);
    cluster.worker2.assert_drop("from_pod", &response(ACK).after(6).bytes(), "no-reply-state");
}

#[test]
fn sequence_numbers_wrap() {
    let mut cluster = Cluster::new(Dsr);
    let start = u32::MAX - 2;
    cluster.deliver(&request(SYN).seq(start));
    cluster.worker2.run("from_pod", &response(SYN | ACK).seq(u32::MAX).ack(start + 1).bytes());
    cluster.deliver(&request(ACK).payload(b"four").seq(start + 1));
    cluster.deliver(&request(FIN | ACK).seq(2));
    cluster.worker2.run("from_pod", &response(FIN | ACK).seq(0).bytes());
    assert_eq!(cluster.worker2.flow("reply").flags, ["dsr", "replied", "fin-client", "fin-backend"]);
}

#[test]
fn half_a_connection_lives_on() {
    // The client has said all; the backend may answer for hours, and the other way round.
    let mut cluster = established();
    cluster.deliver(&request(FIN | ACK));
    assert_lives(&mut cluster.worker2, "from_pod", &response(ACK).payload(b"slow"));
    assert_lives(&mut cluster.worker, "from_netdev", &request(ACK).after(1));

    let mut cluster = established();
    cluster.worker2.run("from_pod", &response(FIN | ACK).bytes());
    assert_lives(&mut cluster.worker2, "from_netdev", &request(ACK).to(pod()).payload(b"slow"));

    for mode in [Dsr, Snat, Hybrid, Local] {
        let mut worker = local(mode);
        worker.run("from_netdev", &request(FIN | ACK).bytes());
        assert_lives(&mut worker, "from_pod", &from_local(ACK).payload(b"slow"));
        assert_lives(&mut worker, "from_netdev", &request(ACK).after(1));
    }

    let mut worker = Node::of(WORKER, Snat);
    worker.run("from_netdev", &request(SYN).bytes());
    let source = worker.flow("forward").snat.expect("a SNAT source");
    worker.run("from_netdev", &Frame::tcp(pod(), source, SYN | ACK).bytes());
    worker.run("from_netdev", &request(FIN | ACK).bytes());
    assert_lives(&mut worker, "from_netdev", &Frame::tcp(pod(), source, ACK).payload(b"slow"));
}

#[test]
fn half_a_connection_keeps_its_tuple() {
    let mut cluster = established();
    cluster.deliver(&request(FIN | ACK));
    let other = request(SYN).to(pod()).options(&[0x9a, 8, 0x7d, 0x00, 172, 18, 0, 4]);
    cluster.worker2.run("from_netdev", &other.bytes());
    let reply = response(ACK).payload(b"the rest");
    cluster.worker2.run("from_pod", &reply.bytes()).assert_sent(&reply.from(vip()).hop().bytes());
}

#[test]
fn a_whole_end_is_an_end() {
    for backend_first in [false, true] {
        let mut cluster = established();
        let closes = response(FIN | ACK).bytes();
        if backend_first {
            cluster.worker2.run("from_pod", &closes);
        }
        cluster.deliver(&request(FIN | ACK));
        cluster.worker2.run("from_pod", &closes);
        cluster.worker2.age(59);
        let last = response(ACK).after(1);
        cluster.worker2.run("from_pod", &last.bytes()).assert_sent(&last.clone().from(vip()).hop().bytes());
        cluster.worker2.age(61);
        cluster.worker2.assert_drop("from_pod", &last.bytes(), "no-reply-state");
    }
}

/// What the ingress node sends for a packet that the client has sent before.
#[track_caller]
fn assert_tagged(cluster: &mut Cluster, frame: &Frame) {
    let sent = cluster.worker.run("from_netdev", &frame.bytes());
    sent.assert_sent(&frame.clone().to(pod()).hop().options(&OPTION).bytes());
    let delivered = cluster.worker2.run("from_netdev", &sent.bytes);
    delivered.assert_sent(&frame.clone().to(pod()).hop().hop().bytes());
}

#[test]
fn what_is_sent_again_carries_the_option_again() {
    let data = request(ACK).payload(b"GET / HTTP/1.1\r\n\r\n");
    for again in [
        data.clone(),
        // The first bytes of it, its end, and what a keep-alive is.
        request(ACK).payload(b"GET /"),
        request(ACK).payload(b"\r\n").after(16),
        request(ACK).after(17),
        request(ACK).payload(b"\n").after(17),
    ] {
        let mut cluster = established();
        cluster.deliver(&data);
        assert_eq!(cluster.worker2.forget(FlowKind::REPLY), 1);
        cluster.worker2.assert_drop("from_pod", &response(ACK).bytes(), "no-reply-state");
        assert_tagged(&mut cluster, &again);
        let reply = response(ACK);
        cluster.worker2.run("from_pod", &reply.bytes()).assert_sent(&reply.from(vip()).hop().bytes());
        // And then the connection goes on as before.
        let next = request(ACK).payload(b"more").after(18);
        cluster.worker.run("from_netdev", &next.bytes()).assert_sent(&next.to(pod()).hop().bytes());
    }
}

#[test]
fn a_fin_that_is_sent_again_carries_it_too() {
    let mut cluster = established();
    cluster.deliver(&request(FIN | ACK));
    cluster.worker2.forget(FlowKind::REPLY);
    assert_tagged(&mut cluster, &request(FIN | ACK));
    let reply = response(FIN | ACK);
    cluster.worker2.run("from_pod", &reply.bytes()).assert_sent(&reply.from(vip()).hop().bytes());
}

#[test]
fn acknowledgements_are_not_sent_again() {
    // A download is nothing but acknowledgements of one sequence number.
    let mut cluster = established();
    for n in 0..20 {
        let frame = request(ACK).ack(ISN + 1 + n * 1448);
        cluster.worker.run("from_netdev", &frame.bytes()).assert_sent(&frame.to(pod()).hop().bytes());
    }
    assert_eq!(cluster.worker.counter("option-inserted"), 1);
}

#[test]
fn a_full_segment_that_is_sent_again_goes_untagged_twice_and_is_then_cut() {
    let mut cluster = established();
    let full = request(ACK).total_len(1500);
    for _ in 0..3 {
        cluster.worker.run("from_netdev", &full.bytes()).assert_sent(&full.clone().to(pod()).hop().bytes());
    }
    let answer = Icmp::too_big(WORKER, CLIENT, 1492, full.quote(48)).bytes();
    cluster.worker.assert_answer("from_netdev", &full.bytes(), &answer, "too-big-for-option");
    // The client cuts it, and so reaches the backend's node that has forgotten.
    cluster.worker2.forget(FlowKind::REPLY);
    assert_tagged(&mut cluster, &request(ACK).total_len(1492));
    // Progress, and all is well again.
    let next = request(ACK).total_len(1500).after(1460);
    cluster.worker.run("from_netdev", &next.bytes()).assert_sent(&next.clone().to(pod()).hop().bytes());
    cluster.worker.run("from_netdev", &next.bytes()).assert_sent(&next.to(pod()).hop().bytes());
}

#[test]
fn a_retransmission_with_a_full_header_goes_untagged() {
    let mut cluster = established();
    let frame = request(ACK).payload(b"data").options(&[1; 40]);
    for _ in 0..2 {
        cluster.worker.run("from_netdev", &frame.bytes()).assert_sent(&frame.clone().to(pod()).hop().bytes());
    }
}

#[test]
fn segments_of_a_retransmission_count_singly() {
    let mut cluster = established();
    let frame = request(ACK).total_len(40 + 2 * 1453);
    let segments = Context { gso_size: 1453, gso_segs: 2, ..Context::default() };
    let want = frame.clone().to(pod()).hop().bytes();
    for _ in 0..2 {
        cluster.worker.run_with("from_netdev", &frame.bytes(), segments).assert_sent(&want);
    }
    // One byte less would fit. BPF_PROG_TEST_RUN cannot say that segments are TCP's, and then the kernel refuses
    // to grow them (Linux 6.18, `bpf_skb_net_grow`); that it was tried is what can be seen here.
    let segments = Context { gso_size: 1452, ..segments };
    let out = cluster.worker.run_with("from_netdev", &frame.bytes(), segments);
    assert_eq!((out.action, cluster.worker.drops("rewrite-failed")), (SHOT, 1));
}

#[test]
fn nothing_is_tagged_where_replies_pass_the_ingress_node() {
    for mode in [Snat, Local] {
        let backend = if mode == Local { (LOCAL_POD, WORKER) } else { (POD, WORKER2) };
        let mut worker = Node::new(&state(WORKER, mode, &[backend])).expect("loads");
        for _ in 0..5 {
            for frame in [request(SYN), request(ACK).payload(b"data"), request(FIN | ACK).after(4)] {
                worker.run("from_netdev", &frame.bytes());
            }
        }
        assert_eq!(worker.counter("option-inserted"), 0);
    }
    let worker2 = Node::of(WORKER2, Dsr);
    assert!(worker2.flows().is_empty());
}
