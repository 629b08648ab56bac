//! What is not a good TCP or UDP packet over IPv4: passed untouched or dropped and counted, never rewritten.

use datapath_agent::DatapathMode::{Dsr, Hybrid, Local, Snat};

use crate::frame::{ACK, Frame, Icmp, SYN, at, ethernet, with_header_sum};
use crate::harness::{
    CLIENT, Cluster, LOCAL_POD, Node, OK, POD_PORT, PROGRAMS, SHOT, WORKER, WORKER2, client, datagram, pod,
    request, response, state, vip,
};

/// Runs a frame through every program in every mode; it must pass untouched.
#[track_caller]
fn assert_untouched(frames: &[Vec<u8>]) {
    for mode in [Dsr, Snat, Hybrid, Local] {
        let mut worker = Node::of(WORKER, mode);
        for frame in frames {
            for program in PROGRAMS {
                let out = worker.run(program, frame);
                assert_eq!((out.action, &out.bytes), (OK, frame), "{program} in {mode:?} changed the frame");
            }
        }
        assert!(worker.flows().is_empty());
        assert!(worker.status().drops.is_empty());
    }
}

#[test]
fn arp_ipv6_and_unknown_protocols_pass() {
    let mut arp = ethernet(0x0806);
    arp.extend([0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 2, 172, 18, 0, 1, 0, 0, 0, 0, 0, 0, 172, 18, 0, 3]);
    let mut ipv6 = ethernet(0x86dd);
    ipv6.extend([0x60, 0, 0, 0, 0, 20, 6, 64]);
    ipv6.extend([0; 52]);
    let mut mpls = ethernet(0x8847);
    mpls.extend(request(SYN).packet());
    let mut unknown = ethernet(0x88b5);
    unknown.extend([1; 46]);
    assert_untouched(&[arp, ipv6, mpls, unknown]);
}

#[test]
fn a_vlan_tag_passes_with_all_that_is_in_it() {
    assert_untouched(&[request(SYN).tagged(100), datagram().tagged(1), response(ACK).tagged(4094)]);
    // The priority says nothing about the VLAN.
    assert_untouched(&[request(SYN).tagged(0xe001), datagram().tagged(0x7fff)]);
    // A VLAN inside a priority tag is a VLAN.
    let mut double = ethernet(0x8100);
    double.extend([0, 0]);
    double.extend(&request(SYN).tagged(7)[12..]);
    for mode in [Dsr, Snat, Hybrid, Local] {
        let mut worker = Node::of(WORKER, mode);
        let out = worker.run("from_netdev", &double);
        assert_eq!(out.action, OK, "a VLAN in a priority tag is served");
        assert!(worker.flows().is_empty() && worker.status().drops.is_empty());
    }
}

#[test]
fn a_priority_tag_is_no_vlan() {
    for priority in [0u16, 0x2000, 0xf000] {
        for mode in [Dsr, Snat, Hybrid] {
            let mut cluster = Cluster::new(mode);
            for frame in [request(SYN), request(ACK).payload(b"GET /"), datagram()] {
                let plain = cluster.worker.run("from_netdev", &frame.bytes());
                // Sent twice, it would carry the option.
                cluster.worker.forget_all();
                cluster.worker.run("from_netdev", &request(SYN).bytes());
                let out = cluster.worker.run("from_netdev", &frame.tagged(priority));
                out.assert_sent(&plain.bytes);
                // The next node's frame may have one too.
                let with_tag = [&plain.bytes[..12], &[0x81, 0], &priority.to_be_bytes(), &plain.bytes[12..]];
                let delivered = cluster.worker2.run("from_netdev", &plain.bytes);
                cluster.worker2.run("from_netdev", &with_tag.concat()).assert_sent(&delivered.bytes);
            }
        }
        let mut worker = Node::new(&state(WORKER, Local, &[(LOCAL_POD, WORKER)])).expect("loads");
        let local = at(LOCAL_POD, POD_PORT);
        let want = datagram().to(local).hop().bytes();
        worker.run("from_netdev", &datagram().tagged(priority)).assert_sent(&want);
        let reply = Frame::udp(local, client());
        worker.run("from_pod", &reply.tagged(priority)).assert_sent(&reply.from(vip()).hop().bytes());
    }
}

#[test]
fn a_frame_for_another_station_is_not_served() {
    // A switch that does not know where the address is sends the frame to all ports.
    let frames = [
        request(SYN),
        datagram(),
        request(SYN).to(pod()).options(&crate::harness::OPTION),
        response(SYN | ACK),
        Frame::udp(pod(), client()),
    ];
    for mode in [Dsr, Snat, Hybrid, Local] {
        for node in [WORKER, WORKER2] {
            let mut node = Node::of(node, mode);
            for station in [[2, 0, 0, 0, 0, 9], [0xff; 6], [1, 0, 0x5e, 0, 0, 1]] {
                for frame in &frames {
                    for mut bytes in [frame.bytes(), frame.tagged(0)] {
                        bytes[..6].copy_from_slice(&station);
                        for program in ["from_netdev", "from_pod"] {
                            let out = node.run(program, &bytes);
                            assert_eq!((out.action, &out.bytes), (OK, &bytes), "{program} in {mode:?}");
                        }
                    }
                }
            }
            assert!(node.flows().is_empty());
            assert!(node.status().drops.is_empty());
        }
    }
}

