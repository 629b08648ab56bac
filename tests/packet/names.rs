//! IPv4 options: what names a host neither reaches a backend, which would write into it, nor the client.

use std::net::Ipv4Addr;

use datapath_agent::DatapathMode::{self, Dsr, Hybrid, Local, Snat};

use crate::frame::{ACK, FIN, Frame, Icmp, RST, SYN, at};
use crate::harness::{
    CLIENT, CLUSTER_IP, Cluster, LOCAL_POD, Node, OPTION, POD, POD_PORT, REDIRECT, WORKER, WORKER2, client,
    datagram, pod, request, state, vip,
};

const MODES: [DatapathMode; 4] = [Dsr, Snat, Hybrid, Local];

/// A route of `slots` addresses, the first filled with this one, as the pod's stack leaves it.
fn route(kind: u8, slots: u8, address: Ipv4Addr) -> Vec<u8> {
    let len = 3 + 4 * slots;
    let mut option = vec![kind, len, 8];
    option.extend(address.octets());
    option.resize(usize::from(len), 0);
    option.push(0);
    option
}

/// Lists that name somebody: `who` is the address in them.
fn naming(who: Ipv4Addr) -> Vec<Vec<u8>> {
    let [a, b, c, d] = who.octets();
    vec![
        // Record route (RFC 791), small and of the largest size.
        route(7, 1, who),
        route(7, 9, who),
        // Loose and strict source route.
        route(131, 2, who),
        route(137, 9, who),
        // Time stamps with addresses, and with addresses that were asked for.
        vec![68, 12, 13, 1, a, b, c, d, 1, 2, 3, 4],
        vec![68, 12, 5, 0xf3, a, b, c, d, 0, 0, 0, 0],
        // Traceroute (RFC 1393), selective directed broadcast, address extension, and types of nobody.
        vec![82, 12, 0, 1, 0, 2, 0, 3, a, b, c, d],
        vec![149, 6, a, b, c, d, 0, 0],
        vec![147, 10, a, b, c, d, a, b, c, d, 0, 0],
        vec![0x1e, 8, 0, 0, a, b, c, d],
        vec![0x9e, 8, 0, 0, a, b, c, d],
        // Behind one that names nobody, behind no-operations, and in what is no option any more.
        [vec![148, 4, 0, 0], route(7, 2, who)].concat(),
        [vec![1, 1, 1, 1], route(7, 2, who)].concat(),
        vec![0, a, b, c, d, 0, 0, 0],
        vec![148, 4, 0, 0, a, b, c, d],
        // Contradicting their own lengths.
        vec![7, 0, 8, 0, a, b, c, d],
        vec![7, 1, 8, 0, a, b, c, d],
        vec![148, 40, 0, 0, a, b, c, d],
        vec![68, 255, 5, 0, a, b, c, d],
        vec![a, b, c, d],
    ]
}

/// Lists that name nobody: each is one option, with its padding.
fn anonymous() -> Vec<Vec<u8>> {
    vec![
        vec![148, 4, 0, 0],
        vec![136, 4, 1, 2],
        vec![130, 11, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0],
        vec![133, 3, 1, 0],
        vec![134, 22, 0, 0, 0, 1, 1, 16, 0, 2, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0, 0],
        vec![25, 8, 0, 1, 0, 0, 0, 4],
        vec![68, 8, 5, 0, 1, 2, 3, 4],
        vec![68, 40, 5, 0xf0].into_iter().chain((1..=36).map(|n: u8| n.wrapping_mul(3))).collect(),
        vec![1; 40],
    ]
}

/// As the other end gets it.
fn blanked(frame: Frame, options: &[u8]) -> Frame {
    frame.options(&vec![1; options.len()])
}

/// What crosses the ingress node, and what the pod then gets.
#[track_caller]
fn assert_delivered(mode: DatapathMode, frame: &Frame, want: &Frame) {
    let mut cluster = Cluster::new(mode);
    let sent = cluster.worker.run("from_netdev", &frame.bytes());
    let forwarded = match cluster.worker.flow("forward").snat {
        Some(source) => want.clone().from(source).to(pod()).hop(),
        None => want.clone().to(pod()).hop(),
    };
    let tagged = match cluster.worker.counter("option-inserted") {
        0 => forwarded.clone(),
        _ => forwarded.clone().options_first(&OPTION),
    };
    sent.assert_sent(&tagged.bytes());
    cluster.worker2.run("from_netdev", &sent.bytes).assert_sent(&forwarded.hop().bytes());
}

