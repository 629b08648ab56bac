//! Fragments: the first carries the ports, the others borrow them, and without the first nobody knows.

use datapath_agent::DatapathMode::{Dsr, Local, Snat};

use crate::frame::{Frame, Icmp, at};
use crate::harness::{
    CLIENT, Cluster, LOCAL_POD, Node, OPTION, POD, POD_PORT, WORKER, WORKER2, client, datagram, pod, state,
    vip,
};

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
