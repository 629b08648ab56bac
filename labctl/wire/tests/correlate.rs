//! Captures, flows and hops: packets of one exchange are known again after every rewrite.

mod build;

use std::collections::BTreeMap;

use build::{ACK, MORE_FRAGMENTS, PSH, Packet, RST, SYN, Sum, socket};
use datapath_types::option::WireOrder;
use labctl_wire::canary::{self, Canary};
use labctl_wire::hop::{self, Kind};
use labctl_wire::packet::Mac;
use labctl_wire::{
    CaptureFile, CapturePoint, Captured, Direction, Exchange, HostKind, Outcome, PointInfo, Side, Tag,
    Timings, flow, text,
};

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
    };
    hosts.map(info).to_vec()
}

fn exchange(id: u32, protocol: &str, local: &str, started_ns: u64) -> Exchange {
    Exchange {
        id,
        protocol: protocol.into(),
        local: socket(local),
        remote: socket("172.18.0.3:32000"),
        started_ns,
        outcome: Outcome::Answered,
        timings: Timings::default(),
        received: 0,
        served_by: None,
    }
}

/// A capture of these packets, one microsecond apart.
fn capture(packets: &[(usize, Direction, Packet)]) -> CaptureFile {
    let packets = packets.iter().enumerate().map(|(i, (point, direction, packet))| {
        let bytes = packet.bytes();
        Captured::new(*point, 1_000_000 + i as u64 * 1_000, *direction, bytes.len() as u32, bytes)
    });
    CaptureFile { points: points(), packets: packets.collect() }
}

fn traced(file: &CaptureFile, exchanges: &[Exchange]) -> Vec<hop::LogicalPacket> {
    let tags = flow::assign(file, exchanges);
    hop::trace(file, &tags, &vec![false; tags.len()])
}

fn tcp(src: &str, dst: &str, flags: u8, seq: u32, ack: u32) -> Packet {
    Packet::tcp(socket(src), socket(dst), flags, seq, ack)
}

use Direction::{In, Out};

#[test]
fn snat_is_seen_through_by_sequence_numbers() {
    let file = capture(&[
        (CLIENT, Out, tcp("172.18.0.1:4000", "172.18.0.3:32000", SYN, 77, 0)),
        (INGRESS, In, tcp("172.18.0.1:4000", "172.18.0.3:32000", SYN, 77, 0)),
        (INGRESS, Out, tcp("172.18.0.3:50001", "10.0.1.108:8080", SYN, 77, 0)),
        (POD, In, tcp("172.18.0.3:50001", "10.0.1.108:8080", SYN, 77, 0)),
        (POD, Out, tcp("10.0.1.108:8080", "172.18.0.3:50001", SYN | ACK, 5, 78)),
        (POD, In, tcp("172.18.0.9:50001", "10.0.1.108:8080", SYN, 78, 0)),
    ]);
    let tags = flow::assign(&file, &[exchange(1, "tcp", "172.18.0.1:4000", 0)]);
    let tag = |side| Some(Tag { exchange: 0, side });
    let request = tag(Side::Request);
    assert_eq!(tags, [request, request, request, request, tag(Side::Reply), None]);
    let packets = hop::trace(&file, &tags, &[false; 6]);
    assert_eq!(packets.len(), 2);
    assert_eq!((packets[0].kind, packets[0].sightings.len()), (Kind::Syn, 4));
    assert_eq!((packets[1].kind, packets[1].sightings.len()), (Kind::SynAck, 1));
}