#[test]
fn a_request_names_nobody() {
    for mode in [Dsr, Snat, Hybrid] {
        for options in naming(CLIENT).iter().filter(|list| list.len() <= 32) {
            for frame in [request(SYN), datagram(), datagram().payload(b"")] {
                let want = blanked(frame.clone(), options);
                assert_delivered(mode, &frame.options(options), &want);
            }
        }
    }
}

#[test]
fn a_request_to_a_local_backend_names_nobody() {
    for mode in MODES {
        let mut worker = Node::new(&state(WORKER, mode, &[(LOCAL_POD, WORKER)])).expect("loads");
        for options in naming(CLIENT) {
            for frame in [request(SYN), request(ACK), request(FIN | ACK), datagram()] {
                let want = blanked(frame.clone(), &options).to(at(LOCAL_POD, POD_PORT)).hop();
                worker.run("from_netdev", &frame.options(&options).bytes()).assert_sent(&want.bytes());
            }
        }
    }
}

#[test]
fn what_names_nobody_stays() {
    for mode in [Dsr, Snat, Hybrid] {
        for options in anonymous().iter().filter(|list| list.len() <= 32) {
            for frame in [request(SYN), datagram()] {
                let frame = frame.options(options);
                assert_delivered(mode, &frame, &frame);
            }
        }
    }
}

#[test]
fn a_reply_names_nobody() {
    for backend in [LOCAL_POD, WORKER] {
        for mode in MODES {
            let mut worker = Node::new(&state(WORKER, mode, &[(backend, WORKER)])).expect("loads");
            let server = at(backend, POD_PORT);
            let replies = [SYN | ACK, ACK, FIN | ACK, RST].map(|flags| Frame::tcp(server, client(), flags));
            for frame in [request(SYN), datagram()] {
                worker.run("from_netdev", &frame.bytes());
            }
            for options in naming(backend) {
                for reply in replies.iter().cloned().chain([Frame::udp(server, client())]) {
                    let want = blanked(reply.clone(), &options).from(vip());
                    let reply = reply.options(&options).bytes();
                    if backend == WORKER {
                        worker.run("to_netdev", &reply).assert_passed(&want.bytes());
                    } else {
                        worker.run("from_pod", &reply).assert_sent(&want.hop().bytes());
                    }
                }
            }
            for options in anonymous() {
                let reply = Frame::udp(server, client()).options(&options);
                let program = if backend == WORKER { "to_netdev" } else { "from_pod" };
                let out = worker.run(program, &reply.bytes());
                let want = reply.from(vip());
                let want = if backend == WORKER { want } else { want.hop() };
                assert_eq!(out.bytes, want.bytes(), "options without a name are gone");
            }
        }
    }
}

#[test]
fn a_reply_through_the_backends_node_names_nobody() {
    for mode in [Dsr, Hybrid, Snat] {
        for options in naming(POD) {
            for (asked, reply) in [
                (request(SYN), Frame::tcp(pod(), client(), SYN | ACK)),
                (datagram(), Frame::udp(pod(), client())),
            ] {
                let mut cluster = Cluster::new(mode);
                cluster.deliver(&asked);
                let reply = match cluster.worker.flow("forward").snat {
                    Some(source) => reply.to(source),
                    None => reply,
                };
                let home = reply.clone().from(vip()).to(client());
                let mut sent = cluster.worker2.run("from_pod", &reply.clone().options(&options).bytes());
                let mut hops = home.hop();
                if cluster.worker.flow("forward").snat.is_some() {
                    assert_eq!(sent.action, REDIRECT);
                    sent = cluster.worker.run("from_netdev", &sent.bytes);
                    hops = hops.hop();
                }
                sent.assert_sent(&blanked(hops, &options).bytes());
            }
        }
    }
}

#[test]
fn fragments_of_a_reply_name_nobody() {
    let mut cluster = Cluster::new(Dsr);
    cluster.deliver(&datagram());
    for options in naming(POD) {
        let reply = Frame::udp(pod(), client()).may_fragment().total_len(20 + 1200 + 1200 + 1);
        let want = blanked(reply.clone(), &options).from(vip()).hop().fragments(1200);
        for (fragment, want) in reply.options(&options).fragments(1200).iter().zip(&want) {
            cluster.worker2.run("from_pod", fragment).assert_sent(want);
        }
    }
}

