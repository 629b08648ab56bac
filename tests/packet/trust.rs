//! Whom the datapath believes. A carrier makes a backend answer as the frontend that it names, so only nodes may
//! send one, in modes that have one; a source that nobody can have, and a wrong header checksum, do not pass.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::Command;

use datapath_agent::DatapathMode::{self, Dsr, Hybrid, Local, Snat};

use crate::frame::{ACK, FIN, Frame, Icmp, NEIGHBOUR, RST, SYN, at, sent_by};
use crate::harness::{
    CLIENT, CLUSTER_IP, CONTROL, Context, LOCAL_POD, NODE_PORT, Node, OK, OPTION, POD, POD_PORT, SHOT,
    UPLINK, WORKER, WORKER2, client, datagram, pod, request, response, state, vip,
};

const MODES: [DatapathMode; 4] = [Dsr, Snat, Hybrid, Local];

/// A station on the segment that is no node.
const STRANGER: [u8; 6] = [0x02, 0x66, 0, 0, 0, 0x66];

/// The option that names a frontend, in both byte orders.
fn options(frontend: SocketAddrV4) -> [[u8; 8]; 2] {
    let ([a, b, c, d], [p, q]) = (frontend.ip().octets(), frontend.port().to_be_bytes());
    [[0x9a, 8, p, q, a, b, c, d], [0x9a, 8, q, p, d, c, b, a]]
}

/// Every frontend that worker2 knows.
fn frontends() -> [SocketAddrV4; 4] {
    [vip(), at(CONTROL, NODE_PORT), at(WORKER2, NODE_PORT), at(CLUSTER_IP, 80)]
}

/// Packets to the pod, as an attacker would forge them.
fn forged() -> Vec<Frame> {
    let flags = [SYN, ACK, SYN | ACK, FIN | ACK, RST, 0];
    let mut frames: Vec<Frame> = flags.iter().map(|flags| request(*flags)).collect();
    frames.push(datagram());
    frames.push(datagram().total_len(1400));
    frames.into_iter().map(|frame| frame.to(pod())).collect()
}

#[test]
fn a_stranger_is_not_believed() {
    for mode in MODES {
        let mut worker2 = Node::of(WORKER2, mode);
        for frontend in frontends() {
            for option in options(frontend) {
                for frame in forged() {
                    let frame = sent_by(STRANGER, frame.options(&option).bytes());
                    worker2.assert_drop("from_netdev", &frame, "foreign-carrier");
                }
            }
        }
        assert!(worker2.flows().is_empty(), "a forged carrier left a flow in {mode:?}");
    }
}

#[test]
fn fragments_of_a_stranger_are_not_believed() {
    for mode in MODES {
        let mut worker2 = Node::of(WORKER2, mode);
        let frame = datagram().to(pod()).may_fragment().total_len(3000).options(&OPTION);
        // In order and out of order.
        for fragment in frame.fragments(1200).iter().chain(frame.fragments(1200).iter().rev()) {
            let fragment = sent_by(STRANGER, fragment.clone());
            worker2.assert_drop("from_netdev", &fragment, "foreign-carrier");
        }
    }
}

#[test]
fn two_blind_packets_break_no_connection() {
    for frontend in [at(CONTROL, NODE_PORT), at(CLUSTER_IP, 80)] {
        let mut worker2 = Node::of(WORKER2, Dsr);
        worker2.run("from_netdev", &request(SYN).to(pod()).options(&OPTION).bytes());
        worker2.run("from_netdev", &datagram().to(pod()).options(&OPTION).bytes());
        for attack in [request(RST), request(SYN), datagram()] {
            let attack = attack.to(pod()).options(&options(frontend)[0]);
            worker2.assert_drop("from_netdev", &sent_by(STRANGER, attack.bytes()), "foreign-carrier");
        }
        for reply in [response(SYN | ACK), Frame::udp(pod(), client())] {
            worker2.run("from_pod", &reply.bytes()).assert_sent(&reply.from(vip()).hop().bytes());
        }
    }
}

