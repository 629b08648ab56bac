//! Packets of one exchange are known again after every rewrite, cut and merge.

use std::collections::BTreeMap;

use labctl_model::Mode;
use labctl_wire::Direction::{self, In, Out};
use labctl_wire::{Exchange, Outcome, ServedBy, Timings};

use super::{Kind, LogicalPacket, Role, Story};
use crate::Evidence;
use crate::lab::build::{self, ACK, MORE_FRAGMENTS, PSH, Packet, RST, SYN, Sum, socket};
use crate::lab::{CLIENT, INGRESS, POD, Paper, plan};
use crate::scene::case::Side;

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
        served_by: Some(ServedBy {
            node: "worker2".into(),
            pod: "web-1".into(),
            peer: socket(local),
            local: socket("10.0.1.108:8080"),
        }),
    }
}

/// Evidence of these packets, one microsecond apart.
fn evidence(mode: Mode, packets: &[(&str, Direction, Packet)], exchanges: &[Exchange]) -> Evidence {
    let mut evidence = Paper::new(plan(mode)).finish(BTreeMap::new());
    evidence.exchanges = exchanges.to_vec();
    for (i, (name, direction, packet)) in packets.iter().enumerate() {
        let point = evidence.capture.points.iter().position(|p| p.point.to_string() == *name).unwrap();
        let bytes = packet.bytes();
        evidence.capture.push(point, 1_000_000 + i as u64 * 1_000, *direction, bytes.len() as u32, &bytes);
    }
    evidence
}

/// Owners of the packets.
fn owners(
    mode: Mode,
    packets: &[(&str, Direction, Packet)],
    exchanges: &[Exchange],
) -> Vec<Option<(usize, Side)>> {
    let evidence = evidence(mode, packets, exchanges);
    let owner = |role: &Role| match *role {
        Role::Exchange(of, side) | Role::Error(of, side) => Some((of, side)),
        _ => None,
    };
    Story::new(&evidence).roles.iter().map(owner).collect()
}

fn followed(packets: &[(&str, Direction, Packet)], exchanges: &[Exchange]) -> Vec<LogicalPacket> {
    let evidence = evidence(Mode::Dsr, packets, exchanges);
    Story::new(&evidence).packets
}

fn tcp(src: &str, dst: &str, flags: u8, seq: u32, ack: u32) -> Packet {
    to_everybody(Packet::tcp(socket(src), socket(dst), flags, seq, ack))
}

/// A frame that nobody overhears.
fn to_everybody(packet: Packet) -> Packet {
    Packet { mac_dst: labctl_wire::packet::Mac([0xff; 6]), ..packet }
}

fn udp(src: &str, dst: &str, id: u16, payload: &str) -> Packet {
    to_everybody(Packet { id, ..Packet::udp(socket(src), socket(dst), payload.as_bytes()) })
}

/// Where replies end.
const AT_CLIENT: usize = 3;
/// Where requests end.
const AT_POD: usize = 5;

#[test]
fn snat_is_seen_through_by_sequence_numbers() {
    let packets = [
        (CLIENT, Out, tcp("172.18.0.1:4000", "172.18.0.3:32000", SYN, 77, 0)),
        (INGRESS, In, tcp("172.18.0.1:4000", "172.18.0.3:32000", SYN, 77, 0)),
        (INGRESS, Out, tcp("172.18.0.3:50001", "10.0.1.108:8080", SYN, 77, 0)),
        (POD, In, tcp("172.18.0.3:50001", "10.0.1.108:8080", SYN, 77, 0)),
        (POD, Out, tcp("10.0.1.108:8080", "172.18.0.3:50001", SYN | ACK, 5, 78)),
        (POD, In, tcp("172.18.0.9:50001", "10.0.1.108:8080", SYN, 78, 0)),
    ];
    let exchanges = [exchange(1, "tcp", "172.18.0.1:4000", 0)];
    let request = Some((0, Side::Request));
    let found = owners(Mode::Snat, &packets, &exchanges);
    assert_eq!(found, [request, request, request, request, Some((0, Side::Reply)), None]);
    let evidence = evidence(Mode::Snat, &packets, &exchanges);
    let packets = Story::new(&evidence).packets;
    let seen: Vec<_> = packets.iter().map(|p| (p.kind, p.sightings.len())).collect();
    assert_eq!(seen, [(Kind::Syn, 4), (Kind::SynAck, 1)]);
}

