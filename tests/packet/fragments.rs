//! Fragments: the first carries the ports, the others borrow them, and without the first nobody knows.

use datapath_agent::DatapathMode::{Dsr, Hybrid, Local, Snat};

use crate::frame::{Frame, Icmp, SYN, at};
use crate::harness::{
    CLIENT, Cluster, LOCAL_POD, Node, OPTION, POD, POD_PORT, REDIRECT, WORKER, WORKER2, client, datagram,
    pod, request, state, vip,
};

/// The sizes that end in the eight bytes an option has, and around them.
const TAILS: std::ops::RangeInclusive<usize> = 1..=33;

/// A datagram whose last fragment carries `tail` bytes.
fn with_tail(frame: Frame, tail: usize) -> Frame {
    frame.may_fragment().total_len(20 + 2 * SIZE + tail)
}

/// A datagram of three fragments.
fn large() -> Frame {
    datagram().may_fragment().total_len(3000)
}

const SIZE: usize = 1200;

#[test]
fn every_fragment_is_tagged_and_every_option_is_stripped() {
    let mut cluster = Cluster::new(Dsr);
    let tagged = large().to(pod()).hop().options(&OPTION).fragments(SIZE);
    let delivered = large().to(pod()).hop().hop().fragments(SIZE);
    for (i, fragment) in large().fragments(SIZE).iter().enumerate() {
        let out = cluster.worker.run("from_netdev", fragment);
        out.assert_sent(&tagged[i]);
        cluster.worker2.run("from_netdev", &out.bytes).assert_sent(&delivered[i]);
    }
    assert_eq!(cluster.worker2.flow("reply").frontend, vip());
}

#[test]
fn fragments_of_a_reply_have_the_frontend_as_source() {
    let mut cluster = Cluster::new(Dsr);
    cluster.deliver(&datagram());
    let reply = Frame::udp(pod(), client()).may_fragment().total_len(4000);
    let want = reply.clone().from(vip()).hop().fragments(SIZE);
    for (fragment, want) in reply.fragments(SIZE).iter().zip(&want) {
        cluster.worker2.run("from_pod", fragment).assert_sent(want);
    }
}

#[test]
fn fragments_are_translated_both_ways_in_snat() {
    let mut cluster = Cluster::new(Snat);
    let mut outputs = Vec::new();
    for fragment in large().fragments(SIZE) {
        outputs.push(cluster.worker.run("from_netdev", &fragment));
    }
    let source = cluster.worker.flow("forward").snat.expect("a SNAT source");
    let want = large().from(source).to(pod()).hop().fragments(SIZE);
    for (out, want) in outputs.iter().zip(&want) {
        out.assert_sent(want);
    }
    let reply = Frame::udp(pod(), source).may_fragment().total_len(3000);
    let want = reply.clone().from(vip()).to(client()).hop().fragments(SIZE);
    for (fragment, want) in reply.fragments(SIZE).iter().zip(&want) {
        cluster.worker.run("from_netdev", fragment).assert_sent(want);
    }
}

#[test]
fn fragments_reach_a_local_pod() {
    let mut worker = Node::new(&state(WORKER, Local, &[(LOCAL_POD, WORKER)])).expect("loads");
    let want = large().to(at(LOCAL_POD, POD_PORT)).hop().fragments(SIZE);
    for (fragment, want) in large().fragments(SIZE).iter().zip(&want) {
        worker.run("from_netdev", fragment).assert_sent(want);
    }
}

#[test]
fn two_datagrams_at_once_keep_their_ports() {
    let mut worker = Node::of(WORKER, Dsr);
    let one = large().id(1);
    let two = large().id(2).from(at(CLIENT, 55555));
    let other = Frame::udp(at(CLIENT, 1), at(WORKER, 53)).may_fragment().id(3).total_len(3000);
    let cut = [one.fragments(SIZE), two.fragments(SIZE), other.fragments(SIZE)];
    for i in 0..3 {
        for (frame, pieces) in [(&one, &cut[0]), (&two, &cut[1])] {
            let want = frame.clone().to(pod()).hop().options(&OPTION).fragments(SIZE);
            worker.run("from_netdev", &pieces[i]).assert_sent(&want[i]);
        }
        worker.run("from_netdev", &cut[2][i]).assert_passed(&cut[2][i]);
    }
}

