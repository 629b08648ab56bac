//! Frames: every field, both readings of the option, every checksum case, cuts and garbage.

mod build;

use build::{ACK, DONT_FRAGMENT, MORE_FRAGMENTS, PSH, Packet, SYN, Sum, socket};
use datapath_types::option::WireOrder;
use labctl_wire::Frame;
use labctl_wire::packet::{Checksum, Network, Transport};

const DSR: [u8; 8] = [0x9a, 8, 0x7d, 0, 172, 18, 0, 3];

fn parse(packet: &Packet) -> Frame {
    let bytes = packet.bytes();
    Frame::parse(&bytes, bytes.len() as u32)
}

fn syn() -> Packet {
    Packet::tcp(socket("172.18.0.1:43210"), socket("172.18.0.3:32000"), SYN, 1000, 0)
}

fn data() -> Packet {
    let packet = Packet::tcp(socket("172.18.0.3:32000"), socket("172.18.0.1:43210"), PSH | ACK, 7, 9);
    packet.with_payload(b"hello")
}

#[test]
fn every_field_of_a_tagged_syn() {
    let frame = parse(&Packet { options: DSR.to_vec(), ttl: 63, id: 0xbeef, ..syn() });
    let ip = frame.ipv4().unwrap();
    assert_eq!((ip.header_len, ip.ttl, ip.id, ip.total_len), (28, 63, 0xbeef, 48));
    assert!(ip.dont_fragment && !ip.is_fragment());
    assert_eq!(ip.checksum, Checksum::Right);
    assert_eq!(ip.options.raw, DSR);
    let dsr = ip.options.dsr.unwrap();
    assert_eq!(dsr.read(WireOrder::Network), socket("172.18.0.3:32000"));
    assert_eq!(dsr.read(WireOrder::Cilium), socket("3.0.18.172:125"));
    let tcp = frame.tcp().unwrap();
    assert!(tcp.flags.is_syn() && !tcp.flags.is_syn_ack());
    assert_eq!((tcp.seq, tcp.ack, tcp.window, tcp.payload_len), (1000, 0, 64_240, 0));
    assert_eq!(tcp.checksum, Checksum::Right, "the option must not move the transport header");
    assert_eq!(frame.sockets(), Some((socket("172.18.0.1:43210"), socket("172.18.0.3:32000"))));
}

#[test]
fn options_are_walked() {
    let with = |options: &[u8]| {
        parse(&Packet { options: options.to_vec(), ..syn() }).ipv4().unwrap().options.clone()
    };
    let behind_nops = with(&[&[1, 1, 1, 1][..], &DSR].concat());
    assert!(behind_nops.dsr.is_some() && !behind_nops.malformed);
    assert_eq!(with(&[&DSR[..], &DSR].concat()).dsr_count, 2);
    assert!(
        with(&[&[0, 0, 0, 0][..], &DSR].concat()).dsr.is_none(),
        "nothing counts behind the end of options"
    );
    assert!(with(&[0x9a, 4, 0, 0]).malformed, "our type with another length");
    assert!(with(&[0x44, 40, 0, 0]).malformed, "an option longer than the header");
    assert!(with(&[0x44, 1, 0, 0]).malformed, "an option shorter than its own head");
    assert!(!with(&[0x94, 4, 0, 0]).malformed, "router alert is somebody else's");
}

#[test]
fn checksums_are_told_apart() {
    let tcp = |sum| parse(&Packet { sum, ..data() }).tcp().unwrap().checksum;
    assert_eq!(tcp(Sum::Right), Checksum::Right);
    assert_eq!(tcp(Sum::Wrong), Checksum::Wrong);
    assert_eq!(tcp(Sum::Partial), Checksum::Partial);
    assert_eq!(tcp(Sum::Zero), Checksum::Wrong, "TCP has no way to leave it out");
    let datagram = Packet::udp(socket("10.0.1.108:8080"), socket("172.18.0.1:5353"), b"odd");
    let udp = |sum| parse(&Packet { sum, ..datagram.clone() }).udp().unwrap().checksum;
    assert_eq!(udp(Sum::Right), Checksum::Right);
    assert_eq!(udp(Sum::Wrong), Checksum::Wrong);
    assert_eq!(udp(Sum::Partial), Checksum::Partial);
    assert_eq!(udp(Sum::Zero), Checksum::Absent);
    let header = parse(&Packet { bad_header_sum: true, ..data() });
    assert_eq!(header.ipv4().unwrap().checksum, Checksum::Wrong);
    assert_eq!(header.tcp().unwrap().checksum, Checksum::Right);
}

#[test]
fn a_cut_packet_keeps_what_it_has() {
    let whole = Packet { sum: Sum::Right, payload: vec![7; 1400], ..data() };
    let cut = |packet: &Packet, len: usize| {
        let bytes = packet.bytes();
        Frame::parse(&bytes[..len], bytes.len() as u32)
    };
    let frame = cut(&whole, 96);
    let tcp = frame.tcp().unwrap();
    assert_eq!((tcp.payload_len, frame.payload()), (1400, 54..96));
    assert_eq!((tcp.checksum, frame.ipv4().unwrap().checksum), (Checksum::Unknown, Checksum::Right));
    let partial = cut(&Packet { sum: Sum::Partial, ..whole.clone() }, 96);
    assert_eq!(partial.tcp().unwrap().checksum, Checksum::Partial, "the pseudo header needs no payload");
    assert_eq!(cut(&whole, 40).ipv4().unwrap().transport, Transport::Cut);
    assert!(matches!(cut(&whole, 20).network, Network::Malformed(_)));
    assert!(matches!(cut(&whole, 3).network, Network::Malformed(_)));
}

