//! Random and mutated packets through all programs in all modes. Whatever comes in:
//!
//! - the verdict is one of pass, drop, redirect;
//! - what passes without a rewrite is the same bytes;
//! - what is redirected is IPv4 with a right header checksum and a header of at most 60 bytes;
//! - a checksum that was right is right afterwards;
//! - no packet with a service's pod as source is sent towards the client;
//! - a drop is counted, once.

use datapath_agent::DatapathMode::{self, Dsr, Hybrid, Local, Snat};
use datapath_agent::LocalPod;

use crate::check::{hex, wrong_checksum};
use crate::frame::{ACK, ETH, FIN, Frame, Icmp, NEIGHBOUR, RST, SYN, at};
use crate::harness::{
    CLIENT, CLUSTER_IP, CONTROL, Context, LOCAL_POD, NODE_PORT, Node, OK, OPTION, POD, POD_PORT, PROGRAMS,
    REDIRECT, SHOT, WORKER, WORKER2, pod, state, vip,
};
use crate::oracle::Random;

/// BPF_PROG_TEST_RUN takes no IPv4 frame without a whole header (Linux 6.18).
const SHORTEST: usize = 34;

/// Packets per mode and program.
const ROUNDS: usize = 3_000;

/// A node that has everything: a local pod, a remote pod, a hostNetwork backend.
fn node(mode: DatapathMode) -> Node {
    let backends = [(POD, WORKER2), (LOCAL_POD, WORKER), (WORKER, WORKER)];
    let mut wanted = state(WORKER, mode, &backends);
    wanted.pods.push(LocalPod { address: [10, 0, 2, 50].into(), interface: "lxc".into() });
    wanted.options.snat_ports = (61000, 61063);
    Node::new(&wanted).expect("loads")
}

/// A valid packet of the kinds that the programs know.
fn seed(random: &mut Random) -> Vec<u8> {
    let hosts = [CLIENT, WORKER, WORKER2, CONTROL, POD, LOCAL_POD, CLUSTER_IP, [10, 0, 2, 50].into()];
    let ports = [NODE_PORT, POD_PORT, 80, 43210, 61000, 61001, 53];
    let socket = |random: &mut Random| at(random.pick(&hosts), random.pick(&ports));
    let mut src = socket(random);
    let mut dst = socket(random);
    match random.below(4) {
        0 => (src, dst) = (at(CLIENT, 40000 + random.below(40) as u16), vip()),
        1 => (src, dst) = (at(LOCAL_POD, POD_PORT), at(CLIENT, 40000 + random.below(40) as u16)),
        2 => (src, dst) = (pod(), at(WORKER, 61000 + random.below(64) as u16)),
        _ => {}
    }
    let frame = match random.below(2) {
        0 => Frame::tcp(src, dst, random.pick(&[SYN, SYN | ACK, ACK, FIN | ACK, RST])),
        _ => Frame::udp(src, dst),
    };
    let options: &[u8] = random.pick(&[
        &[][..],
        &[],
        &[],
        &OPTION,
        &[0x94, 4, 0, 0],
        &[7, 7, 8, 10, 0, 2, 7, 0],
        &[0x83, 11, 4, 10, 0, 2, 7, 10, 0, 1, 108, 0],
        &[68, 12, 13, 1, 10, 0, 2, 7, 0, 0, 0, 1],
        &[0x9a, 8, 0, 0x7d, 3, 0, 18, 172],
        &[1; 40],
    ]);
    let len = random.below(40);
    let frame = frame.options(options).payload(&random.bytes(len)).ttl(random.pick(&[1, 2, 64]));
    match random.below(8) {
        0 => {
            let quoted = random.below(40);
            let kind = random.pick(&[3, 3, 3, 11, 12, 8]);
            let (from, to) = (random.pick(&hosts), random.pick(&hosts));
            Icmp::new(from, to, kind, random.below(5) as u8, frame.quote(quoted)).bytes()
        }
        1 => {
            let pieces = frame.may_fragment().total_len(240).fragments(64);
            pieces[random.below(pieces.len())].clone()
        }
        2 => frame.tagged(random.pick(&[0, 0, 0xe000, 7])),
        _ => frame.bytes(),
    }
}

