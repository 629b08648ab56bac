//! Mode dsr, client to pod: the option on the wire, at the ingress node and at the backend's node.

use datapath_agent::DatapathMode::Dsr;

use crate::frame::{ACK, FIN, Frame, RST, SYN, at};
use crate::harness::{
    CLIENT, CONTROL, Cluster, NODE_PORT, Node, OPTION, POD, WORKER, WORKER2, client, datagram, pod, request,
    state, vip,
};

/// The same frontend in Cilium's byte order.
const CILIUM: [u8; 8] = [0x9a, 8, 0x00, 0x7d, 3, 0, 18, 172];

/// What the ingress node makes of a packet that it tags.
fn tagged(frame: Frame) -> Frame {
    frame.to(pod()).hop().options_first(&OPTION)
}

#[test]
fn a_syn_gets_the_option_and_a_new_destination() {
    let mut worker = Node::of(WORKER, Dsr);
    let out = worker.run("from_netdev", &request(SYN).bytes());
    out.assert_sent(&tagged(request(SYN)).bytes());
    // The same once more, in the words of the wire format.
    assert_eq!(out.bytes[14], 0x47, "the header length is not 28 bytes");
    assert_eq!(out.bytes[16..18], [0, 48], "the total length did not grow by 8");
    assert_eq!(out.bytes[22], 63, "the TTL is not one less");
    assert_eq!(out.bytes[34..42], [0x9a, 0x08, 0x7d, 0x00, 0xac, 0x12, 0x00, 0x03], "wrong option");
    assert_eq!(worker.counter("option-inserted"), 1);
    assert_eq!(worker.counter("forwarded-dsr"), 1);
}

#[test]
fn the_ingress_node_remembers_the_flow() {
    let mut worker = Node::of(WORKER, Dsr);
    worker.run("from_netdev", &request(SYN).bytes());
    assert_eq!(worker.flows().len(), 1, "the ingress node keeps reply state in dsr");
    let flow = worker.flow("forward");
    assert_eq!((flow.client, flow.frontend, flow.backend), (client(), vip(), pod()));
    assert_eq!(flow.snat, None);
    assert_eq!(flow.flags, ["dsr"]);
}

#[test]
fn cilium_order_is_written_on_request() {
    let mut wanted = state(WORKER, Dsr, &[(POD, WORKER2)]);
    wanted.options.wire_cilium = true;
    let mut worker = Node::new(&wanted).expect("loads");
    let out = worker.run("from_netdev", &request(SYN).bytes());
    out.assert_sent(&request(SYN).to(pod()).hop().options(&CILIUM).bytes());
}

#[test]
fn later_tcp_packets_carry_no_option() {
    let mut worker = Node::of(WORKER, Dsr);
    worker.run("from_netdev", &request(SYN).bytes());
    for frame in [
        request(ACK),
        request(ACK).payload(b"GET / HTTP/1.1\r\n\r\n"),
        request(FIN | ACK).after(18),
        request(RST).after(19),
    ] {
        worker.run("from_netdev", &frame.bytes()).assert_sent(&frame.to(pod()).hop().bytes());
    }
    assert_eq!(worker.counter("option-inserted"), 1);
}

#[test]
fn a_retransmitted_syn_is_tagged_again_and_goes_to_the_same_pod() {
    let mut worker = Node::of(WORKER, Dsr);
    for _ in 0..3 {
        worker.run("from_netdev", &request(SYN).bytes()).assert_sent(&tagged(request(SYN)).bytes());
    }
    assert_eq!(worker.counter("flow-opened"), 1, "a retransmission opened another flow");
}

#[test]
fn a_syn_with_data_is_tagged_like_any_syn() {
    let mut worker = Node::of(WORKER, Dsr);
    let frame = request(SYN).payload(b"TCP Fast Open data, an odd length");
    worker.run("from_netdev", &frame.bytes()).assert_sent(&tagged(frame).bytes());
}

#[test]
fn every_datagram_is_tagged() {
    let mut worker = Node::of(WORKER, Dsr);
    for size in [28, 29, 64, 1400, 1492] {
        let frame = datagram().total_len(size);
        worker.run("from_netdev", &frame.bytes()).assert_sent(&tagged(frame).bytes());
    }
    assert_eq!(worker.counter("option-inserted"), 5);
    assert_eq!(worker.counter("flow-opened"), 1);
}