#[test]
fn a_carrier_names_the_node_that_sent_it() {
    // Each node is believed about its own frontend only.
    let mut worker2 = Node::of(WORKER2, Dsr);
    worker2.forget_neighbour(CONTROL);
    let through = |frontend| request(SYN).to(pod()).options(&options(frontend)[0]).bytes();
    worker2.assert_drop("from_netdev", &through(at(CONTROL, NODE_PORT)), "foreign-carrier");
    let want = request(SYN).to(pod()).hop().bytes();
    worker2.run("from_netdev", &through(vip())).assert_sent(&want);
    // No node sends what is for a ClusterIP, nor to itself.
    for frontend in [at(CLUSTER_IP, 80), at(WORKER2, NODE_PORT)] {
        worker2.assert_drop("from_netdev", &through(frontend), "foreign-carrier");
    }
}

#[test]
fn modes_without_a_carrier_take_none_from_nodes_either() {
    for mode in MODES {
        let mut worker2 = Node::of(WORKER2, mode);
        for frame in forged() {
            let tagged = frame.clone().options(&OPTION);
            let carries = mode == Dsr || (mode == Hybrid && frame.is_tcp());
            if carries {
                let out = worker2.run("from_netdev", &tagged.bytes());
                out.assert_sent(&frame.hop().bytes());
            } else {
                worker2.assert_drop("from_netdev", &tagged.bytes(), "foreign-carrier");
            }
        }
    }
}

#[test]
fn what_only_passes_a_node_is_judged_like_what_is_for_it() {
    // Routed on by the stack, it would leave with this node's link address and be believed at the next.
    for mode in MODES {
        let mut worker = Node::of(WORKER, mode);
        for frame in forged() {
            let frame = frame.options(&OPTION).bytes();
            worker.assert_drop("from_netdev", &sent_by(STRANGER, frame), "foreign-carrier");
        }
    }
}

#[test]
fn a_client_cannot_bring_one_to_a_frontend() {
    for mode in MODES {
        let mut worker = Node::of(WORKER, mode);
        for frame in [request(SYN), request(ACK), datagram()] {
            let frame = sent_by(STRANGER, frame.options(&OPTION).bytes());
            worker.assert_drop("from_netdev", &frame, "foreign-carrier");
        }
    }
}

#[test]
fn other_options_of_a_stranger_are_no_carrier() {
    let mut worker2 = Node::of(WORKER2, Dsr);
    // Behind another option nobody looks for it.
    for options in [&[0x94, 4, 0, 0][..], &[0x1a, 8, 0x7d, 0, 172, 18, 0, 3]] {
        let frame = request(SYN).to(pod()).options(options);
        let want = sent_by(STRANGER, frame.clone().hop().bytes());
        worker2.run("from_netdev", &sent_by(STRANGER, frame.bytes())).assert_sent(&want);
    }
    let behind = [&[0x94, 4, 0, 0][..], &OPTION].concat();
    worker2.run("from_netdev", &sent_by(STRANGER, request(SYN).to(pod()).options(&behind).bytes()));
    assert!(worker2.flows().is_empty());
}

#[test]
fn a_pod_cannot_send_one() {
    for mode in MODES {
        let mut worker2 = Node::of(WORKER2, mode);
        worker2.run("from_netdev", &request(SYN).to(at(WORKER2, NODE_PORT)).bytes());
        let to = [at(LOCAL_POD, POD_PORT), client(), vip(), at(CLUSTER_IP, 80), at(WORKER2, 22)];
        for dst in to {
            for src in [pod(), at(POD, 40000), client()] {
                for frame in [Frame::tcp(src, dst, SYN), Frame::udp(src, dst)] {
                    let frame = frame.options(&OPTION).bytes();
                    worker2.assert_drop("from_pod", &frame, "foreign-carrier");
                }
            }
        }
    }
    // Nor is a node believed that has let one through.
    let mut worker2 = Node::of(WORKER2, Dsr);
    let frame = request(SYN).from(at(LOCAL_POD, 40000)).to(pod()).options(&OPTION);
    worker2.assert_drop("from_netdev", &frame.bytes(), "foreign-carrier");
}

#[test]
fn a_node_lets_none_out_that_the_datapath_did_not_send() {
    for mode in MODES {
        let mut worker = Node::of(WORKER, mode);
        for frame in forged() {
            let frame = frame.options(&OPTION).bytes();
            worker.assert_drop("to_netdev", &frame, "foreign-carrier");
            // What came in by the uplink was judged there; a second interface has no program.
            let arrived_on = |arrived_on| Context { arrived_on, ..Context::default() };
            let out = worker.run_with("to_netdev", &frame, arrived_on(UPLINK));
            assert_eq!((out.action, &out.bytes), (OK, &frame));
            assert_eq!(worker.run_with("to_netdev", &frame, arrived_on(UPLINK + 1)).action, SHOT);
        }
    }
}