/// Spoils a packet: some bytes, its length, or nothing.
fn mutate(random: &mut Random, frame: &mut Vec<u8>) {
    damage(random, frame);
    // Mostly a new header checksum, so that the damage gets further than that.
    let sum = header_sum(frame);
    if random.below(8) > 0
        && let (Some(field), Some(sum)) = (frame.get_mut(24..26), sum)
    {
        field.copy_from_slice(&sum.to_be_bytes());
    }
}

fn damage(random: &mut Random, frame: &mut Vec<u8>) {
    for _ in 0..random.pick(&[0, 0, 0, 1, 1, 2, 8]) {
        let headers = frame.len().min(90);
        let at = random.below(headers);
        frame[at] = random.pick(&[0, 1, 0x45, 0x46, 0x4f, 0x9a, 8, 0xff, random.0 as u8, frame[at] ^ 0x80]);
    }
    match random.below(10) {
        0 => frame.truncate(SHORTEST.max(random.below(frame.len()))),
        1 => frame.extend(random.bytes(20)),
        2 => {
            let station = random.bytes(6);
            frame[6..12].copy_from_slice(&station);
        }
        _ => {}
    }
}

/// The IPv4 header checksum that the frame should have.
fn header_sum(frame: &[u8]) -> Option<u16> {
    let header = etherparse::Ipv4HeaderSlice::from_slice(frame.get(ETH..)?).ok()?;
    Some(header.to_header().calc_header_checksum())
}

fn header_is_right(frame: &[u8]) -> bool {
    header_sum(frame).is_some_and(|sum| frame[24..26] == sum.to_be_bytes())
}

/// Runs one packet through one program and checks what it did; gives the verdict.
fn check(node: &mut Node, program: &str, frame: &[u8], context: Context) -> Result<u32, String> {
    let tally = |node: &Node| (node.dropped(), node.counter("icmp-sent"));
    let before = tally(node);
    let early = node.drops("fragment-unknown");
    let out = node.run_with(program, frame, context);
    let after = tally(node);
    let (mut counted, errors) = (after.0 - before.0, after.1 - before.1);
    // A first fragment that is served pays for those that came before it.
    if frame[20] & 0x20 != 0 && out.action == REDIRECT && program == "from_netdev" {
        counted -= node.drops("fragment-unknown") - early;
    }
    // An error of our own stands for a dropped packet.
    let want = if out.action == SHOT { 1 } else { errors };
    if counted != want {
        return Err(format!("{counted} drops are counted, not {want}"));
    }
    match out.action {
        SHOT => {}
        OK | REDIRECT if errors == 1 => whole_error(&out.bytes, frame)?,
        OK if out.bytes == frame || untagged(frame) == out.bytes => no_leak(&out.bytes, program)?,
        OK | REDIRECT => {
            still_right(&out.bytes, frame)?;
            no_name(&out.bytes)?;
            no_leak(&out.bytes, program)?;
        }
        other => return Err(format!("the verdict is {other}")),
    }
    Ok(out.action)
}

/// A frame without its priority tag, as one that passes may come out.
fn untagged(frame: &[u8]) -> Vec<u8> {
    match frame[12..14] {
        [0x81, 0] => [&frame[..12], &frame[16..]].concat(),
        _ => frame.to_vec(),
    }
}

/// A rewritten packet has right checksums if it had before.
fn still_right(out: &[u8], frame: &[u8]) -> Result<(), String> {
    let arrived = untagged(frame);
    if out[26..34] != arrived[26..34] && arrived[6..12] != NEIGHBOUR && out.get(34) == Some(&0x9a) {
        // A carrier that this node put in is the only one that may go on.
        let own = out.get(34..42) == Some(&OPTION) && arrived[30..34] == WORKER.octets();
        if !own {
            return Err("a carrier of a stranger goes on".into());
        }
    }
    if header_is_right(frame) && !header_is_right(out) {
        return Err("the IPv4 header checksum became wrong".into());
    }
    match (wrong_checksum(frame), wrong_checksum(out)) {
        (None, Some(wrong)) => Err(wrong),
        _ => Ok(()),
    }
}

