//! An independent oracle: a model of dsr in plain Rust, without maps or BPF, beside the real programs on
//! thousands of random valid packets. Any difference in bytes or verdict fails.

use std::net::Ipv4Addr;

use datapath_agent::DatapathMode::Dsr;

use crate::frame::{ACK, FIN, Frame, ISN, Icmp, RST, SYN, at};
use crate::harness::{CLIENT, Node, OPTION, POD, WORKER, WORKER2, client, pod, request, vip};

/// A small deterministic generator (xorshift64*, Vigna 2016), so that a failure can be repeated.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() >> 11) as usize % end
    }

    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

/// What a program should do.
#[derive(Debug)]
enum Verdict {
    Send(Vec<u8>),
    Drop,
}

/// What the ingress node should do with a packet for the frontend, whose flow it has seen the SYN of.
fn forward(frame: &Frame) -> Verdict {
    let tagged = frame.is_syn() || !frame.is_tcp();
    let grown = frame.packet().len() + if tagged { 8 } else { 0 };
    let hop = frame.packet()[8];
    if hop <= 1 {
        return Verdict::Send(Icmp::time_exceeded(WORKER, CLIENT, quote(frame)).bytes());
    }
    if grown > 1500 {
        let mtu = if tagged { 1492 } else { 1500 };
        return Verdict::Send(Icmp::too_big(WORKER, CLIENT, mtu, quote(frame)).bytes());
    }
    if tagged && frame.ihl() > 52 {
        return Verdict::Drop;
    }
    let moved = frame.clone().without_names().to(pod()).hop();
    Verdict::Send(if tagged { moved.options_first(&OPTION) } else { moved }.bytes())
}

/// What the backend's node should do with a reply of a known flow.
fn reply(frame: &Frame) -> Verdict {
    if frame.packet()[8] <= 1 {
        return Verdict::Send(Icmp::time_exceeded(WORKER2, POD, quote(frame)).bytes());
    }
    if frame.packet().len() > 1500 {
        return Verdict::Send(Icmp::too_big(WORKER2, POD, 1500, quote(frame)).bytes());
    }
    Verdict::Send(frame.clone().without_names().from(vip()).hop().bytes())
}

fn quote(frame: &Frame) -> Vec<u8> {
    frame.quote(68 - frame.ihl())
}

/// A random packet between two sockets.
fn random(random: &mut Random, src: std::net::SocketAddrV4, dst: std::net::SocketAddrV4) -> Frame {
    let frame = match random.below(2) {
        0 => {
            Frame::tcp(src, dst, random.pick(&[SYN, ACK, SYN | ACK, FIN | ACK, RST, ACK | 0x08, SYN | 0xc0]))
        }
        _ => Frame::udp(src, dst),
    };
    let frame = if !frame.is_tcp() && random.below(4) == 0 { frame.no_checksum() } else { frame };
    let words = random.pick(&[0, 0, 0, 1, 2, 5, 8, 9, 10]);
    // A padding of no-operations, a route to record, or one option that names nobody.
    let mut options = vec![1; words * 4];
    match random.below(3) {
        0 if words > 0 => options[..4].copy_from_slice(&[0x94, words as u8 * 4, 0, 0]),
        1 if words > 1 => options[..3].copy_from_slice(&[7, words as u8 * 4 - 1, 4]),
        _ => {}
    }
    let len = random.pick(&[0, 1, 2, 3, 100, 1400, 1423, 1424, 1464, 1472, 1500]) + random.below(40);
    let payload = random.bytes(len);
    let id = random.next() as u16;
    frame.options(&options).payload(&payload).id(id).ttl(random.pick(&[0, 1, 2, 3, 64, 128, 255]))
}

#[track_caller]
fn compare(out: crate::harness::Output, want: Verdict, frame: &Frame, round: usize) {
    match want {
        Verdict::Send(bytes) if out.bytes == bytes && out.action == crate::harness::REDIRECT => {}
        Verdict::Send(bytes) => {
            eprint_round(round, frame);
            out.assert_sent(&bytes);
        }
        Verdict::Drop => assert_eq!(out.action, crate::harness::SHOT, "round {round} is not dropped"),
    }
}

#[expect(
    clippy::print_stderr,
    reason = "which random packet it was, before the assertion says what is wrong"
)]
fn eprint_round(round: usize, frame: &Frame) {
    eprintln!("round {round}: {frame:?}");
}

#[test]
fn forwarding_equals_the_model() {
    let mut worker = Node::of(WORKER, Dsr);
    let mut numbers = Random(0x1ab_c71);
    for round in 0..6_000 {
        let from = at(CLIENT, 40000 + numbers.below(5) as u16);
        // Each later in the stream than the one before: nothing is sent again.
        let later = (round as u32) << 13;
        let frame = random(&mut numbers, from, vip()).after(later);
        // The model knows flows that began with a SYN.
        let frame = if frame.is_tcp() && !frame.is_syn() { frame.seq(ISN + 1 + later) } else { frame };
        if frame.is_tcp() && !frame.is_syn() {
            worker.run("from_netdev", &request(SYN).from(from).after(later).bytes());
        }
        let out = worker.run("from_netdev", &frame.bytes());
        compare(out, forward(&frame), &frame, round);
    }
}

#[test]
fn replying_equals_the_model() {
    let mut worker2 = Node::of(WORKER2, Dsr);
    let mut numbers = Random(0xbac_4e4d);
    for frame in [request(SYN), crate::harness::datagram()] {
        worker2.run("from_netdev", &frame.to(pod()).options(&OPTION).bytes());
    }
    for round in 0..6_000 {
        let frame = random(&mut numbers, pod(), client());
        let out = worker2.run("from_pod", &frame.bytes());
        compare(out, reply(&frame), &frame, round);
    }
}

#[test]
fn whatever_the_path_the_pod_gets_what_the_client_sent() {
    let mut worker = Node::of(WORKER, Dsr);
    let mut worker2 = Node::of(WORKER2, Dsr);
    let mut numbers = Random(0x9a08_7d00);
    let mut delivered = 0;
    for _ in 0..2_000 {
        let host = Ipv4Addr::new(172, 18, 3, numbers.below(250) as u8);
        let from = at(host, 1024 + numbers.below(9) as u16);
        let frame = random(&mut numbers, from, vip()).ttl(64);
        let sent = worker.run("from_netdev", &frame.bytes());
        let fits = frame.packet().len() + 8 <= 1500 && frame.ihl() <= 52;
        if fits && sent.action == crate::harness::REDIRECT {
            let out = worker2.run("from_netdev", &sent.bytes);
            out.assert_sent(&frame.without_names().to(pod()).hop().hop().bytes());
            delivered += 1;
        }
    }
    assert!(delivered > 800, "only {delivered} packets tested anything");
}
