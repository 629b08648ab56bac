//! ICMP errors of others: each side must hear of the flow as it knows it, or it ignores the error.

use std::net::Ipv4Addr;

use datapath_agent::DatapathMode::{Dsr, Hybrid, Local, Snat};
use datapath_types::FlowKind;

use crate::frame::{ACK, Frame, Icmp, SYN, at, ethernet};
use crate::harness::{
    CLIENT, Cluster, LOCAL_POD, Node, POD, POD_PORT, WORKER, WORKER2, client, datagram, pod, request,
    response, state, vip,
};

/// A router between the nodes and the client.
const ROUTER: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 254);

/// Lengths of the transport part of a quote: RFC 792's 8 bytes, with the TCP checksum, and more.
const QUOTES: [usize; 4] = [8, 18, 20, 40];

#[test]
fn a_pods_port_unreachable_comes_from_the_frontend() {
    let mut cluster = Cluster::new(Dsr);
    let frame = datagram().total_len(100);
    cluster.deliver(&frame);
    for quoted in [8, 40, 80] {
        let at_pod = frame.clone().to(pod()).hop().hop();
        let error = Icmp::port_unreachable(POD, CLIENT, at_pod.quote(quoted));
        let out = cluster.worker2.run("from_pod", &error.bytes());
        let want = error.from(WORKER).hop().about(frame.clone().hop().hop().quote(quoted));
        out.assert_sent(&want.bytes());
    }
    assert_eq!(cluster.worker2.counter("icmp-to-client"), 3);
}

#[test]
fn it_does_so_without_a_udp_checksum_too() {
    let mut cluster = Cluster::new(Dsr);
    let frame = datagram().no_checksum();
    cluster.deliver(&frame);
    let at_pod = frame.clone().to(pod()).hop().hop();
    let error = Icmp::port_unreachable(POD, CLIENT, at_pod.quote(12));
    let out = cluster.worker2.run("from_pod", &error.bytes());
    out.assert_sent(&error.from(WORKER).hop().about(frame.hop().hop().quote(12)).bytes());
}

#[test]
fn a_local_pods_port_unreachable_comes_from_the_frontend() {
    for mode in [Dsr, Local] {
        let mut worker = Node::new(&state(WORKER, mode, &[(LOCAL_POD, WORKER)])).expect("loads");
        worker.run("from_netdev", &datagram().bytes());
        let at_pod = datagram().to(at(LOCAL_POD, POD_PORT)).hop();
        let error = Icmp::port_unreachable(LOCAL_POD, CLIENT, at_pod.quote(12));
        let out = worker.run("from_pod", &error.bytes());
        out.assert_sent(&error.from(WORKER).hop().about(datagram().hop().quote(12)).bytes());
    }
}

#[test]
fn an_error_of_a_pod_about_an_unknown_flow_does_not_leave() {
    let mut cluster = Cluster::new(Dsr);
    cluster.deliver(&datagram());
    let error = Icmp::port_unreachable(POD, CLIENT, datagram().to(pod()).quote(12));
    cluster.worker2.forget(FlowKind::REPLY);
    cluster.worker2.assert_drop("from_pod", &error.bytes(), "icmp-no-state");
    cluster.worker2.assert_drop("to_netdev", &error.bytes(), "icmp-no-state");
}

#[test]
fn a_router_tells_the_pod_about_its_path_through_the_ingress_node() {
    let mut cluster = Cluster::new(Dsr);
    cluster.deliver(&request(SYN));
    let reply = response(ACK).total_len(1500);
    // The reply as it was on the wire, and as the pod knows it.
    let on_wire = reply.clone().from(vip()).hop();
    for quoted in QUOTES {
        let error = Icmp::too_big(ROUTER, WORKER, 1280, on_wire.quote(quoted));
        let forwarded = cluster.worker.run("from_netdev", &error.bytes());
        let at_backend = error.to(POD).hop().about(reply.clone().hop().quote(quoted));
        forwarded.assert_sent(&at_backend.bytes());
        let delivered = cluster.worker2.run("from_netdev", &forwarded.bytes);
        delivered.assert_sent(&at_backend.hop().bytes());
    }
    assert_eq!(cluster.worker.counter("icmp-to-backend"), 4);
}

