//! Captures: merged by time, proven live by canaries, written as lines.

mod build;

use std::collections::BTreeMap;

use build::{ACK, PSH, Packet, SYN, Sum, socket};
use datapath_types::option::WireOrder;
use labctl_wire::canary::{self, Canary};
use labctl_wire::packet::Mac;
use labctl_wire::{CaptureFile, CapturePoint, Direction, HostKind, PointInfo, text};

use Direction::{In, Out};

const CLIENT: usize = 0;
const INGRESS: usize = 1;
const POD: usize = 2;

fn points() -> Vec<PointInfo> {
    let hosts = [("client", HostKind::Client), ("worker", HostKind::Node), ("web-1", HostKind::Pod)];
    let info = |(host, kind): (&str, HostKind)| PointInfo {
        point: CapturePoint { host: host.into(), kind, interface: "eth0".into() },
        live: false,
        received: Some(9),
        dropped: Some(0),
        mac: None,
        addresses: labctl_wire::link::Addresses::Both,
    };
    hosts.map(info).to_vec()
}

/// A capture of these packets, one microsecond apart.
fn capture(packets: &[(usize, Direction, Packet)]) -> CaptureFile {
    let mut file = CaptureFile::default();
    file.points = points();
    for (i, (point, direction, packet)) in packets.iter().enumerate() {
        let bytes = packet.bytes();
        file.push(*point, 1_000_000 + i as u64 * 1_000, *direction, bytes.len() as u32, &bytes);
    }
    file
}

fn tcp(src: &str, dst: &str, flags: u8, seq: u32, ack: u32) -> Packet {
    Packet::tcp(socket(src), socket(dst), flags, seq, ack)
}

#[test]
fn only_points_that_saw_every_round_are_live() {
    let canary = |round| {
        let payload = Canary::payload("run-0001", round);
        Packet::udp(socket("172.18.0.1:999"), socket("172.18.0.3:9"), &payload)
    };
    let foreign = Packet::udp(socket("172.18.0.1:999"), socket("172.18.0.3:9"), &Canary::payload("run-2", 2));
    let refused = Packet::icmp([172, 18, 0, 3].into(), [172, 18, 0, 1].into(), 3, 3, 0, canary(1));
    let mut file = capture(&[
        (CLIENT, Out, canary(1)),
        (INGRESS, In, canary(1)),
        (CLIENT, In, refused),
        (CLIENT, Out, canary(2)),
        (INGRESS, In, foreign),
    ]);
    let live = |file: &mut CaptureFile, rounds| {
        canary::prove_live(file, "run-0001", rounds);
        file.points.iter().map(|p| p.live).collect::<Vec<_>>()
    };
    assert_eq!(live(&mut file, 2), [true, false, false]);
    assert_eq!(live(&mut file, 1), [true, true, false]);
    assert_eq!(live(&mut file, 0), [false; 3], "no canary proves nothing");
    let noise = (0..file.packets().len()).all(|i| canary::is_noise(file.data(i), &file.headers(i)));
    assert!(noise, "canaries and what they provoke belong to no exchange");
    assert_eq!(Canary::parse(b"labctl-canary run-0001 1"), None, "a cut payload may have been round 12");
}

/// Points, times, directions, lengths and bytes.
fn contents(file: &CaptureFile) -> Vec<(usize, u64, Direction, u32, Vec<u8>)> {
    let packets = file.packets().iter().enumerate();
    packets.map(|(i, p)| (p.point, p.ts_ns, p.direction, p.original_len, file.data(i).to_vec())).collect()
}

#[test]
fn files_merge_by_time_and_survive_writing() {
    let syn = tcp("172.18.0.1:4000", "172.18.0.3:32000", SYN, 77, 0);
    let mut one = capture(&[(CLIENT, Out, syn.clone()), (INGRESS, In, syn.clone())]);
    one.points[CLIENT].mac = Some(Mac([2, 0, 0, 0, 0, 1]));
    let mut two = capture(&[(POD, In, syn)]);
    two.packets_mut()[0].ts_ns = 1_000_500;
    let merged = CaptureFile::merge([one, two]);
    assert_eq!(merged.packets().iter().map(|p| p.point).collect::<Vec<_>>(), [0, 5, 1]);
    let mut bytes = Vec::new();
    merged.write(&mut bytes, &["about it".to_owned()], &BTreeMap::from([(1, "seen".to_owned())])).unwrap();
    let read = CaptureFile::read(&bytes[..]).unwrap();
    assert_eq!((&read.points, contents(&read)), (&merged.points, contents(&merged)));
}