#[test]
fn a_fragment_without_its_first_passes_the_uplink_untouched() {
    let mut worker = Node::of(WORKER, Dsr);
    for fragment in &large().fragments(SIZE)[1..] {
        worker.run("from_netdev", fragment).assert_passed(fragment);
    }
    assert!(worker.flows().is_empty());
}

#[test]
fn a_fragment_without_its_first_does_not_leave_a_pod_for_the_outside() {
    let mut cluster = Cluster::new(Dsr);
    cluster.deliver(&datagram());
    let reply = Frame::udp(pod(), client()).may_fragment().total_len(3000);
    for fragment in &reply.fragments(SIZE)[1..] {
        cluster.worker2.assert_drop("from_pod", fragment, "fragment-unknown");
        cluster.worker2.assert_drop("to_netdev", fragment, "fragment-unknown");
    }
    // Inside the cluster a pod's address is no secret.
    let inside = Frame::udp(pod(), at(LOCAL_POD, 9)).may_fragment().total_len(3000);
    let fragment = &inside.fragments(SIZE)[1];
    cluster.worker2.run("from_pod", fragment).assert_passed(fragment);
}

#[test]
fn a_pods_own_large_ping_leaves() {
    let mut worker2 = Node::of(WORKER2, Dsr);
    // An ICMP echo of two fragments: no service has ICMP, so it cannot be a reply of one.
    let whole = Icmp::new(POD, CLIENT, 8, 0, vec![7; 64]).bytes();
    let mut later = whole.clone();
    later[20..22].copy_from_slice(&[0x00, 0x40]);
    let sum = u16::from_be_bytes([later[24], later[25]]) - 0x40;
    later[24..26].copy_from_slice(&sum.to_be_bytes());
    for program in ["from_pod", "to_netdev"] {
        worker2.run(program, &later).assert_passed(&later);
    }
}

#[test]
fn fragments_too_big_for_the_option_are_answered_once() {
    let mut worker = Node::of(WORKER, Dsr);
    let fragments = large().fragments(1480);
    let first = &fragments[0];
    let quote = first[14..14 + 68].to_vec();
    let answer = Icmp::too_big(WORKER, CLIENT, 1492, quote).bytes();
    worker.assert_answer("from_netdev", first, &answer, "too-big-for-option");
    worker.assert_drop("from_netdev", &fragments[1], "too-big-for-option");
    assert_eq!(worker.counter("icmp-sent"), 1, "an error about a later fragment");
}

#[test]
fn the_last_fragment_may_have_one_byte() {
    for mode in [Dsr, Hybrid, Snat] {
        let mut cluster = Cluster::new(mode);
        for (id, tail) in TAILS.enumerate() {
            let frame = with_tail(datagram(), tail).id(id as u16 + 1);
            for (i, fragment) in frame.fragments(SIZE).iter().enumerate() {
                let sent = cluster.worker.run("from_netdev", fragment);
                let forwarded = match mode {
                    Dsr => frame.clone().to(pod()).hop().options(&OPTION),
                    _ => {
                        let source = cluster.worker.flow("forward").snat.expect("a SNAT source");
                        frame.clone().from(source).to(pod()).hop()
                    }
                };
                sent.assert_sent(&forwarded.fragments(SIZE)[i]);
                let delivered = forwarded.options(&[]).hop().fragments(SIZE);
                cluster.worker2.run("from_netdev", &sent.bytes).assert_sent(&delivered[i]);
            }
        }
    }
}

#[test]
fn the_last_fragment_of_a_reply_may_have_one_byte() {
    for (mode, backend, node) in [(Dsr, POD, WORKER2), (Local, POD, WORKER2), (Dsr, WORKER2, WORKER2)] {
        let mut worker2 = Node::new(&state(node, mode, &[(backend, node)])).expect("loads");
        let asked = at(node, crate::harness::NODE_PORT);
        worker2.run("from_netdev", &datagram().to(asked).bytes());
        let server = at(backend, POD_PORT);
        for (id, tail) in TAILS.enumerate() {
            let reply = with_tail(Frame::udp(server, client()), tail).id(id as u16 + 1);
            let want = reply.clone().from(asked);
            for (i, fragment) in reply.fragments(SIZE).iter().enumerate() {
                if backend == node {
                    worker2.run("to_netdev", fragment).assert_passed(&want.fragments(SIZE)[i]);
                } else {
                    let want = want.clone().hop().fragments(SIZE);
                    worker2.run("from_pod", fragment).assert_sent(&want[i]);
                }
            }
        }
    }
}