/// Runs `ip` in the calling thread's network namespace.
fn ip(args: &str) {
    let status = Command::new("ip").args(args.split(' ')).status().expect("ip runs");
    assert!(status.success(), "ip {args} failed");
}

#[test]
fn the_kernels_neighbour_on_the_way_to_a_node_is_believed() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace of its own");
    ip("link set lo up");
    ip(&format!("link add eth0 index {UPLINK} type veth peer name far0"));
    ip("link set far0 up");
    ip("link set eth0 up");
    ip("address add 172.18.0.2/24 dev eth0");
    std::fs::write("/proc/sys/net/ipv4/conf/eth0/forwarding", "1").expect("forwarding can be switched on");
    let mut worker2 = Node::of(WORKER2, Dsr);
    let frame = request(SYN).to(pod());
    let tagged = |station| sent_by(station, frame.clone().options(&OPTION).bytes());
    let want = |station| sent_by(station, frame.clone().hop().bytes());
    worker2.forget_neighbour(WORKER);
    // Nobody knows where worker is.
    worker2.assert_drop("from_netdev", &tagged(NEIGHBOUR), "foreign-carrier");
    ip("neighbour replace 172.18.0.3 lladdr 02:00:00:00:00:01 dev eth0 nud stale");
    worker2.assert_drop("from_netdev", &tagged(STRANGER), "foreign-carrier");
    worker2.run("from_netdev", &tagged(NEIGHBOUR)).assert_sent(&want(NEIGHBOUR));
    assert_eq!(worker2.neighbour(WORKER).mac.to_ne_bytes()[..6], NEIGHBOUR, "it was not remembered");
    // The agent's next update leaves it, and the kernel may forget.
    worker2.sync(&state(WORKER2, Dsr, &[(POD, WORKER2)]));
    ip("neighbour del 172.18.0.3 dev eth0");
    worker2.run("from_netdev", &tagged(NEIGHBOUR)).assert_sent(&want(NEIGHBOUR));
    // The node gets another interface.
    let moved = [0x02, 0, 0, 0, 0, 0x55];
    worker2.assert_drop("from_netdev", &tagged(moved), "foreign-carrier");
    ip("neighbour replace 172.18.0.3 lladdr 02:00:00:00:00:55 dev eth0 nud reachable");
    worker2.run("from_netdev", &tagged(moved)).assert_sent(&want(moved));
    // The node moves behind a router: then the router's frames are its frames.
    let router = [0x02, 0, 0, 0, 0, 0x77];
    ip("neighbour replace 172.18.0.254 lladdr 02:00:00:00:00:77 dev eth0 nud permanent");
    ip("route add 172.18.0.3/32 via 172.18.0.254");
    worker2.run("from_netdev", &tagged(router)).assert_sent(&want(router));
    // On the way to a node through another interface nothing of it arrives here.
    ip("link add eth1 type veth peer name far1");
    ip("link set far1 up");
    ip("link set eth1 up");
    ip("route replace 172.18.0.3/32 dev eth1");
    worker2.assert_drop("from_netdev", &tagged(STRANGER), "foreign-carrier");
}

/// Sources that nobody outside can have, for worker.
fn martians() -> Vec<Ipv4Addr> {
    [
        [0, 0, 0, 0],
        [0, 1, 2, 3],
        [127, 0, 0, 1],
        [127, 255, 255, 255],
        [224, 0, 0, 1],
        [239, 255, 255, 250],
        [240, 0, 0, 1],
        [255, 255, 255, 255],
        WORKER.octets(),
        LOCAL_POD.octets(),
    ]
    .map(Ipv4Addr::from)
    .to_vec()
}

