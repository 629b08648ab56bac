//! The damages themselves. Each is done to one place of the evidence and says in one line what it was.

use std::net::Ipv4Addr;

use datapath_types::checksum;
use labctl_wire::facts::{Hook, ProgramFacts};
use labctl_wire::packet::{Mac, Transport};
use labctl_wire::{Direction, Frame, Outcome, canary};

use super::{Random, Target};
use crate::evidence::Evidence;

/// One damage that was done.
#[derive(Clone, Debug)]
pub(super) struct Damage {
    pub(super) kind: &'static str,
    /// What it was, for people.
    pub(super) text: String,
    pub(super) touched: Touched,
}

/// What was damaged, as far as it matters whether it had to be noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Touched {
    /// The packet with this index.
    Packet(usize),
    /// How long a request took.
    Duration,
    /// A request's number.
    Number,
    Rest,
}

type Way = fn(&Target<'_>, &mut Evidence, &mut Random) -> Option<Damage>;

/// Ways to damage evidence and how often each is taken.
const WAYS: [(usize, Way); 15] = [
    (20, alter_byte),
    (20, alter_byte_and_mend_checksums),
    (8, delete_packet),
    (6, repeat_packet),
    (6, move_to_another_point),
    (3, turn_direction),
    (4, move_in_time),
    (3, cut_packet),
    (10, add_stranger),
    (4, change_report),
    (4, change_outcome),
    (1, spoil_capture),
    (1, spoil_counts),
    (2, swap_packets),
    (2, change_host),
];

/// Does one damage; `None` where the one that was drawn cannot be done.
pub(super) fn damage(target: &Target<'_>, evidence: &mut Evidence, random: &mut Random) -> Option<Damage> {
    let all: usize = WAYS.iter().map(|(weight, _)| weight).sum();
    let mut drawn = random.below(all);
    for (weight, way) in WAYS {
        if drawn < weight {
            let damage = way(target, evidence, random);
            evidence.capture.sort();
            evidence.prove_live();
            return damage;
        }
        drawn -= weight;
    }
    None
}

fn pick(target: &Target<'_>, random: &mut Random) -> usize {
    random.below(target.evidence.capture.packets().len())
}

fn place(target: &Target<'_>, packet: usize) -> String {
    let capture = &target.evidence.capture;
    let captured = &capture.packets()[packet];
    format!("packet {packet} {} at {}", captured.direction, capture.points[captured.point].point)
}

fn of_packet(kind: &'static str, target: &Target<'_>, packet: usize, what: &str) -> Option<Damage> {
    let text = format!("{what}: {}", place(target, packet));
    Some(Damage { kind, text, touched: Touched::Packet(packet) })
}

/// Flips one to eight bits of one byte; returns where, and the field's name.
fn flip(
    target: &Target<'_>,
    evidence: &mut Evidence,
    packet: usize,
    random: &mut Random,
) -> (Vec<u8>, usize) {
    let mut bytes = target.evidence.capture.data(packet).to_vec();
    let at = random.below(bytes.len());
    bytes[at] ^= (random.below(255) + 1) as u8;
    evidence.capture.replace(packet, &bytes);
    (bytes, at)
}

fn alter_byte(target: &Target<'_>, evidence: &mut Evidence, random: &mut Random) -> Option<Damage> {
    let packet = pick(target, random);
    let (_, at) = flip(target, evidence, packet, random);
    let field = field(&target.evidence.capture.headers(packet), at);
    of_packet("alter a byte", target, packet, &format!("byte {at} ({field}) altered"))
}

fn alter_byte_and_mend_checksums(
    target: &Target<'_>,
    evidence: &mut Evidence,
    random: &mut Random,
) -> Option<Damage> {
    let packet = pick(target, random);
    let (mut bytes, at) = flip(target, evidence, packet, random);
    mend(&mut bytes);
    if bytes == target.evidence.capture.data(packet) {
        // It was a checksum that was altered.
        return None;
    }
    evidence.capture.replace(packet, &bytes);
    let field = field(&target.evidence.capture.headers(packet), at);
    let kind = kind_of(field);
    of_packet(kind, target, packet, &format!("byte {at} ({field}) altered, checksums right"))
}

/// Field names are static: the kinds of the score.
fn kind_of(field: &'static str) -> &'static str {
    match field {
        "Ethernet destination" => "alter Ethernet destination",
        "Ethernet source" => "alter Ethernet source",
        "Ethernet type" => "alter Ethernet type",
        "IPv4 length" => "alter IPv4 length",
        "IPv4 ToS" => "alter IPv4 ToS",
        "IPv4 id" => "alter IPv4 id",
        "IPv4 flags and offset" => "alter IPv4 flags and offset",
        "TTL" => "alter TTL",
        "IPv4 protocol" => "alter IPv4 protocol",
        "IPv4 addresses" => "alter IPv4 addresses",
        "IPv4 options" => "alter IPv4 options",
        "ports" => "alter ports",
        "TCP numbers" => "alter TCP numbers",
        "TCP flags and window" => "alter TCP flags and window",
        "transport header" => "alter the transport header's rest",
        "payload" => "alter the payload",
        _ => "alter another protocol",
    }
}

fn field(frame: &Frame, at: usize) -> &'static str {
    let Some(ip) = frame.ipv4() else {
        return match at {
            0..6 => "Ethernet destination",
            6..12 => "Ethernet source",
            12..14 => "Ethernet type",
            _ => "another protocol",
        };
    };
    let inside = at.checked_sub(frame.header_len);
    match (at, inside) {
        (0..6, _) => "Ethernet destination",
        (6..12, _) => "Ethernet source",
        (_, None) => "Ethernet type",
        (_, Some(0 | 2 | 3)) => "IPv4 length",
        (_, Some(1)) => "IPv4 ToS",
        (_, Some(4..6)) => "IPv4 id",
        (_, Some(6..8)) => "IPv4 flags and offset",
        (_, Some(8)) => "TTL",
        (_, Some(9)) => "IPv4 protocol",
        (_, Some(10..12)) => "checksum",
        (_, Some(12..20)) => "IPv4 addresses",
        (_, Some(at)) if at < ip.header_len => "IPv4 options",
        (_, Some(at)) => match (&ip.transport, at - ip.header_len) {
            (Transport::Tcp(_) | Transport::Udp(_), 0..4) => "ports",
            (Transport::Tcp(_), 4..12) => "TCP numbers",
            (Transport::Tcp(_), 12..16) => "TCP flags and window",
            (Transport::Tcp(tcp), within)
                if frame.header_len + ip.header_len + within < tcp.payload.start =>
            {
                "transport header"
            }
            (Transport::Udp(_) | Transport::Icmp(_), 0..8) => "transport header",
            _ => "payload",
        },
    }
}

/// Makes the checksums right again, as whoever alters a packet on purpose would.
fn mend(bytes: &mut [u8]) {
    let frame = Frame::headers(bytes, bytes.len() as u32);
    let Some(ip) = frame.ipv4().cloned() else { return };
    let (start, header) = (frame.header_len, ip.header_len);
    write_sum(bytes, start + 10, start..start + header, 0);
    let end = bytes.len().min(start + usize::from(ip.total_len));
    let segment = start + header..end;
    if ip.is_fragment() || segment.len() < 8 {
        return;
    }
    let address = |a: Ipv4Addr| u32::from_ne_bytes(a.octets());
    let pseudo = checksum::pseudo_header(address(ip.src), address(ip.dst), ip.protocol, segment.len() as u16);
    match ip.transport {
        Transport::Tcp(_) => write_sum(bytes, segment.start + 16, segment, pseudo),
        Transport::Udp(udp) if usize::from(udp.length) == segment.len() => {
            write_sum(bytes, segment.start + 6, segment, pseudo);
        }
        Transport::Icmp(_) => write_sum(bytes, segment.start + 2, segment, 0),
        _ => {}
    }
}

fn write_sum(bytes: &mut [u8], at: usize, over: std::ops::Range<usize>, seed: u64) {
    bytes[at..at + 2].fill(0);
    let sum = checksum::of(&bytes[over], seed).to_ne_bytes();
    bytes[at..at + 2].copy_from_slice(&sum);
}

/// Lets a point say that it received one more, or one less.
fn recount(evidence: &mut Evidence, point: usize, by: i64) {
    let received = &mut evidence.capture.points[point].received;
    *received = received.map(|n| n.saturating_add_signed(by));
}

fn delete_packet(target: &Target<'_>, evidence: &mut Evidence, random: &mut Random) -> Option<Damage> {
    let packet = pick(target, random);
    let removed = evidence.capture.packets_mut().remove(packet);
    recount(evidence, removed.point, -1);
    of_packet("delete a packet", target, packet, "deleted")
}

fn repeat_packet(target: &Target<'_>, evidence: &mut Evidence, random: &mut Random) -> Option<Damage> {
    let packet = pick(target, random);
    let mut copy = target.evidence.capture.packets()[packet];
    copy.ts_ns += random.below(50_000) as u64;
    evidence.capture.packets_mut().push(copy);
    recount(evidence, copy.point, 1);
    of_packet("repeat a packet", target, packet, "repeated")
}

fn move_to_another_point(
    target: &Target<'_>,
    evidence: &mut Evidence,
    random: &mut Random,
) -> Option<Damage> {
    let packet = pick(target, random);
    let point = random.below(target.evidence.capture.points.len());
    let record = &mut evidence.capture.packets_mut()[packet];
    let old = std::mem::replace(&mut record.point, point);
    if old == point {
        return None;
    }
    recount(evidence, old, -1);
    recount(evidence, point, 1);
    let to = &target.evidence.capture.points[point].point;
    of_packet("move a packet to another interface", target, packet, &format!("moved to {to}"))
}

fn turn_direction(target: &Target<'_>, evidence: &mut Evidence, random: &mut Random) -> Option<Damage> {
    let packet = pick(target, random);
    let record = &mut evidence.capture.packets_mut()[packet];
    record.direction = match record.direction {
        Direction::In => Direction::Out,
        Direction::Out | Direction::Unknown => Direction::In,
    };
    of_packet("turn a packet's direction", target, packet, "turned round")
}

/// Before its first sighting or behind its last one: it cannot have been there then.
fn move_in_time(target: &Target<'_>, evidence: &mut Evidence, random: &mut Random) -> Option<Damage> {
    let chosen = random.below(target.ends.len());
    let (packet, (is_first, is_last)) = target.ends.iter().nth(chosen)?;
    let packets = target.evidence.capture.packets();
    let early = if *is_first { false } else { *is_last || random.below(2) == 0 };
    let time = if early { packets.first()?.ts_ns - 1 } else { packets.last()?.ts_ns + 1 };
    evidence.capture.packets_mut()[*packet].ts_ns = time;
    let what = if early { "moved before everything" } else { "moved behind everything" };
    of_packet("move a packet in time", target, *packet, what)
}

fn cut_packet(target: &Target<'_>, evidence: &mut Evidence, random: &mut Random) -> Option<Damage> {
    let packet = pick(target, random);
    let bytes = target.evidence.capture.data(packet).to_vec();
    let keep = random.below(bytes.len());
    let (record, original) = (packet, target.evidence.capture.packets()[packet].original_len);
    evidence.capture.replace(record, &bytes[..keep]);
    evidence.capture.packets_mut()[record].original_len = original;
    of_packet("cut a packet", target, packet, &format!("cut to {keep} bytes"))
}

/// Two packets of one point change places.
fn swap_packets(target: &Target<'_>, evidence: &mut Evidence, random: &mut Random) -> Option<Damage> {
    let (a, b) = (pick(target, random), pick(target, random));
    let capture = &target.evidence.capture;
    let (old_a, old_b) = (capture.packets()[a], capture.packets()[b]);
    let differ = capture.data(a) != capture.data(b);
    if !differ || (old_a.point, old_a.direction) == (old_b.point, old_b.direction) {
        return None;
    }
    let (bytes_a, bytes_b) = (capture.data(a).to_vec(), capture.data(b).to_vec());
    evidence.capture.replace(a, &bytes_b);
    evidence.capture.replace(b, &bytes_a);
    // The one that counts decides whether it must be noticed.
    let packet = if matches!(target.roles[a], crate::story::Role::Exchange(..)) { a } else { b };
    of_packet("swap two packets", target, packet, &format!("swapped with {}", place(target, a + b - packet)))
}

/// A frame that nobody of the run sent and that shows somebody of the lab.
fn add_stranger(target: &Target<'_>, evidence: &mut Evidence, random: &mut Random) -> Option<Damage> {
    let plan = &target.evidence.plan;
    let packets = target.evidence.capture.packets();
    let pods: Vec<_> = plan.backends().filter(|(_, pod)| !pod.host_network).collect();
    let point = random.below(target.evidence.capture.points.len());
    let own = target.evidence.capture.points[point].mac?;
    let pod = pods.get(random.below(pods.len()))?.1.address;
    let client = plan.client.address;
    let node = plan.nodes[random.below(plan.nodes.len())].address;
    let exchange = &target.evidence.exchanges[random.below(target.evidence.exchanges.len())];
    let (what, body): (&str, Vec<u8>) = match random.below(8) {
        0 => ("ARP that shows a pod on the segment", arp(own, node, pod)),
        1 => ("a segment from a pod to the client", tcp(pod, 8080, client, 5, 0x10)),
        2 => ("a reset of a pod to the client's socket", tcp(pod, 8080, client, exchange.local.port(), 0x04)),
        3 => (
            "an ICMP error from the frontend",
            icmp(node, client, exchange.local.port(), exchange.remote.port()),
        ),
        4 => ("IP in IP with a pod inside", ipip(node, client, pod)),
        5 => ("an IPv4 option that names a pod", with_option(node, client, pod)),
        6 => ("IPv6 with a mapped pod address", ipv6(pod)),
        _ => ("a datagram from a node to the client", udp(node, 999, client, 999)),
    };
    // ARP on a pod's own link, and a pod's segments there, may be explained.
    let on_segment = target.evidence.capture.points[point].point.kind != labctl_wire::HostKind::Pod;
    if what.starts_with("ARP") && !on_segment {
        return None;
    }
    let mut bytes = own.0.to_vec();
    bytes.extend([2, 9, 9, 9, 9, 9]);
    bytes.extend(body);
    let time = packets[random.below(packets.len())].ts_ns;
    evidence.capture.push(point, time, Direction::In, bytes.len() as u32, &bytes);
    recount(evidence, point, 1);
    let text = format!("{what} at {}", target.evidence.capture.points[point].point);
    Some(Damage { kind: "add a stranger", text, touched: Touched::Rest })
}

fn ipv4(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let header = 20 + options.len();
    let mut bytes = vec![0x40 | (header / 4) as u8, 0];
    bytes.extend(((header + payload.len()) as u16).to_be_bytes());
    bytes.extend([0x12, 0x34, 0, 0, 64, protocol, 0, 0]);
    bytes.extend(src.octets());
    bytes.extend(dst.octets());
    bytes.extend(options);
    bytes.extend(payload);
    let mut frame = vec![0u8; 12];
    frame.extend([8, 0]);
    frame.extend(bytes);
    mend(&mut frame);
    frame.split_off(12)
}

fn tcp(src: Ipv4Addr, from: u16, dst: Ipv4Addr, to: u16, flags: u8) -> Vec<u8> {
    let mut segment = from.to_be_bytes().to_vec();
    segment.extend(to.to_be_bytes());
    segment.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 1, 0, 0, 0, 0, 0]);
    ipv4(src, dst, datapath_types::PROTO_TCP, &[], &segment)
}