#[test]
fn the_last_fragment_of_a_snat_reply_may_have_one_byte() {
    let mut cluster = Cluster::new(Snat);
    cluster.worker.run("from_netdev", &datagram().bytes());
    let source = cluster.worker.flow("forward").snat.expect("a SNAT source");
    for (id, tail) in TAILS.enumerate() {
        let reply = with_tail(Frame::udp(pod(), source), tail).id(id as u16 + 1);
        let home = reply.clone().from(vip()).to(client()).hop().hop().fragments(SIZE);
        for (fragment, home) in reply.fragments(SIZE).iter().zip(home) {
            let sent = cluster.worker2.run("from_pod", fragment);
            assert_eq!(sent.action, REDIRECT, "a fragment of {tail} bytes stays at the backend's node");
            cluster.worker.run("from_netdev", &sent.bytes).assert_sent(&home);
        }
    }
}

#[test]
fn the_first_fragment_may_end_behind_the_ports() {
    // RFC 791 allows fragments of eight bytes: a UDP header and nothing else.
    for first in [8, 16, 24] {
        let mut cluster = Cluster::new(Dsr);
        let frame = datagram().may_fragment().total_len(20 + 2 * first + 3);
        let tagged = frame.clone().to(pod()).hop().options(&OPTION).fragments(first);
        let delivered = frame.clone().to(pod()).hop().hop().fragments(first);
        for (i, fragment) in frame.fragments(first).iter().enumerate() {
            let out = cluster.worker.run("from_netdev", fragment);
            out.assert_sent(&tagged[i]);
            cluster.worker2.run("from_netdev", &out.bytes).assert_sent(&delivered[i]);
        }
    }
}

#[test]
fn a_first_fragment_without_the_whole_tcp_header_is_refused() {
    // RFC 1858 section 3: nobody needs it but those who hide flags from a filter, and its checksum would
    // lie in another packet.
    let mut worker = Node::of(WORKER, Dsr);
    let frame = request(SYN).may_fragment().total_len(200);
    for first in [8, 16] {
        worker.assert_drop("from_netdev", &frame.fragments(first)[0], "truncated-transport");
    }
    let whole = frame.clone().to(pod()).hop().options(&OPTION).fragments(24);
    worker.run("from_netdev", &frame.fragments(24)[0]).assert_sent(&whole[0]);
}

#[test]
fn an_empty_last_fragment_passes() {
    // No sender makes one, but the header alone is a packet.
    let mut cluster = Cluster::new(Dsr);
    let pieces = large().fragments(SIZE);
    let sent = cluster.worker.run("from_netdev", &pieces[0]);
    cluster.worker2.run("from_netdev", &sent.bytes);
    let empty = large().piece(2 * SIZE, &[]);
    let sent = cluster.worker.run("from_netdev", &empty);
    sent.assert_sent(&large().to(pod()).hop().options(&OPTION).piece(2 * SIZE, &[]));
    let delivered = cluster.worker2.run("from_netdev", &sent.bytes);
    delivered.assert_sent(&large().to(pod()).hop().hop().piece(2 * SIZE, &[]));
}

#[test]
fn a_client_without_df_learns_the_size_that_fits_and_its_next_fragments_arrive() {
    // What Linux does with IP_PMTUDISC_DONT: it takes the MTU from the error and cuts the next datagram to it.
    for len in 1493..=1500 {
        let mut cluster = Cluster::new(Dsr);
        let frame = datagram().may_fragment().total_len(len);
        let answer = Icmp::too_big(WORKER, CLIENT, 1492, frame.quote(48)).bytes();
        cluster.worker.assert_answer("from_netdev", &frame.bytes(), &answer, "too-big-for-option");
        let delivered = frame.clone().to(pod()).hop().hop().fragments(1472);
        for (fragment, want) in frame.fragments(1472).iter().zip(&delivered) {
            let sent = cluster.worker.run("from_netdev", fragment);
            cluster.worker2.run("from_netdev", &sent.bytes).assert_sent(want);
        }
    }
}

/// All orders of three.
const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