#[test]
fn snat_of_datagrams_is_seen_through_by_payload() {
    let to_frontend =
        |port, payload: &str| udp(&format!("172.18.0.1:{port}"), "172.18.0.3:32000", 9, payload);
    let packets = [
        (INGRESS, In, to_frontend(4000, "id=1")),
        (INGRESS, In, to_frontend(4001, "id=2")),
        (INGRESS, Out, udp("172.18.0.3:50002", "10.0.1.108:8080", 9, "id=2")),
        (INGRESS, Out, udp("172.18.0.3:50001", "10.0.1.108:8080", 9, "id=1")),
        (POD, Out, udp("10.0.1.108:8080", "172.18.0.3:50002", 1, "answer")),
        (POD, Out, udp("10.0.1.108:8080", "172.18.0.3:50009", 1, "answer")),
    ];
    let exchanges = [exchange(1, "udp", "172.18.0.1:4000", 0), exchange(2, "udp", "172.18.0.1:4001", 0)];
    let found: Vec<_> =
        owners(Mode::Snat, &packets, &exchanges).iter().map(|o| o.map(|(of, _)| of)).collect();
    assert_eq!(found, [Some(0), Some(1), Some(1), Some(0), Some(1), None]);
}

/// A port that stands for one client now stands for another later: each opening packet says whose it is.
#[test]
fn a_translated_socket_belongs_to_the_flow_that_opened_last() {
    let mut packets = Vec::new();
    for (id, port) in [(1, 4000), (2, 4001), (3, 4000)] {
        let (client, payload) = (format!("172.18.0.1:{port}"), format!("id={id}"));
        packets.push((INGRESS, In, udp(&client, "172.18.0.3:32000", id, &payload)));
        packets.push((INGRESS, Out, udp("172.18.0.3:50001", "10.0.1.108:8080", id, &payload)));
        packets.push((POD, Out, udp("10.0.1.108:8080", "172.18.0.3:50001", id, "answer")));
    }
    let exchanges = [
        exchange(1, "udp", "172.18.0.1:4000", 0),
        exchange(2, "udp", "172.18.0.1:4001", 0),
        exchange(3, "udp", "172.18.0.1:4000", 1_005_500),
    ];
    let found: Vec<_> = owners(Mode::Snat, &packets, &exchanges).iter().map(|o| o.unwrap().0).collect();
    assert_eq!(found, [0, 0, 0, 1, 1, 1, 2, 2, 2]);
    let syns = |isn: u32, port: u16| {
        let client = format!("172.18.0.1:{port}");
        [
            (INGRESS, In, tcp(&client, "172.18.0.3:32000", SYN, isn, 0)),
            (INGRESS, Out, tcp("172.18.0.3:50001", "10.0.1.108:8080", SYN, isn, 0)),
            (INGRESS, Out, tcp("172.18.0.3:50001", "10.0.1.108:8080", ACK, isn + 1, 9)),
        ]
    };
    let packets: Vec<_> = syns(70, 4000).into_iter().chain(syns(90, 4001)).collect();
    let exchanges = [exchange(1, "tcp", "172.18.0.1:4000", 0), exchange(2, "tcp", "172.18.0.1:4001", 0)];
    let found: Vec<_> = owners(Mode::Snat, &packets, &exchanges).iter().map(|o| o.unwrap().0).collect();
    assert_eq!(found, [0, 0, 0, 1, 1, 1]);
}

#[test]
fn a_reused_port_belongs_to_the_exchange_of_its_time() {
    let syn = || (CLIENT, Out, tcp("172.18.0.1:4000", "172.18.0.3:32000", SYN, 77, 0));
    let exchanges =
        [exchange(2, "tcp", "172.18.0.1:4000", 1_001_500), exchange(1, "tcp", "172.18.0.1:4000", 1_000_500)];
    let found: Vec<_> =
        owners(Mode::Dsr, &[syn(), syn(), syn()], &exchanges).iter().map(|o| o.unwrap().0).collect();
    assert_eq!(found, [1, 1, 0], "a packet before all exchanges goes to the first");
}

#[test]
fn icmp_errors_and_later_fragments_find_their_exchange() {
    let request = udp("172.18.0.1:4000", "172.18.0.3:32000", 5, "id=1 and more");
    let first = Packet { fragment: MORE_FRAGMENTS, ..request.clone() };
    let later = Packet { fragment: 2, body: build::Body::Raw(17), ..first.clone() };
    let error = Packet::icmp([172, 18, 0, 3].into(), [172, 18, 0, 1].into(), 3, 3, 0, request.clone());
    let packets = [(CLIENT, Out, later), (CLIENT, Out, first), (CLIENT, In, to_everybody(error))];
    let found = owners(Mode::Dsr, &packets, &[exchange(1, "udp", "172.18.0.1:4000", 0)]);
    let sides: Vec<_> = found.iter().map(|o| o.unwrap().1).collect();
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
    let packets = followed(&[whole.clone(), pieces[0].clone(), pieces[1].clone()], &exchanges);
    assert_eq!(packets.len(), 1);
    assert!(
        packets[0].at(AT_CLIENT).is_some() && !packets[0].complete_at(AT_CLIENT),
        "104 bytes are missing"
    );
    let packets = followed(&[whole, pieces[1].clone(), last, pieces[0].clone()], &exchanges);
    assert_eq!(packets.len(), 1);
    assert!(packets[0].complete_at(AT_CLIENT), "pieces out of order are pieces all the same");
}