#[test]
fn a_pod_learns_nothing_of_other_pods() {
    for mode in MODES {
        let asker = at([10, 0, 2, 50].into(), 50000);
        let frontend = at(CLUSTER_IP, 80);
        let mut worker = Node::new(&state(WORKER, mode, &[(LOCAL_POD, WORKER)])).expect("loads");
        let local = at(LOCAL_POD, POD_PORT);
        for options in naming(LOCAL_POD) {
            let asked = Frame::udp(asker, frontend);
            let want = blanked(asked.clone(), &options).to(local).hop();
            worker.run("from_pod", &asked.options(&options).bytes()).assert_sent(&want.bytes());
            let reply = Frame::udp(local, asker);
            let want = blanked(reply.clone(), &options).from(frontend).hop();
            worker.run("from_pod", &reply.options(&options).bytes()).assert_sent(&want.bytes());
        }
    }
}

#[test]
fn an_error_of_a_pod_names_nobody() {
    // Linux echoes the options of the packet in the error's own header, and quotes them as it filled them in.
    for mode in [Dsr, Local] {
        let mut worker = Node::new(&state(WORKER, mode, &[(LOCAL_POD, WORKER)])).expect("loads");
        worker.run("from_netdev", &datagram().bytes());
        for options in naming(LOCAL_POD) {
            for own in [&options[..], &[]] {
                let at_pod = datagram().to(at(LOCAL_POD, POD_PORT)).hop().options(&options);
                let error = Icmp::port_unreachable(LOCAL_POD, CLIENT, at_pod.quote(12)).options(own);
                let out = worker.run("from_pod", &error.bytes());
                let seen = blanked(datagram().hop(), &options).quote(12);
                let want = error.from(WORKER).hop().options(&vec![1; own.len()]).about(seen);
                out.assert_sent(&want.bytes());
            }
        }
    }
}

#[test]
fn an_error_that_the_ingress_node_translates_names_nobody() {
    for mode in [Snat, Hybrid] {
        let mut worker = Node::of(WORKER, mode);
        worker.run("from_netdev", &datagram().bytes());
        let source = worker.flow("forward").snat.expect("a SNAT source");
        for options in naming(POD) {
            let at_pod = datagram().from(source).to(pod()).hop().options(&options);
            let error = Icmp::port_unreachable(POD, WORKER, at_pod.quote(12)).options(&options);
            let out = worker.run("from_netdev", &error.bytes());
            let seen = blanked(datagram().hop(), &options).quote(12);
            let want = error.from(WORKER).to(CLIENT).hop().options(&vec![1; options.len()]).about(seen);
            out.assert_sent(&want.bytes());
        }
    }
}

#[test]
fn an_error_of_a_host_backend_names_nobody() {
    let mut worker2 = Node::new(&state(WORKER2, Dsr, &[(WORKER2, WORKER2)])).expect("loads");
    let host = at(WORKER2, POD_PORT);
    worker2.run("from_netdev", &datagram().to(host).hop().options(&OPTION).bytes());
    for options in naming(WORKER2) {
        let at_host = datagram().to(host).hop().options(&options);
        let error = Icmp::port_unreachable(WORKER2, CLIENT, at_host.quote(12)).options(&options);
        let seen = blanked(datagram().hop(), &options).quote(12);
        let want = error.clone().from(WORKER).options(&vec![1; options.len()]).about(seen);
        worker2.run("to_netdev", &error.bytes()).assert_passed(&want.bytes());
    }
}

#[test]
fn what_is_nobodys_flow_keeps_its_options() {
    let mut worker2 = Node::of(WORKER2, Dsr);
    for options in naming(CLIENT) {
        let direct = request(SYN).to(pod()).options(&options);
        worker2.run("from_netdev", &direct.bytes()).assert_sent(&direct.hop().bytes());
        let own = Frame::tcp(at(POD, 40000), at(CLIENT, 443), SYN).options(&options);
        worker2.run("from_pod", &own.bytes()).assert_passed(&own.bytes());
    }
}

#[test]
fn the_carrier_of_another_node_is_not_blanked() {
    let mut wanted = state(WORKER2, Dsr, &[(POD, WORKER2)]);
    wanted.options.strip_option = false;
    let mut worker2 = Node::new(&wanted).expect("loads");
    for options in naming(CLIENT).iter().filter(|list| list.len() <= 32) {
        let frame = request(SYN).to(pod()).hop();
        let arrives = frame.clone().options(options).options_first(&OPTION);
        let want = blanked(frame, options).options_first(&OPTION).hop();
        worker2.run("from_netdev", &arrives.bytes()).assert_sent(&want.bytes());
    }
}