#[test]
fn snat_of_datagrams_is_seen_through_by_payload() {
    let udp = |src: &str, dst: &str, id, payload: &str| Packet {
        id,
        ..Packet::udp(socket(src), socket(dst), payload.as_bytes())
    };
    let file = capture(&[
        (CLIENT, Out, udp("172.18.0.1:4000", "172.18.0.3:32000", 9, "id=1")),
        (CLIENT, Out, udp("172.18.0.1:4001", "172.18.0.3:32000", 9, "id=2")),
        (INGRESS, Out, udp("172.18.0.3:50002", "10.0.1.108:8080", 9, "id=2")),
        (INGRESS, Out, udp("172.18.0.3:50001", "10.0.1.108:8080", 9, "id=1")),
        (POD, Out, udp("10.0.1.108:8080", "172.18.0.3:50002", 1, "answer")),
        (POD, Out, udp("10.0.1.108:8080", "172.18.0.3:50009", 1, "answer")),
    ]);
    let exchanges = [exchange(1, "udp", "172.18.0.1:4000", 0), exchange(2, "udp", "172.18.0.1:4001", 0)];
    let found: Vec<_> = flow::assign(&file, &exchanges).iter().map(|t| t.map(|t| t.exchange)).collect();
    assert_eq!(found, [Some(0), Some(1), Some(1), Some(0), Some(1), None]);
}

#[test]
fn a_reused_port_belongs_to_the_exchange_of_its_time() {
    let syn = || tcp("172.18.0.1:4000", "172.18.0.3:32000", SYN, 77, 0);
    let file = capture(&[(CLIENT, Out, syn()), (CLIENT, Out, syn()), (CLIENT, Out, syn())]);
    let exchanges =
        [exchange(2, "tcp", "172.18.0.1:4000", 1_001_500), exchange(1, "tcp", "172.18.0.1:4000", 1_000_500)];
    let found: Vec<_> = flow::assign(&file, &exchanges).iter().map(|t| t.unwrap().exchange).collect();
    assert_eq!(found, [1, 1, 0], "a packet before all exchanges goes to the first");
}

#[test]
fn icmp_errors_and_later_fragments_find_their_exchange() {
    let request = Packet::udp(socket("172.18.0.1:4000"), socket("172.18.0.3:32000"), b"id=1 and more");
    let first = Packet { fragment: MORE_FRAGMENTS, id: 5, ..request.clone() };
    let later = Packet { fragment: 2, body: build::Body::Raw(17), ..first.clone() };
    let error = Packet::icmp([172, 18, 0, 3].into(), [172, 18, 0, 1].into(), 3, 3, 0, request.clone());
    let file = capture(&[(CLIENT, Out, later), (CLIENT, Out, first), (CLIENT, In, error)]);
    let tags = flow::assign(&file, &[exchange(1, "udp", "172.18.0.1:4000", 0)]);
    let sides: Vec<_> = tags.iter().map(|t| t.unwrap().side).collect();
    assert_eq!(sides, [Side::Request, Side::Request, Side::Reply]);
}

const REPLY: (&str, &str) = ("10.0.1.108:8080", "172.18.0.1:4000");

fn segment(seq: u32, len: usize, id: u16) -> Packet {
    Packet { id, sum: Sum::Partial, ..tcp(REPLY.0, REPLY.1, PSH | ACK, seq, 1) }.with_payload(&vec![7; len])
}

#[test]
fn a_segment_cut_on_its_way_arrives_when_all_pieces_have() {
    let exchanges = [exchange(1, "tcp", "172.18.0.1:4000", 0)];
    let whole = (POD, Out, segment(100, 3000, 5));
    let pieces = [(CLIENT, In, segment(100, 1448, 5)), (CLIENT, In, segment(1548, 1448, 6))];
    let last = (CLIENT, In, segment(2996, 104, 7));
    let packets = traced(&capture(&[whole.clone(), pieces[0].clone(), pieces[1].clone()]), &exchanges);
    assert_eq!(packets.len(), 1);
    assert!(
        packets[0].at(CLIENT, In).is_some() && !packets[0].complete_at(CLIENT, In),
        "104 bytes are missing"
    );
    let packets = traced(&capture(&[whole, pieces[1].clone(), last, pieces[0].clone()]), &exchanges);
    assert_eq!((packets.len(), packets[0].bytes.clone()), (1, 0..3000));
    assert!(packets[0].complete_at(CLIENT, In), "pieces out of order are pieces all the same");
}