/// An error of our own: all its sums are right, unless what it quotes was wrong before.
fn whole_error(error: &[u8], frame: &[u8]) -> Result<(), String> {
    match wrong_checksum(error) {
        Some(wrong) if !wrong.starts_with("in the quote") || wrong_checksum(frame).is_none() => Err(wrong),
        _ => Ok(()),
    }
}

/// What becomes a frontend's packet names no pod in its options.
fn no_name(frame: &[u8]) -> Result<(), String> {
    let header = ETH + usize::from(frame[ETH] & 0x0f) * 4;
    let to_client = frame[26..30] == WORKER.octets() && frame[30..34] == CLIENT.octets();
    let named = frame.get(34..header).unwrap_or(&[]).windows(4).any(|name| name == LOCAL_POD.octets());
    if to_client && named { Err("an option names a pod".into()) } else { Ok(()) }
}

/// Neither egress lets a service's pod speak to the client under its own address.
fn no_leak(frame: &[u8], program: &str) -> Result<(), String> {
    let ports = ETH + usize::from(frame[ETH] & 0x0f) * 4;
    let from_service = frame[26..30] == LOCAL_POD.octets()
        && frame.get(ports..ports + 2) == Some(&POD_PORT.to_be_bytes()[..]);
    let later_fragment = u16::from_be_bytes([frame[20], frame[21]]) & 0x1fff != 0;
    // What is for another station the stack throws away.
    let for_us = program == "to_netdev" || frame[..6] == [0; 6];
    let leaks = matches!(program, "from_pod" | "to_netdev")
        && for_us
        && frame[12..14] == [0x08, 0x00]
        && matches!(frame[23], 6 | 17)
        && !later_fragment
        && from_service
        && frame[30..34] == CLIENT.octets();
    if leaks { Err("a pod's address leaves towards the client".into()) } else { Ok(()) }
}

fn fuzz(mode: DatapathMode, seed_number: u64) {
    let mut node = node(mode);
    let mut random = Random(seed_number);
    let mut outcomes = [0usize; 3];
    for round in 0..ROUNDS {
        for program in PROGRAMS {
            let mut frame = if random.below(50) == 0 {
                let len = SHORTEST + random.below(200);
                let mut noise = random.bytes(len);
                noise[12..14].copy_from_slice(&[0x08, 0x00]);
                noise
            } else {
                seed(&mut random)
            };
            mutate(&mut random, &mut frame);
            let gso_size = if random.below(20) == 0 { 1 + random.below(1500) as u32 } else { 0 };
            let context = Context { gso_size, gso_segs: u32::from(gso_size != 0) * 2, ..Context::default() };
            match check(&mut node, program, &frame, context) {
                Ok(OK) => outcomes[0] += 1,
                Ok(SHOT) => outcomes[1] += 1,
                Ok(_) => outcomes[2] += 1,
                Err(wrong) => panic!("{mode:?}, {program}, round {round}: {wrong}\n in {}", hex(&frame)),
            }
        }
        if round % 500 == 499 {
            node.forget_all();
        }
    }
    // A fuzzer whose packets all end the same way tests nothing.
    assert!(outcomes.iter().all(|n| *n > ROUNDS / 10), "passed, dropped, redirected: {outcomes:?}");
}

#[test]
fn dsr() {
    fuzz(Dsr, 1);
}

#[test]
fn snat() {
    fuzz(Snat, 2);
}

#[test]
fn hybrid() {
    fuzz(Hybrid, 3);
}

#[test]
fn local() {
    fuzz(Local, 4);
}