#[test]
fn segments_merged_on_their_way_have_all_arrived() {
    let exchanges = [exchange(1, "tcp", "172.18.0.1:4000", 0)];
    let packets = followed(
        &[
            (POD, Out, segment(u32::MAX - 500, 1000, 5)),
            (POD, Out, segment(499, 1000, 6)),
            (CLIENT, In, segment(u32::MAX - 500, 2000, 5)),
        ],
        &exchanges,
    );
    assert_eq!(packets.len(), 2, "sequence numbers wrap between the two");
    assert!(packets.iter().all(|p| p.complete_at(AT_CLIENT)));
}

#[test]
fn a_retransmission_is_a_packet_of_its_own() {
    let exchanges = [exchange(1, "tcp", "172.18.0.1:4000", 0)];
    let packets = followed(
        &[
            (POD, Out, segment(100, 1000, 5)),
            (POD, Out, segment(100, 1000, 6)),
            (CLIENT, In, segment(100, 1000, 6)),
        ],
        &exchanges,
    );
    let arrived: Vec<_> = packets.iter().map(|p| p.complete_at(AT_CLIENT)).collect();
    assert_eq!(arrived, [false, true], "the first was lost, the second was not");
    let ack = |to| tcp(REPLY.1, to, ACK, 1, 1100);
    let (front, back) = ("172.18.0.3:32000", REPLY.0);
    let packets =
        followed(&[(CLIENT, Out, ack(front)), (CLIENT, Out, ack(front)), (POD, In, ack(back))], &exchanges);
    let arrived: Vec<_> = packets.iter().map(|p| p.complete_at(AT_POD)).collect();
    assert_eq!(arrived, [true, false], "equal acknowledgements count one by one");
    assert!(packets.iter().all(|p| !p.repeats), "a sender may repeat itself");
}

#[test]
fn a_packet_that_comes_twice_from_nowhere_repeats() {
    let exchanges = [exchange(1, "tcp", "172.18.0.1:4000", 0)];
    let ack = |to| tcp(REPLY.1, to, ACK, 1, 1100);
    let packets = followed(
        &[(CLIENT, Out, ack("172.18.0.3:32000")), (POD, In, ack(REPLY.0)), (POD, In, ack(REPLY.0))],
        &exchanges,
    );
    assert_eq!(packets.iter().map(|p| p.repeats).collect::<Vec<_>>(), [false, true]);
}

#[test]
fn a_retransmission_of_a_segment_that_is_being_cut_keeps_its_own_sighting() {
    let exchanges = [exchange(1, "tcp", "172.18.0.1:4000", 0)];
    let packets = followed(
        &[
            (POD, Out, segment(100, 2000, 5)),
            (POD, Out, segment(100, 1000, 9)),
            (CLIENT, In, segment(100, 1000, 5)),
            (CLIENT, In, segment(1100, 1000, 6)),
            (CLIENT, In, segment(100, 1000, 9)),
        ],
        &exchanges,
    );
    let sightings: Vec<_> = packets.iter().map(|p| p.sightings.len()).collect();
    assert_eq!(sightings, [3, 2], "whole, cut in two; the repetition once at each point");
    assert!(packets.iter().all(|p| p.complete_at(AT_CLIENT)));
}

#[test]
fn a_datagram_fragmented_on_its_way_arrives_when_all_pieces_have() {
    let exchanges = [exchange(1, "udp", "172.18.0.1:4000", 0)];
    let to = |dst: &str| {
        let packet = Packet::udp(socket("172.18.0.1:4000"), socket(dst), &[1; 1472]);
        to_everybody(Packet { fragment: 0, id: 3, ..packet })
    };
    let (whole, cut) = (to("172.18.0.3:32000"), to("10.0.1.108:8080"));
    let first = Packet { fragment: MORE_FRAGMENTS, payload: vec![1; 1464], ..cut.clone() };
    let later = Packet { fragment: 184, body: build::Body::Raw(17), payload: vec![1; 8], ..cut };
    let both = [(CLIENT, Out, whole), (POD, In, first), (POD, In, later)];
    let packets = followed(&both, &exchanges);
    assert_eq!(packets.len(), 1);
    assert!(packets[0].complete_at(AT_POD));
    assert!(!followed(&both[..2], &exchanges)[0].complete_at(AT_POD));
}

#[test]
fn kinds_are_told_apart() {
    let exchanges = [exchange(1, "tcp", "172.18.0.1:4000", 0)];
    let flags = [(SYN, Kind::Syn), (ACK, Kind::Ack), (ACK | RST, Kind::Rst), (ACK | 1, Kind::Fin)];
    for (flags, kind) in flags {
        let packets = [(CLIENT, Out, tcp("172.18.0.1:4000", "172.18.0.3:32000", flags, 1, 1))];
        assert_eq!(followed(&packets, &exchanges)[0].kind, kind);
    }
}