#[test]
fn a_router_tells_a_local_pod_about_its_path() {
    let mut worker = Node::new(&state(WORKER, Local, &[(LOCAL_POD, WORKER)])).expect("loads");
    worker.run("from_netdev", &request(SYN).bytes());
    let reply = Frame::tcp(at(LOCAL_POD, POD_PORT), client(), ACK).total_len(1500);
    let error = Icmp::too_big(ROUTER, WORKER, 1280, reply.clone().from(vip()).quote(8));
    let out = worker.run("from_netdev", &error.bytes());
    out.assert_sent(&error.to(LOCAL_POD).hop().about(reply.quote(8)).bytes());
}

#[test]
fn in_snat_a_router_behind_the_ingress_node_tells_the_client() {
    for (mode, frame) in [(Snat, request(SYN)), (Snat, datagram()), (Hybrid, datagram())] {
        let mut worker = Node::of(WORKER, mode);
        worker.run("from_netdev", &frame.bytes());
        let source = worker.flow("forward").snat.expect("a SNAT source");
        let forwarded = frame.clone().from(source).to(pod()).hop();
        for (quoted, from, seen_from) in [(8, ROUTER, ROUTER), (20, ROUTER, ROUTER), (12, POD, WORKER)] {
            let error = Icmp::too_big(from, WORKER, 1280, forwarded.quote(quoted));
            let out = worker.run("from_netdev", &error.bytes());
            let want = error.from(seen_from).to(CLIENT).hop().about(frame.clone().hop().quote(quoted));
            out.assert_sent(&want.bytes());
        }
        assert_eq!(worker.counter("icmp-to-client"), 3);
    }
}

#[test]
fn in_snat_a_router_before_the_ingress_node_tells_the_pod() {
    let mut cluster = Cluster::new(Snat);
    cluster.deliver(&request(SYN));
    let source = cluster.worker.flow("forward").snat.expect("a SNAT source");
    let reply = Frame::tcp(pod(), source, ACK).total_len(1500);
    let on_wire = reply.clone().from(vip()).to(client());
    for quoted in QUOTES {
        let error = Icmp::too_big(ROUTER, WORKER, 1280, on_wire.quote(quoted));
        let forwarded = cluster.worker.run("from_netdev", &error.bytes());
        let at_backend = error.to(POD).hop().about(reply.quote(quoted));
        forwarded.assert_sent(&at_backend.bytes());
        let delivered = cluster.worker2.run("from_netdev", &forwarded.bytes);
        delivered.assert_sent(&at_backend.hop().bytes());
    }
}

#[test]
fn in_snat_a_pods_error_goes_to_the_ingress_node_past_the_stack() {
    let mut cluster = Cluster::new(Snat);
    cluster.deliver(&datagram());
    let source = cluster.worker.flow("forward").snat.expect("a SNAT source");
    let at_pod = datagram().from(source).to(pod()).hop().hop();
    let error = Icmp::port_unreachable(POD, WORKER, at_pod.quote(12));
    // The stack's conntrack has not seen the request, and may call the error invalid.
    let sent = cluster.worker2.run("from_pod", &error.bytes());
    sent.assert_sent(&error.clone().hop().bytes());
    let home = cluster.worker.run("from_netdev", &sent.bytes);
    let want = error.from(WORKER).to(CLIENT).hop().hop().about(datagram().hop().hop().quote(12));
    home.assert_sent(&want.bytes());
}

#[test]
fn time_exceeded_is_translated_like_unreachable() {
    let mut cluster = Cluster::new(Dsr);
    cluster.deliver(&request(SYN));
    let error = Icmp::time_exceeded(ROUTER, WORKER, response(ACK).from(vip()).quote(8));
    let out = cluster.worker.run("from_netdev", &error.bytes());
    out.assert_sent(&error.to(POD).hop().about(response(ACK).quote(8)).bytes());
}