#[test]
fn nobody_can_have_these_sources() {
    let local = at(LOCAL_POD, POD_PORT);
    for mode in MODES {
        let mut worker = Node::new(&state(WORKER, mode, &[(LOCAL_POD, WORKER)])).expect("loads");
        for source in martians() {
            for dst in [vip(), local] {
                for frame in [request(SYN), request(ACK), datagram()] {
                    let frame = frame.from(at(source, 43210)).to(dst);
                    worker.assert_drop("from_netdev", &frame.bytes(), "martian-source");
                    if mode == Dsr && dst == local && source != LOCAL_POD {
                        let tagged = frame.options(&options(at(CONTROL, NODE_PORT))[0]);
                        worker.assert_drop("from_netdev", &tagged.bytes(), "martian-source");
                    }
                }
            }
        }
        assert!(worker.flows().is_empty());
        assert_eq!(worker.counter("icmp-sent"), 0);
    }
}

#[test]
fn their_neighbours_are_served() {
    for mode in MODES {
        let mut worker = Node::new(&state(WORKER, mode, &[(LOCAL_POD, WORKER)])).expect("loads");
        for source in
            [[1, 0, 0, 1], [126, 255, 255, 255], [128, 0, 0, 1], [223, 255, 255, 255], [10, 0, 2, 8]]
        {
            let frame = request(SYN).from(at(source.into(), 43210));
            let want = frame.clone().to(at(LOCAL_POD, POD_PORT)).hop();
            worker.run("from_netdev", &frame.bytes()).assert_sent(&want.bytes());
        }
    }
}

#[test]
fn what_is_not_for_a_service_is_the_stacks_to_judge() {
    // A DHCP client has no address yet.
    let mut worker = Node::of(WORKER, Dsr);
    let discover = Frame::udp(at([0, 0, 0, 0].into(), 68), at([255; 4].into(), 67)).bytes();
    worker.run("from_netdev", &discover).assert_passed(&discover);
    for source in martians() {
        let frame = Frame::tcp(at(source, 43210), at(WORKER, 22), SYN).bytes();
        worker.run("from_netdev", &frame).assert_passed(&frame);
    }
}

#[test]
fn an_error_from_such_a_source_is_not_translated() {
    for mode in MODES {
        let mut worker = Node::new(&state(WORKER, mode, &[(LOCAL_POD, WORKER)])).expect("loads");
        worker.run("from_netdev", &request(SYN).bytes());
        let quote = Frame::tcp(vip(), client(), ACK).quote(8);
        for source in martians() {
            let error = Icmp::too_big(source, WORKER, 1280, quote.clone()).bytes();
            worker.run("from_netdev", &error).assert_passed(&error);
        }
        let error = Icmp::too_big(CLIENT, WORKER, 1280, quote);
        assert_ne!(worker.run("from_netdev", &error.bytes()).bytes, error.bytes(), "no error is translated");
    }
}

#[test]
fn a_wrong_header_checksum_does_not_pass() {
    for mode in MODES {
        let mut worker = Node::new(&state(WORKER, mode, &[(LOCAL_POD, WORKER)])).expect("loads");
        let frames = [
            request(SYN),
            datagram(),
            request(SYN).options(&[0x94, 4, 0, 0]),
            request(SYN).options(&[1; 40]),
            datagram().may_fragment(),
            request(SYN).to(at(LOCAL_POD, POD_PORT)),
            Frame::tcp(at(LOCAL_POD, POD_PORT), client(), ACK),
        ];
        for frame in frames.iter().map(Frame::bytes) {
            let end = 14 + usize::from(frame[14] & 0x0f) * 4;
            for bit in 15 * 8..end * 8 {
                let mut wrong = frame.clone();
                wrong[bit / 8] ^= 1 << (bit % 8);
                for program in ["from_netdev", "from_pod"] {
                    let out = worker.run(program, &wrong);
                    // A longer total length contradicts the frame, and is found first.
                    assert_eq!(out.action, SHOT, "{program} takes a header with a wrong bit {bit}");
                }
            }
        }
        assert!(worker.drops("header-checksum") > 1000);
        assert!(worker.flows().is_empty());
    }
}

#[test]
fn an_error_with_a_wrong_header_checksum_does_not_pass() {
    let mut worker = Node::of(WORKER, Snat);
    worker.run("from_netdev", &request(SYN).bytes());
    let mut error = Icmp::too_big(CLIENT, WORKER, 1280, Frame::tcp(vip(), client(), ACK).quote(8)).bytes();
    error[24] ^= 1;
    for program in ["from_netdev", "from_pod"] {
        worker.assert_drop(program, &error, "header-checksum");
    }
}