#[test]
fn segments_merged_on_their_way_have_all_arrived() {
    let exchanges = [exchange(1, "tcp", "172.18.0.1:4000", 0)];
    let file = capture(&[
        (POD, Out, segment(u32::MAX - 500, 1000, 5)),
        (POD, Out, segment(499, 1000, 6)),
        (CLIENT, In, segment(u32::MAX - 500, 2000, 5)),
    ]);
    let packets = traced(&file, &exchanges);
    assert_eq!(packets.len(), 2, "sequence numbers wrap between the two");
    assert!(packets.iter().all(|p| p.complete_at(CLIENT, In)));
}

#[test]
fn a_retransmission_is_a_packet_of_its_own() {
    let exchanges = [exchange(1, "tcp", "172.18.0.1:4000", 0)];
    let file = capture(&[
        (POD, Out, segment(100, 1000, 5)),
        (POD, Out, segment(100, 1000, 6)),
        (CLIENT, In, segment(100, 1000, 6)),
    ]);
    let packets = traced(&file, &exchanges);
    let arrived: Vec<_> = packets.iter().map(|p| p.complete_at(CLIENT, In)).collect();
    assert_eq!(arrived, [false, true], "the first was lost, the second was not");
    let ack = || tcp(REPLY.1, "172.18.0.3:32000", ACK, 1, 1100);
    let packets =
        traced(&capture(&[(CLIENT, Out, ack()), (CLIENT, Out, ack()), (POD, In, ack())]), &exchanges);
    let arrived: Vec<_> = packets.iter().map(|p| p.complete_at(POD, In)).collect();
    assert_eq!(arrived, [true, false], "equal acknowledgements count one by one");
}

#[test]
fn a_retransmission_of_a_segment_that_is_being_cut_keeps_its_own_sighting() {
    let exchanges = [exchange(1, "tcp", "172.18.0.1:4000", 0)];
    let file = capture(&[
        (POD, Out, segment(100, 2000, 5)),
        (POD, Out, segment(100, 1000, 9)),
        (CLIENT, In, segment(100, 1000, 5)),
        (CLIENT, In, segment(1100, 1000, 6)),
        (CLIENT, In, segment(100, 1000, 9)),
    ]);
    let packets = traced(&file, &exchanges);
    let sightings: Vec<_> = packets.iter().map(|p| p.sightings.len()).collect();
    assert_eq!(sightings, [3, 2], "whole, cut in two; the repetition once at each point");
    assert!(packets.iter().all(|p| p.complete_at(CLIENT, In)));
}

#[test]
fn a_datagram_fragmented_on_its_way_arrives_when_all_pieces_have() {
    let exchanges = [exchange(1, "udp", "172.18.0.1:4000", 0)];
    let whole = Packet::udp(socket("172.18.0.1:4000"), socket("172.18.0.3:32000"), &[1; 1472]);
    let whole = Packet { fragment: 0, id: 3, ..whole };
    let first = Packet { fragment: MORE_FRAGMENTS, payload: vec![1; 1464], ..whole.clone() };
    let later = Packet { fragment: 184, body: build::Body::Raw(17), payload: vec![1; 8], ..whole.clone() };
    let both = [(CLIENT, Out, whole), (POD, In, first), (POD, In, later)];
    let packets = traced(&capture(&both), &exchanges);
    assert_eq!(packets.len(), 1);
    assert!(packets[0].complete_at(POD, In));
    assert!(!traced(&capture(&both[..2]), &exchanges)[0].complete_at(POD, In));
}

#[test]
fn kinds_are_told_apart() {
    let exchanges = [exchange(1, "tcp", "172.18.0.1:4000", 0)];
    let flags = [(SYN, Kind::Syn), (ACK, Kind::Ack), (ACK | RST, Kind::Rst), (ACK | 1, Kind::Fin)];
    for (flags, kind) in flags {
        let file = capture(&[(CLIENT, Out, tcp("172.18.0.1:4000", "172.18.0.3:32000", flags, 1, 1))]);
        assert_eq!(traced(&file, &exchanges)[0].kind, kind);
    }
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
    let noise = file.packets.iter().all(|p| canary::is_noise(&p.data, &p.frame));
    assert!(noise, "canaries and what they provoke belong to no exchange");
    assert_eq!(Canary::parse(b"labctl-canary run-0001 1"), None, "a cut payload may have been round 12");
}