#[test]
fn a_backends_node_delivers_tagged_fragments_in_any_order() {
    let mut worker2 = Node::of(WORKER2, Dsr);
    for (id, order) in ORDERS.iter().enumerate() {
        let frame = large().id(id as u16 + 1);
        let tagged = frame.clone().to(pod()).options(&OPTION).fragments(SIZE);
        let want = frame.clone().to(pod()).hop().fragments(SIZE);
        for i in order {
            worker2.run("from_netdev", &tagged[*i]).assert_sent(&want[*i]);
        }
    }
    assert_eq!(worker2.flow("reply").frontend, vip());
    assert!(worker2.status().drops.is_empty());
}

#[test]
fn a_hosts_stack_gets_tagged_fragments_in_any_order() {
    let mut worker2 = Node::new(&state(WORKER2, Dsr, &[(WORKER2, WORKER2)])).expect("loads");
    let host = at(WORKER2, POD_PORT);
    for (id, order) in ORDERS.iter().enumerate() {
        let frame = large().id(id as u16 + 1).to(host);
        let tagged = frame.clone().options(&OPTION).fragments(SIZE);
        for i in order {
            worker2.run("from_netdev", &tagged[*i]).assert_passed(&frame.fragments(SIZE)[*i]);
        }
    }
}

#[test]
fn the_option_stays_on_fragments_out_of_order_where_it_shall_stay() {
    let mut wanted = state(WORKER2, Dsr, &[(POD, WORKER2)]);
    wanted.options.strip_option = false;
    let mut worker2 = Node::new(&wanted).expect("loads");
    let tagged = large().to(pod()).options(&OPTION);
    for i in [2, 1, 0] {
        worker2
            .run("from_netdev", &tagged.fragments(SIZE)[i])
            .assert_sent(&tagged.clone().hop().fragments(SIZE)[i]);
    }
}

#[test]
fn what_comes_before_its_first_fragment_is_counted_when_that_comes() {
    for mode in [Dsr, Snat, Hybrid, Local] {
        let backend = if mode == Local { (LOCAL_POD, WORKER) } else { (POD, WORKER2) };
        for (id, order) in ORDERS.iter().enumerate() {
            let mut worker = Node::new(&state(WORKER, mode, &[backend])).expect("loads");
            let fragments = large().id(id as u16 + 1).fragments(SIZE);
            let early = order.iter().position(|i| *i == 0).expect("there is a first");
            for (n, i) in order.iter().enumerate() {
                let out = worker.run("from_netdev", &fragments[*i]);
                if n < early {
                    // It might be for a socket of the node.
                    out.assert_passed(&fragments[*i]);
                    assert_eq!(worker.dropped(), 0, "nobody knows yet that it is lost");
                } else {
                    assert_eq!(out.action, REDIRECT, "fragment {i} of order {order:?} is not served");
                    assert_eq!(worker.drops("fragment-unknown"), early as u64, "order {order:?}");
                }
            }
            assert_eq!(worker.dropped(), early as u64);
        }
    }
}

#[test]
fn what_the_stack_reassembles_is_not_counted() {
    for mode in [Dsr, Snat, Hybrid, Local] {
        let mut worker = Node::of(WORKER, mode);
        let other = Frame::udp(client(), at(WORKER, 53)).may_fragment().total_len(3000).fragments(SIZE);
        for i in [2, 1, 0] {
            worker.run("from_netdev", &other[i]).assert_passed(&other[i]);
        }
        assert_eq!(worker.dropped(), 0);
    }
    // A backend in this host's network: the stack gets the first fragment, too.
    let mut worker = Node::new(&state(WORKER, Dsr, &[(WORKER, WORKER)])).expect("loads");
    for i in [2, 1, 0] {
        worker.run("from_netdev", &large().fragments(SIZE)[i]);
    }
    assert_eq!(worker.dropped(), 0);
}

#[test]
fn replies_out_of_order_are_counted_at_the_ingress_node_of_snat() {
    let mut cluster = Cluster::new(Snat);
    cluster.worker.run("from_netdev", &datagram().bytes());
    let source = cluster.worker.flow("forward").snat.expect("a SNAT source");
    let reply = Frame::udp(pod(), source).may_fragment().total_len(3000).fragments(SIZE);
    for i in [1, 2, 0] {
        cluster.worker.run("from_netdev", &reply[i]);
    }
    assert_eq!(cluster.worker.drops("fragment-unknown"), 2);
}