#[test]
fn an_error_for_another_station_is_not_translated() {
    for mode in [Dsr, Snat] {
        let mut worker = Node::of(WORKER, mode);
        worker.run("from_netdev", &datagram().bytes());
        let quote = Frame::udp(vip(), client()).quote(8);
        let mut error = Icmp::too_big(CLIENT, WORKER, 1280, quote).bytes();
        error[..6].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
        worker.run("from_netdev", &error).assert_passed(&error);
    }
}

#[test]
fn other_transports_pass() {
    let mut frames = Vec::new();
    // IGMP, IPIP, GRE, ESP, SCTP, and a number that nobody has.
    for proto in [2, 4, 47, 50, 132, 253] {
        let mut packet = request(SYN).packet();
        let old = u16::from_be_bytes([packet[8], packet[9]]);
        packet[9] = proto;
        let new = u16::from_be_bytes([packet[8], packet[9]]);
        let sum = u32::from(u16::from_be_bytes([packet[10], packet[11]])) + u32::from(old) + 0xffff
            - u32::from(new);
        let sum = (sum & 0xffff) + (sum >> 16);
        packet[10..12].copy_from_slice(&(sum as u16).to_be_bytes());
        frames.push([ethernet(0x0800), packet].concat());
    }
    assert_untouched(&frames);
}

/// Every packet that one of the programs would rewrite if it were whole.
fn interesting() -> Vec<Frame> {
    vec![
        request(SYN),
        request(ACK).payload(b"data"),
        datagram(),
        request(SYN).options(&[1; 36]),
        request(SYN).to(pod()).options(&crate::harness::OPTION),
        response(ACK),
        Frame::udp(pod(), client()),
        Frame::tcp(client(), vip(), SYN).options(&[1; 40]),
    ]
}

/// Runs a frame through every program; none may emit it, and each drop is counted for this reason.
#[track_caller]
fn assert_refused(worker: &mut Node, frame: &[u8], reason: &str) {
    for program in PROGRAMS {
        let before = worker.drops(reason);
        let out = worker.run(program, frame);
        let dropped = out.action == SHOT && worker.drops(reason) == before + 1;
        assert!(dropped, "{program} answered {} to a frame of {reason}", out.action);
    }
}

#[test]
fn every_shorter_frame_is_refused() {
    let mut worker = Node::of(WORKER, Dsr);
    for frame in interesting() {
        let bytes = frame.bytes();
        // BPF_PROG_TEST_RUN itself refuses IPv4 without a whole header (Linux 6.18).
        for len in 34..bytes.len() {
            // The total length promises more than the frame holds.
            assert_refused(&mut worker, &bytes[..len], "invalid-header");
        }
    }
    assert!(worker.flows().is_empty());
}

#[test]
fn a_header_that_contradicts_itself_is_refused() {
    let mut worker = Node::of(WORKER, Dsr);
    for frame in interesting() {
        let bytes = frame.bytes();
        for first in [0x00, 0x05, 0x35, 0x55, 0x65, 0xf5, 0x40, 0x41, 0x42, 0x43, 0x44] {
            let mut wrong = bytes.clone();
            wrong[14] = first;
            assert_refused(&mut worker, &wrong, "invalid-header");
        }
        for len in [0, 1, 19, frame.ihl() as u16 - 1, bytes.len() as u16 - 13, 0xffff] {
            let mut wrong = bytes.clone();
            wrong[16..18].copy_from_slice(&len.to_be_bytes());
            assert_refused(&mut worker, &wrong, "invalid-header");
        }
    }
}

#[test]
fn a_truncated_transport_header_is_refused() {
    let mut worker = Node::of(WORKER, Dsr);
    for frame in interesting() {
        let bytes = frame.bytes();
        let need = if frame.is_tcp() { 20 } else { 8 };
        for transport in 0..need {
            // An honest total length, with the frame cut there and with the rest as padding.
            let total = frame.ihl() + transport;
            let mut short = bytes.clone();
            short[16..18].copy_from_slice(&(total as u16).to_be_bytes());
            let short = with_header_sum(short);
            assert_refused(&mut worker, &short, "truncated-transport");
            assert_refused(&mut worker, &short[..14 + total], "truncated-transport");
        }
    }
}

#[test]
fn padding_behind_the_packet_stays_and_does_not_count() {
    let mut worker = Node::of(WORKER, Dsr);
    for frame in [request(SYN), datagram()] {
        let padding = [0x55; 18];
        let out = worker.run("from_netdev", &[frame.bytes(), padding.to_vec()].concat());
        let want = frame.to(pod()).hop().options(&crate::harness::OPTION).bytes();
        out.assert_sent(&[want, padding.to_vec()].concat());
    }
}

#[test]
fn a_wrong_checksum_stays_wrong() {
    // The datapath must not make a corrupted packet look whole.
    let mut worker = Node::of(WORKER, Dsr);
    for frame in [request(SYN), datagram()] {
        let mut bytes = frame.bytes();
        let last = bytes.len() - 1;
        bytes[last] ^= 0x10;
        let out = worker.run("from_netdev", &bytes);
        let wrong = crate::check::wrong_checksum(&out.bytes).expect("the corruption was hidden");
        assert!(wrong.contains("TCP") || wrong.contains("UDP"), "{wrong}");
    }
}