fn udp(src: Ipv4Addr, from: u16, dst: Ipv4Addr, to: u16) -> Vec<u8> {
    let mut datagram = from.to_be_bytes().to_vec();
    datagram.extend(to.to_be_bytes());
    datagram.extend([0, 12, 0, 0, 1, 2, 3, 4]);
    ipv4(src, dst, datapath_types::PROTO_UDP, &[], &datagram)
}

fn icmp(frontend: Ipv4Addr, client: Ipv4Addr, from: u16, to: u16) -> Vec<u8> {
    let quoted = udp(client, from, frontend, to);
    let mut message = vec![3, 3, 0, 0, 0, 0, 0, 0];
    message.extend(&quoted[2..]);
    ipv4(frontend, client, datapath_types::PROTO_ICMP, &[], &message)
}

fn ipip(src: Ipv4Addr, dst: Ipv4Addr, inside: Ipv4Addr) -> Vec<u8> {
    ipv4(src, dst, 4, &[], &udp(inside, 8080, dst, 5)[2..])
}

fn with_option(src: Ipv4Addr, dst: Ipv4Addr, named: Ipv4Addr) -> Vec<u8> {
    let mut option = vec![7, 7, 8];
    option.extend(named.octets());
    option.push(0);
    ipv4(src, dst, datapath_types::PROTO_UDP, &option, &[0, 9, 0, 9, 0, 8, 0, 0])
}