#[test]
fn contradictions_are_malformed() {
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = data().bytes();
        change(&mut bytes);
        Frame::parse(&bytes, bytes.len() as u32).network
    };
    assert!(matches!(with(&|b| b[14] = 0x44), Network::Malformed("IHL is below 5")));
    assert!(matches!(with(&|b| b[14] = 0x65), Network::Malformed("IP version is not 4")));
    assert!(matches!(with(&|b| b[16] = 0xff), Network::Malformed("total length is beyond the frame")));
    assert!(matches!(with(&|b| b[16..18].copy_from_slice(&[0, 8])), Network::Malformed(_)));
    assert!(matches!(with(&|b| b[14] = 0x4f), Network::Malformed(_)), "options beyond the packet");
}

#[test]
fn ethernet_padding_is_not_payload() {
    let mut bytes = Packet { payload: Vec::new(), ..data() }.bytes();
    bytes.resize(60, 0xee);
    let frame = Frame::parse(&bytes, 60);
    assert_eq!(frame.tcp().unwrap().payload_len, 0);
    assert_eq!(frame.tcp().unwrap().checksum, Checksum::Right);
}

#[test]
fn vlan_arp_and_the_rest() {
    let frame = parse(&Packet { vlan: Some(0x6007), ..syn() });
    assert_eq!((frame.vlan, frame.header_len), (Some(7), 18));
    assert!(frame.tcp().is_some());
    let mut arp = vec![0xff; 6];
    arp.extend([2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    arp.extend([2, 0, 0, 0, 0, 1, 172, 18, 0, 1, 0, 0, 0, 0, 0, 0, 172, 18, 0, 3]);
    let Network::Arp(found) = Frame::parse(&arp, 42).network else { panic!("not read as ARP") };
    assert_eq!((found.operation, found.sender.octets()[3], found.target.octets()[3]), (1, 1, 3));
    let mut v6 = syn().bytes();
    v6[12..14].copy_from_slice(&[0x86, 0xdd]);
    assert_eq!(Frame::parse(&v6, v6.len() as u32).network, Network::Other(0x86dd));
}

#[test]
fn fragments_have_ports_only_in_the_first() {
    let first = Packet::udp(socket("172.18.0.1:4000"), socket("172.18.0.3:32000"), &[1; 1400]);
    let first = Packet { fragment: MORE_FRAGMENTS, ..first };
    let frame = parse(&first);
    assert!(frame.ipv4().unwrap().more_fragments);
    assert_eq!(frame.udp().unwrap().checksum, Checksum::Unknown);
    let later = Packet { fragment: 176, body: build::Body::Raw(17), ..first };
    let frame = parse(&later);
    assert_eq!(frame.ipv4().unwrap().fragment_offset, 1408);
    assert_eq!(frame.ipv4().unwrap().transport, Transport::LaterFragment);
    assert_eq!(frame.sockets(), None);
}

#[test]
fn icmp_errors_show_what_they_quote() {
    let quoted = Packet { options: DSR.to_vec(), ..data() };
    let error = Packet::icmp([172, 18, 0, 3].into(), [172, 18, 0, 1].into(), 3, 4, 1492, quoted);
    let frame = parse(&error);
    let icmp = frame.icmp().unwrap();
    assert_eq!((icmp.kind, icmp.code, icmp.mtu, icmp.checksum), (3, 4, Some(1492), Checksum::Right));
    let quote = icmp.quote.as_ref().unwrap();
    assert_eq!(quote.sockets(), Some((socket("172.18.0.3:32000"), socket("172.18.0.1:43210"))));
    assert_eq!(quote.tcp_seq, Some(7));
    assert!(quote.ipv4.options.dsr.is_some());
    let bytes = error.bytes();
    let short = Frame::parse(&bytes[..14 + 20 + 8 + 28 + 4], bytes.len() as u32);
    let quote = short.icmp().unwrap().quote.clone().unwrap();
    assert_eq!((quote.ports, quote.tcp_seq), (Some((32_000, 43_210)), None));
}

#[test]
fn offload_packets_beyond_64_kib_fill_their_frame() {
    let mut bytes = Packet { payload: vec![1; 60_000], sum: Sum::Partial, ..data() }.bytes();
    bytes[16..18].copy_from_slice(&[0, 0]);
    let frame = Frame::parse(&bytes[..200], 200_000);
    assert_eq!(frame.tcp().unwrap().payload_len, 200_000 - 54);
}

#[test]
fn cuts_and_garbage_never_panic() {
    let error = Packet::icmp([172, 18, 0, 3].into(), [172, 18, 0, 1].into(), 11, 0, 0, syn());
    let tagged = Packet { options: DSR.to_vec(), vlan: Some(5), ..syn() };
    let datagram = Packet::udp(socket("10.0.1.108:8080"), socket("172.18.0.1:5353"), b"payload");
    let fragment = Packet { fragment: DONT_FRAGMENT | MORE_FRAGMENTS | 3, ..datagram.clone() };
    let frames = [error, tagged, datagram, fragment, data()].map(|p| p.bytes());
    let mut seed = 7u64;
    for round in 0..200_000usize {
        let mut bytes = frames[round % frames.len()].clone();
        for _ in 0..seed % 5 {
            seed = datapath_types::mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15));
            let at = seed as usize % bytes.len();
            bytes[at] = (seed >> 40) as u8;
        }
        seed = datapath_types::mix(seed.wrapping_add(1));
        bytes.truncate(seed as usize % (bytes.len() + 1));
        let frame = Frame::parse(&bytes, (seed >> 33) as u32 % 70_000);
        assert!(frame.payload().end <= bytes.len() || frame.payload().is_empty());
    }
}