#[test]
fn a_datagram_without_checksum_stays_without() {
    let mut cluster = Cluster::new(Dsr);
    let frame = datagram().no_checksum();
    cluster.deliver(&frame).assert_sent(&frame.to(pod()).hop().hop().bytes());
    let reply = Frame::udp(pod(), client()).no_checksum();
    cluster.worker2.run("from_pod", &reply.bytes()).assert_sent(&reply.from(vip()).hop().bytes());
}

#[test]
fn a_datagram_whose_sum_is_zero_does_not_lose_its_checksum() {
    // RFC 768: a computed zero is sent as ffff. Some last word of the payload leads there at either end.
    let mut worker = Node::of(WORKER, Dsr);
    let mut seen = 0;
    for word in 0..=u16::MAX {
        let frame = datagram().payload(&word.to_be_bytes());
        let want = tagged(frame.clone()).bytes();
        if [&frame.bytes()[40..42], &want[48..50]].contains(&&[0xff, 0xff][..]) {
            worker.run("from_netdev", &frame.bytes()).assert_sent(&want);
            seen += 1;
        }
    }
    assert_eq!(seen, 2, "the test found no such payload");
}

#[test]
fn the_pod_gets_the_packet_as_the_client_sent_it() {
    let mut cluster = Cluster::new(Dsr);
    let syn = request(SYN);
    cluster.deliver(&syn).assert_sent(&syn.to(pod()).hop().hop().bytes());
    let data = request(ACK).payload(b"GET /");
    cluster.deliver(&data).assert_sent(&data.to(pod()).hop().hop().bytes());
    assert_eq!(cluster.worker2.counter("option-network"), 1);
    assert_eq!(cluster.worker2.counter("option-stripped"), 1);
    assert_eq!(cluster.worker2.counter("delivered"), 2);
}

#[test]
fn the_backends_node_records_the_frontend_of_the_option() {
    let mut worker2 = Node::of(WORKER2, Dsr);
    worker2.run("from_netdev", &tagged(request(SYN)).bytes());
    let flow = worker2.flow("reply");
    assert_eq!((flow.client, flow.frontend, flow.backend), (client(), vip(), pod()));
    assert_eq!((flow.protocol.as_str(), flow.snat), ("tcp", None));
    assert_eq!(flow.flags, ["dsr"]);
    assert_eq!(worker2.flows().len(), 1);
}

#[test]
fn the_option_may_stay_for_the_pod() {
    let mut wanted = state(WORKER2, Dsr, &[(POD, WORKER2)]);
    wanted.options.strip_option = false;
    let mut worker2 = Node::new(&wanted).expect("loads");
    let frame = tagged(request(SYN));
    worker2.run("from_netdev", &frame.bytes()).assert_sent(&frame.hop().bytes());
    assert_eq!(worker2.counter("option-stripped"), 0);
    assert_eq!(worker2.flow("reply").frontend, vip(), "the option was not recorded");
}

#[test]
fn an_option_in_ciliums_order_is_understood_and_counted() {
    let mut worker2 = Node::of(WORKER2, Dsr);
    let frame = request(SYN).to(pod()).hop();
    let tagged = frame.clone().options(&CILIUM);
    worker2.run("from_netdev", &tagged.bytes()).assert_sent(&frame.hop().bytes());
    assert_eq!(worker2.flow("reply").frontend, vip(), "the option was read in the wrong order");
    assert_eq!((worker2.counter("option-network"), worker2.counter("option-cilium")), (0, 1));
}

#[test]
fn an_option_that_names_no_frontend_is_refused() {
    let mut worker2 = Node::of(WORKER2, Dsr);
    for option in [
        [0x9a, 8, 0x7d, 0x01, 172, 18, 0, 3],
        [0x9a, 8, 0x7d, 0x00, 172, 18, 0, 99],
        [0x9a, 8, 0, 0, 0, 0, 0, 0],
        [0x9a, 8, 0x1f, 0x90, 10, 0, 1, 108],
    ] {
        let frame = request(SYN).to(pod()).options(&option);
        worker2.assert_drop("from_netdev", &frame.bytes(), "bad-option");
    }
    assert!(worker2.flows().is_empty(), "a refused option left a flow");
    assert_eq!(worker2.counter("delivered"), 0, "a refused packet counts as delivered");
}