fn ipv6(mapped: Ipv4Addr) -> Vec<u8> {
    let mut bytes = vec![0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, 59, 64];
    bytes.extend(mapped.to_ipv6_mapped().octets());
    bytes.extend([0x20; 16]);
    bytes
}

fn arp(sender_mac: Mac, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut bytes = vec![8, 6, 0, 1, 8, 0, 6, 4, 0, 1];
    bytes.extend(sender_mac.0);
    bytes.extend(sender.octets());
    bytes.extend([0; 6]);
    bytes.extend(target.octets());
    bytes
}

/// What a client or a backend said.
fn change_report(target: &Target<'_>, evidence: &mut Evidence, random: &mut Random) -> Option<Damage> {
    let index = random.below(target.evidence.exchanges.len());
    let elsewhere = Ipv4Addr::new(192, 0, 2, 7);
    let exchange = &mut evidence.exchanges[index];
    let id = exchange.id;
    let mut touched = Touched::Rest;
    let told = exchange.served_by.as_mut()?;
    let what = match random.below(12) {
        0 => {
            told.pod.push('x');
            "its pod"
        }
        1 => {
            told.node.push('x');
            "its node"
        }
        2 => {
            told.peer.set_ip(elsewhere);
            "the peer's address"
        }
        3 => {
            told.peer.set_port(told.peer.port() ^ 1);
            "the peer's port"
        }
        4 => {
            told.local.set_ip(elsewhere);
            "its own address"
        }
        5 => {
            told.local.set_port(told.local.port() ^ 1);
            "its own port"
        }
        6 => {
            exchange.served_by = None;
            "everything"
        }
        7 => {
            exchange.local.set_port(exchange.local.port() ^ 0x2000);
            "the client's port"
        }
        8 => {
            exchange.remote.set_port(exchange.remote.port() ^ 1);
            "the frontend's port"
        }
        9 => {
            exchange.remote.set_ip(elsewhere);
            "the frontend's address"
        }
        10 => {
            exchange.timings.total_us = Some(random.next() >> 40);
            touched = Touched::Duration;
            "its duration"
        }
        _ => {
            exchange.id = exchange.id.wrapping_add(1000);
            touched = Touched::Number;
            "its number"
        }
    };
    Some(Damage { kind: "change what was reported", text: format!("request {id}: {what} changed"), touched })
}