#[test]
fn an_error_out_of_hops_is_not_answered() {
    let mut cluster = Cluster::new(Dsr);
    cluster.deliver(&request(SYN));
    let error = Icmp::too_big(ROUTER, WORKER, 1280, response(ACK).from(vip()).quote(8)).ttl(1);
    cluster.worker.assert_drop("from_netdev", &error.bytes(), "ttl-exceeded");
    assert_eq!(cluster.worker.counter("icmp-sent"), 0);
}

#[test]
fn errors_about_other_flows_and_queries_pass_untouched() {
    let mut cluster = Cluster::new(Dsr);
    cluster.deliver(&request(SYN));
    let stranger = Frame::tcp(at(WORKER, 40000), at(ROUTER, 443), SYN);
    let mut fragment_quote = response(ACK).from(vip()).quote(8);
    fragment_quote[6..8].copy_from_slice(&[0x00, 0x10]);
    let mut esp_quote = response(ACK).from(vip()).quote(8);
    esp_quote[9] = 50;
    let frames = [
        Icmp::new(CLIENT, WORKER, 8, 0, b"echo request".to_vec()).bytes(),
        Icmp::new(WORKER, CLIENT, 0, 0, b"echo reply!".to_vec()).bytes(),
        Icmp::new(ROUTER, WORKER, 5, 1, response(ACK).from(vip()).quote(8)).bytes(),
        Icmp::port_unreachable(ROUTER, WORKER, stranger.quote(8)).bytes(),
        Icmp::port_unreachable(ROUTER, WORKER, Vec::new()).bytes(),
        [ethernet(0x0800), Icmp::too_big(ROUTER, WORKER, 1280, esp_quote).bytes()[14..].to_vec()].concat(),
        Icmp::too_big(ROUTER, WORKER, 1280, fragment_quote).bytes(),
    ];
    for frame in &frames {
        for program in crate::harness::PROGRAMS {
            let out = cluster.worker.run(program, frame);
            assert_eq!(
                (out.action, &out.bytes),
                (crate::harness::OK, frame),
                "{program} changed an ICMP packet"
            );
        }
    }
}

#[test]
fn a_quote_that_ends_before_the_ports_is_not_read_from_the_padding() {
    // The frame goes on behind the IPv4 packet; what lies there is not the quote.
    let mut cluster = Cluster::new(Dsr);
    cluster.deliver(&request(SYN));
    let quote = response(ACK).from(vip()).quote(20);
    for kept in [0, 8, 20, 23] {
        let mut frame = Icmp::too_big(ROUTER, WORKER, 1280, quote[..kept].to_vec()).bytes();
        frame.extend(&quote[kept..]);
        let out = cluster.worker.run("from_netdev", &frame);
        assert_eq!((out.action, &out.bytes), (crate::harness::OK, &frame), "padding was taken for a quote");
    }
    // With the ports but without the checksum, the padding is not the checksum either.
    let error = Icmp::too_big(ROUTER, WORKER, 1280, quote[..28].to_vec());
    let padding = [0xaa; 20];
    let out = cluster.worker.run("from_netdev", &[error.bytes(), padding.to_vec()].concat());
    let want = error.to(POD).hop().about(response(ACK).quote(8));
    let want = [want.bytes(), padding.to_vec()].concat();
    assert_eq!(crate::check::hex(&out.bytes), crate::check::hex(&want), "the padding was changed");
}

#[test]
fn an_error_of_a_host_backend_comes_from_the_frontend() {
    let mut worker2 = Node::new(&state(WORKER2, Dsr, &[(WORKER2, WORKER2)])).expect("loads");
    let host = at(WORKER2, POD_PORT);
    let tagged = datagram().to(host).hop().options(&crate::harness::OPTION);
    worker2.run("from_netdev", &tagged.bytes());
    let error = Icmp::port_unreachable(WORKER2, CLIENT, datagram().to(host).hop().quote(12));
    let out = worker2.run("to_netdev", &error.bytes());
    out.assert_passed(&error.from(WORKER).about(datagram().hop().quote(12)).bytes());
}