#[test]
fn files_merge_by_time_and_survive_writing() {
    let syn = tcp("172.18.0.1:4000", "172.18.0.3:32000", SYN, 77, 0);
    let mut one = capture(&[(CLIENT, Out, syn.clone()), (INGRESS, In, syn.clone())]);
    one.points[CLIENT].mac = Some(Mac([2, 0, 0, 0, 0, 1]));
    let mut two = capture(&[(POD, In, syn)]);
    two.packets[0].ts_ns = 1_000_500;
    let merged = CaptureFile::merge([one, two]);
    assert_eq!(merged.packets.iter().map(|p| p.point).collect::<Vec<_>>(), [0, 5, 1]);
    let mut bytes = Vec::new();
    merged.write(&mut bytes, &BTreeMap::from([(1, "seen".to_owned())])).unwrap();
    assert_eq!(CaptureFile::read(&bytes[..]).unwrap(), merged);
}

#[test]
fn flooded_frames_are_overheard() {
    let to = |mac: u8| Packet {
        mac_dst: Mac([2, 0, 0, 0, 0, mac]),
        ..tcp("172.18.0.1:4000", "172.18.0.3:32000", SYN, 77, 0)
    };
    let broadcast = Packet { mac_dst: Mac([0xff; 6]), ..to(3) };
    let mut file = capture(&[
        (INGRESS, In, to(3)),
        (INGRESS, In, to(2)),
        (INGRESS, In, to(3)),
        (INGRESS, In, broadcast),
    ]);
    assert_eq!(file.overheard(), [false, true, false, false], "by majority");
    file.points[INGRESS].mac = Some(Mac([2, 0, 0, 0, 0, 2]));
    assert_eq!(file.overheard(), [true, false, true, false], "by the capture's own word");
}

#[test]
fn lines_read_like_tcpdump() {
    let tagged = Packet {
        options: vec![0x9a, 8, 0x7d, 0, 172, 18, 0, 3],
        ttl: 63,
        ..tcp("172.18.0.1:4000", "10.0.1.108:8080", SYN, 77, 0)
    };
    let error = Packet::icmp([172, 18, 0, 3].into(), [172, 18, 0, 1].into(), 3, 4, 1492, tagged.clone());
    let bad = Packet { sum: Sum::Wrong, ..tcp(REPLY.0, REPLY.1, PSH | ACK, 5, 6) }.with_payload(b"x");
    let datagram = Packet::udp(socket("172.18.0.1:4000"), socket("172.18.0.3:32000"), b"four");
    let mut file =
        capture(&[(INGRESS, Out, tagged), (CLIENT, In, error), (POD, Out, bad), (CLIENT, Out, datagram)]);
    file.packets[0].ts_ns = 1_795_341_600_123_456_789;
    let line =
        |i: usize, order| text::line(&file.packets[i], &file.points[file.packets[i].point].point, order);
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
    let exchanges = [exchange(1, "tcp", "172.18.0.1:4000", 0), exchange(2, "udp", "172.18.0.1:4000", 0)];
    let udp = Packet::udp(socket("172.18.0.1:4000"), socket("172.18.0.3:32000"), b"id=1");
    let frames =
        [segment(100, 60, 5), tcp("172.18.0.1:4000", "172.18.0.3:32000", SYN, 77, 0), udp].map(|p| p.bytes());
    let mut seed = 3u64;
    for _ in 0..300 {
        let mut file = capture(&[]);
        for i in 0..60 {
            let mut bytes = frames[i % 3].clone();
            for _ in 0..2 {
                seed = datapath_types::mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15));
                let at = 14 + seed as usize % (bytes.len() - 14);
                bytes[at] = (seed >> 40) as u8;
            }
            let direction = if seed & 1 == 0 { In } else { Out };
            let len = (seed >> 20) as u32 % 70_000;
            file.packets.push(Captured::new(i % 3, i as u64, direction, len, bytes));
        }
        let packets = traced(&file, &exchanges);
        assert!(packets.iter().all(|p| !p.sightings.is_empty()));
        for packet in &file.packets {
            text::line(packet, &file.points[packet.point].point, None);
        }
    }
}