fn change_outcome(target: &Target<'_>, evidence: &mut Evidence, random: &mut Random) -> Option<Damage> {
    let index = random.below(target.evidence.exchanges.len());
    let what = match random.below(5) {
        0 => {
            evidence.exchanges[index].outcome = Outcome::TimedOut { waiting_for: "connect".into() };
            "timed out"
        }
        1 => {
            evidence.exchanges[index].outcome = Outcome::Corrupt { detail: "byte 0".into() };
            "corrupt"
        }
        2 => {
            evidence.exchanges[index].outcome = Outcome::Failed { error: "refused".into() };
            "failed"
        }
        3 => {
            evidence.exchanges.remove(index);
            "never reported"
        }
        _ => {
            let refusals = evidence.refusals.len();
            if refusals == 0 {
                return None;
            }
            evidence.refusals[index % refusals].outcome = Outcome::Answered;
            "answered although refused"
        }
    };
    let text = format!("request at {index}: {what}");
    Some(Damage { kind: "change an outcome", text, touched: Touched::Rest })
}

/// A capture dies, ends without its counters, or has seen only some of what passed.
fn spoil_capture(target: &Target<'_>, evidence: &mut Evidence, random: &mut Random) -> Option<Damage> {
    let point = random.below(target.evidence.capture.points.len());
    let name = target.evidence.capture.points[point].point.to_string();
    let what = match random.below(4) {
        0 => {
            without_canaries(evidence, point);
            "saw no canary"
        }
        1 => {
            evidence.capture.packets_mut().retain(|p| p.point != point);
            evidence.capture.points[point].received = Some(0);
            "saw nothing"
        }
        2 => {
            let mut number = 0;
            evidence.capture.packets_mut().retain(|p| {
                number += usize::from(p.point == point);
                p.point != point || !number.is_multiple_of(3)
            });
            let left = evidence.capture.packets().iter().filter(|p| p.point == point).count();
            evidence.capture.points[point].received = Some(left as u64);
            "saw two thirds"
        }
        _ => {
            evidence.capture.points[point].point.host.push('x');
            "was taken elsewhere"
        }
    };
    Some(Damage { kind: "spoil a capture", text: format!("{name} {what}"), touched: Touched::Rest })
}