#[test]
fn a_points_address_is_what_it_receives_at_most_or_what_the_capture_says() {
    let to = |mac: u8| Packet {
        mac_dst: Mac([2, 0, 0, 0, 0, mac]),
        ..tcp("172.18.0.1:4000", "172.18.0.3:32000", SYN, 77, 0)
    };
    let broadcast = Packet { mac_dst: Mac([0xff; 6]), ..to(3) };
    let mut file = capture(&[
        (INGRESS, In, to(3)),
        (INGRESS, In, to(2)),
        (INGRESS, In, to(3)),
        (INGRESS, In, broadcast.clone()),
        (INGRESS, In, broadcast),
    ]);
    assert_eq!(file.link_addresses()[INGRESS], Some(Mac([2, 0, 0, 0, 0, 3])), "by majority");
    file.points[INGRESS].mac = Some(Mac([2, 0, 0, 0, 0, 2]));
    assert_eq!(file.link_addresses()[INGRESS], Some(Mac([2, 0, 0, 0, 0, 2])), "by the capture's own word");
}

#[test]
fn a_packet_that_is_replaced_keeps_what_was_cut_off() {
    let mut file = capture(&[(CLIENT, Out, tcp("172.18.0.1:4000", "172.18.0.3:32000", SYN, 77, 0))]);
    let whole = file.packets()[0].original_len;
    let bytes = file.data(0)[..40].to_vec();
    file.replace(0, &bytes);
    assert_eq!((file.data(0), file.packets()[0].original_len), (&bytes[..], 40));
    file.push(POD, 5, In, whole, &bytes);
    file.replace(1, &bytes[..30]);
    assert_eq!(file.packets()[1].original_len, whole - 10);
}

#[test]
fn lines_read_like_tcpdump() {
    let tagged = Packet {
        options: vec![0x9a, 8, 0x7d, 0, 172, 18, 0, 3],
        ttl: 63,
        ..tcp("172.18.0.1:4000", "10.0.1.108:8080", SYN, 77, 0)
    };
    let error = Packet::icmp([172, 18, 0, 3].into(), [172, 18, 0, 1].into(), 3, 4, 1492, tagged.clone());
    let bad = Packet { sum: Sum::Wrong, ..tcp("10.0.1.108:8080", "172.18.0.1:4000", PSH | ACK, 5, 6) }
        .with_payload(b"x");
    let datagram = Packet::udp(socket("172.18.0.1:4000"), socket("172.18.0.3:32000"), b"four");
    let mut file =
        capture(&[(INGRESS, Out, tagged), (CLIENT, In, error), (POD, Out, bad), (CLIENT, Out, datagram)]);
    file.packets_mut()[0].ts_ns = 1_795_341_600_123_456_789;
    let line = |i: usize, order| {
        let packet = &file.packets()[i];
        let point = &file.points[packet.point].point;
        text::line(packet.ts_ns, packet.direction, &file.frame(i), point, order)
    };
    assert_eq!(
        line(0, Some(WireOrder::Network)),
        "10:00:00.123456 worker:eth0 out 172.18.0.1.4000 > 10.0.1.108.8080: tcp [S] seq 77 win 64240 len 0 \
         ttl 63 dsr 172.18.0.3:32000"
    );
    assert!(line(0, None).ends_with("dsr 172.18.0.3:32000|3.0.18.172:125"));
    assert!(line(1, None).ends_with(
        "172.18.0.3 > 172.18.0.1: icmp fragmentation needed mtu 1492 about 172.18.0.1.4000 > 10.0.1.108.8080 ttl 64"
    ));
    assert!(line(2, None).ends_with("tcp [P.] seq 5 ack 6 win 64240 len 1 bad-cksum ttl 64"));
    assert!(line(3, None).ends_with("172.18.0.1.4000 > 172.18.0.3.32000: udp len 4 ttl 64"));
}

#[test]
fn garbage_never_panics() {
    let udp = Packet::udp(socket("172.18.0.1:4000"), socket("172.18.0.3:32000"), b"id=1");
    let frames = [tcp("172.18.0.1:4000", "172.18.0.3:32000", SYN, 77, 0), udp].map(|p| p.bytes());
    let mut seed = 3u64;
    for _ in 0..300 {
        let mut file = capture(&[]);
        for i in 0..60 {
            let mut bytes = frames[i % 2].clone();
            for _ in 0..2 {
                seed = datapath_types::mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15));
                let at = 14 + seed as usize % (bytes.len() - 14);
                bytes[at] = (seed >> 40) as u8;
            }
            let direction = if seed & 1 == 0 { In } else { Out };
            file.push(i % 3, i as u64, direction, (seed >> 20) as u32 % 70_000, &bytes);
        }
        file.link_addresses();
        for (i, packet) in file.packets().iter().enumerate() {
            let (whole, headers) = (file.frame(i), file.headers(i));
            assert_eq!(whole.sockets(), headers.sockets(), "a packet is the same without its checksums");
            text::line(packet.ts_ns, packet.direction, &whole, &file.points[packet.point].point, None);
        }
    }
}