#[test]
fn an_option_of_another_length_is_refused() {
    let mut worker2 = Node::of(WORKER2, Dsr);
    for len in [0u8, 1, 2, 4, 6, 7, 9, 12, 40, 255] {
        let option = [0x9a, len, 0x7d, 0x00, 172, 18, 0, 3];
        let frame = request(SYN).to(pod()).options(&option);
        worker2.assert_drop("from_netdev", &frame.bytes(), "bad-option");
    }
}

#[test]
fn an_option_that_does_not_fit_the_header_is_refused() {
    let mut worker2 = Node::of(WORKER2, Dsr);
    let frame = request(SYN).to(pod()).options(&[0x9a, 8, 0x7d, 0x00]);
    worker2.assert_drop("from_netdev", &frame.bytes(), "bad-option");
}

#[test]
fn foreign_options_reach_the_pod() {
    let mut worker2 = Node::of(WORKER2, Dsr);
    // Router alert (RFC 2113), and a time stamp option with room for one stamp.
    for options in [&[0x94, 4, 0, 0][..], &[0x44, 8, 5, 0, 0, 0, 0, 0]] {
        let frame = request(SYN).to(pod()).options(options);
        worker2.run("from_netdev", &frame.bytes()).assert_sent(&frame.hop().bytes());
    }
    assert!(worker2.flows().is_empty(), "a packet without our option left a flow");
}

#[test]
fn any_node_can_be_asked() {
    let mut control = Node::of(CONTROL, Dsr);
    let frame = request(SYN).to(at(CONTROL, NODE_PORT));
    let option = [0x9a, 8, 0x7d, 0x00, 172, 18, 0, 4];
    let want = frame.clone().to(pod()).hop().options(&option);
    control.run("from_netdev", &frame.bytes()).assert_sent(&want.bytes());
    let mut worker2 = Node::of(WORKER2, Dsr);
    worker2.run("from_netdev", &want.bytes());
    assert_eq!(worker2.flow("reply").frontend, at(CONTROL, NODE_PORT));
}

#[test]
fn what_is_for_another_port_or_another_node_passes() {
    let mut worker = Node::of(WORKER, Dsr);
    for dst in [at(WORKER, 22), at(WORKER, NODE_PORT + 1), at(WORKER2, NODE_PORT), at(CLIENT, NODE_PORT)] {
        for frame in [request(SYN), datagram()] {
            let frame = frame.to(dst).bytes();
            worker.run("from_netdev", &frame).assert_passed(&frame);
        }
    }
    assert!(worker.flows().is_empty());
}

#[test]
fn one_connection_from_syn_to_fin() {
    let mut cluster = Cluster::new(Dsr);
    let steps = [
        (request(SYN), SYN | ACK, 0),
        (request(ACK), ACK, 0),
        (request(ACK).payload(b"GET / HTTP/1.1\r\n\r\n"), ACK, 900),
        (request(FIN | ACK).after(18), FIN | ACK, 0),
        (request(ACK).after(19), ACK, 0),
    ];
    let mut sent = 0;
    for (there, flags, len) in steps {
        cluster.deliver(&there).assert_sent(&there.clone().to(pod()).hop().hop().bytes());
        let back = Frame::tcp(pod(), client(), flags).total_len(40 + len).after(sent);
        sent += len as u32;
        let out = cluster.worker2.run("from_pod", &back.bytes());
        out.assert_sent(&back.from(vip()).hop().bytes());
        // The packet is done: neither egress hook on its way may touch it again.
        let context = crate::harness::Context { mark: out.mark, ..Default::default() };
        let egress = cluster.worker2.run_with("to_netdev", &out.bytes, context);
        assert_eq!(egress.bytes, out.bytes, "the reply was rewritten twice");
    }
    let flow = cluster.worker2.flow("reply");
    assert_eq!(flow.flags, ["dsr", "replied", "fin-client", "fin-backend"]);
    assert_eq!(cluster.worker.flow("forward").flags, ["dsr", "fin-client"]);
    for node in [&cluster.worker, &cluster.worker2] {
        assert!(node.status().drops.is_empty(), "a good connection has drops");
    }
}