fn without_canaries(evidence: &mut Evidence, point: usize) {
    evidence.capture.retain(|capture, i| {
        capture.packets()[i].point != point || !canary::is_noise(capture.data(i), &capture.headers(i))
    });
    let left = evidence.capture.packets().iter().filter(|p| p.point == point).count();
    evidence.capture.points[point].received = Some(left as u64);
}

fn spoil_counts(target: &Target<'_>, evidence: &mut Evidence, random: &mut Random) -> Option<Damage> {
    let point = random.below(target.evidence.capture.points.len());
    let info = &mut evidence.capture.points[point];
    let what = match random.below(4) {
        0 => {
            info.dropped = Some(1);
            "lost a packet"
        }
        1 => {
            info.dropped = None;
            "does not say what it lost"
        }
        2 => {
            info.received = None;
            "does not say what it received"
        }
        _ => {
            recount(evidence, point, 1);
            "received one more than there is"
        }
    };
    let name = &target.evidence.capture.points[point].point;
    Some(Damage { kind: "spoil the counts", text: format!("{name} {what}"), touched: Touched::Rest })
}

/// Something happened to a host that was observed.
fn change_host(target: &Target<'_>, evidence: &mut Evidence, random: &mut Random) -> Option<Damage> {
    let point = &target.evidence.capture.points[random.below(target.evidence.capture.points.len())].point;
    let host = evidence.hosts.get_mut(&point.host)?;
    let late = random.below(2) == 1;
    let facts = if late { &mut host.after } else { &mut host.before };
    let interface = facts.interfaces.iter_mut().find(|i| i.name == point.interface)?;
    let stranger = |hook| ProgramFacts { hook, id: u32::MAX, name: "stranger".to_owned() };
    let what = match random.below(6) {
        0 => {
            interface.programs.push(stranger(Hook::Xdp));
            "has an XDP program"
        }
        1 => {
            interface.programs.push(stranger(Hook::Ingress));
            "has a stranger's program"
        }
        2 => {
            interface.mac = Some(Mac([2, 0, 0, 0, 0, 1]));
            "has another Ethernet address"
        }
        3 => {
            interface.up = !interface.up;
            "was down"
        }
        4 => {
            facts.interfaces.retain(|i| i.name != point.interface);
            "was not there"
        }
        _ => {
            evidence.hosts.remove(&point.host);
            "was not observed"
        }
    };
    let when = if late { "after" } else { "before" };
    let text = format!("{point} {what}, {when} the traffic");
    Some(Damage { kind: "change a host", text, touched: Touched::Rest })
}
