//! Capture files of every kind that people have: made here byte by byte, and read by tcpdump's own programs as a second
//! witness.

#![expect(clippy::print_stdout, reason = "a skipped test says what it lacks")]

use std::io::Write;
use std::net::Ipv4Addr;
use std::process::Command;

use labctl_wire::file::{self, FileError};
use labctl_wire::packet::Mac;
use labctl_wire::{CaptureFile, Direction};

const LIMIT: u64 = 1 << 20;
/// 2026-11-22 10:00:00.123456789 UTC.
const SECONDS: u32 = 1_795_341_600;
const NANOS: u32 = 123_456_789;
const SENDER: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// A UDP datagram of 172.18.0.1:40000 -> 172.18.0.3:32000 with payload "hi", without a link header.
fn packet() -> Vec<u8> {
    let mut p = vec![0x45, 0, 0, 30, 0, 7, 0x40, 0, 64, 17, 0xe2, 0xa2, 172, 18, 0, 1, 172, 18, 0, 3];
    p.extend([0x9c, 0x40, 0x7d, 0, 0, 10, 0, 0, b'h', b'i']);
    p
}

fn ethernet() -> Vec<u8> {
    [&[2, 0, 0, 0, 0, 3][..], &SENDER, &[8, 0], &packet()].concat()
}

#[derive(Clone, Copy, PartialEq)]
enum Order {
    Little,
    Big,
}

impl Order {
    fn word(self, value: u32) -> [u8; 4] {
        if self == Self::Little { value.to_le_bytes() } else { value.to_be_bytes() }
    }

    fn half(self, value: u16) -> [u8; 2] {
        if self == Self::Little { value.to_le_bytes() } else { value.to_be_bytes() }
    }
}

fn pcap(order: Order, nanos: bool, link: u32, packets: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::new();
    let magic = if nanos { 0xa1b2_3c4d } else { 0xa1b2_c3d4 };
    out.extend(order.word(magic));
    out.extend([order.half(2), order.half(4)].concat());
    for word in [0, 0, 65_535, link] {
        out.extend(order.word(word));
    }
    for (i, packet) in packets.iter().enumerate() {
        let fraction = if nanos { NANOS } else { NANOS / 1_000 };
        let len = packet.len() as u32;
        for word in [SECONDS + i as u32, fraction, len, len] {
            out.extend(order.word(word));
        }
        out.extend(packet);
    }
    out
}

fn block(order: Order, kind: u32, body: &[u8]) -> Vec<u8> {
    let padded = body.len().next_multiple_of(4);
    let total = order.word(padded as u32 + 12);
    let mut out = [order.word(kind), total].concat();
    out.extend(body);
    out.resize(8 + padded, 0);
    out.extend(total);
    out
}

fn section(order: Order) -> Vec<u8> {
    let body = [&order.word(0x1a2b_3c4d)[..], &order.half(1), &order.half(0), &[0xff; 8]].concat();
    block(order, 0x0a0d_0d0a, &body)
}

fn interface(order: Order, link: u16, snaplen: u32, options: &[u8]) -> Vec<u8> {
    let body = [&order.half(link)[..], &[0; 2], &order.word(snaplen), options].concat();
    block(order, 1, &body)
}

fn option(order: Order, code: u16, value: &[u8]) -> Vec<u8> {
    let mut out = [order.half(code), order.half(value.len() as u16)].concat();
    out.extend(value);
    out.resize(4 + value.len().next_multiple_of(4), 0);
    out
}

fn simple(order: Order, original: u32, data: &[u8]) -> Vec<u8> {
    block(order, 3, &[&order.word(original)[..], data].concat())
}

fn timed(order: Order, kind: u32, first: [u8; 4], units: u64, data: &[u8]) -> Vec<u8> {
    let mut body = first.to_vec();
    for word in [(units >> 32) as u32, units as u32, data.len() as u32, data.len() as u32] {
        body.extend(order.word(word));
    }
    body.extend(data);
    block(order, kind, &body)
}

fn read(bytes: &[u8]) -> CaptureFile {
    let opened = file::read(bytes, LIMIT).unwrap();
    assert_eq!(opened.shortfalls, Vec::<String>::new());
    opened.capture
}

fn is_the_datagram(capture: &CaptureFile, index: usize) {
    let frame = capture.frame(index);
    let (src, dst) = frame.sockets().unwrap();
    assert_eq!(
        (src.to_string().as_str(), dst.to_string().as_str()),
        ("172.18.0.1:40000", "172.18.0.3:32000")
    );
    assert_eq!(&capture.data(index)[frame.payload()], b"hi");
    assert_eq!(frame.original_len, 44);
}

#[test]
fn classic_files_of_both_orders_and_both_units_are_read() {
    for order in [Order::Little, Order::Big] {
        for (nanos, expected) in [(false, NANOS / 1_000 * 1_000), (true, NANOS)] {
            let capture = read(&pcap(order, nanos, 1, &[ethernet(), ethernet()]));
            assert_eq!(capture.packets().len(), 2);
            is_the_datagram(&capture, 0);
            let expected = u64::from(SECONDS) * 1_000_000_000 + u64::from(expected);
            assert_eq!(capture.packets()[0].ts_ns, expected);
            assert_eq!(capture.packets()[1].ts_ns, expected + 1_000_000_000);
            assert_eq!(capture.packets()[0].direction, Direction::Unknown);
        }
    }
    // A frame check sequence of four bytes, as the upper bits of the link type say.
    is_the_datagram(&read(&pcap(Order::Little, false, 0x5400_0001, &[ethernet()])), 0);
}

#[test]
fn every_link_type_becomes_a_frame() {
    let ip = packet();
    let loopback = |word: [u8; 4]| [&word[..], &ip].concat();
    let sll = |kind: u16| {
        let mut head = kind.to_be_bytes().to_vec();
        head.extend([0, 1, 0, 6]);
        head.extend(SENDER);
        head.extend([0, 0, 8, 0]);
        [head, ip.clone()].concat()
    };
    for (link, bytes) in [
        (101, ip.clone()),
        (12, ip.clone()),
        (14, ip.clone()),
        (228, ip.clone()),
        (0, loopback(2u32.to_le_bytes())),
        (0, loopback(2u32.to_be_bytes())),
        (108, loopback(2u32.to_be_bytes())),
        (113, sll(0)),
    ] {
        is_the_datagram(&read(&pcap(Order::Little, true, link, &[bytes])), 0);
    }
    for (kind, direction) in [(0, Direction::In), (1, Direction::In), (3, Direction::In), (4, Direction::Out)]
    {
        let capture = read(&pcap(Order::Big, false, 113, &[sll(kind)]));
        assert_eq!(capture.packets()[0].direction, direction);
        assert_eq!((capture.headers(0).src, capture.headers(0).dst), (Mac(SENDER), Mac::default()));
    }
    let six = [&[0x60u8][..], &[0; 39]].concat();
    for link in [229, 101] {
        let capture = read(&pcap(Order::Little, false, link, std::slice::from_ref(&six)));
        assert_eq!(capture.headers(0).network, labctl_wire::packet::Network::Other(0x86dd));
    }
}

#[test]
fn packets_of_any_are_told_apart_by_interface() {
    let cooked = |index: u32, kind: u8| {
        let mut head = vec![8, 0, 0, 0];
        head.extend(index.to_be_bytes());
        head.extend([0, 1, kind, 6]);
        head.extend(SENDER);
        head.extend([0, 0]);
        [head, packet()].concat()
    };
    let capture = read(&pcap(Order::Little, false, 276, &[cooked(2, 0), cooked(7, 4), cooked(2, 4)]));
    let names: Vec<_> = capture.points.iter().map(|info| info.point.interface.as_str()).collect();
    assert_eq!(names, ["if2", "if7"]);
    let seen: Vec<_> = capture.packets().iter().map(|p| (p.point, p.direction)).collect();
    assert_eq!(seen, [(0, Direction::In), (1, Direction::Out), (0, Direction::Out)]);
    (0..3).for_each(|index| is_the_datagram(&capture, index));
}

#[test]
fn simple_and_obsolete_packet_blocks_are_packets() {
    for order in [Order::Little, Order::Big] {
        let nanos = option(order, 9, &[9]);
        let units = u64::from(SECONDS) * 1_000_000_000 + u64::from(NANOS);
        let file = [
            section(order),
            interface(order, 1, 0, &nanos),
            simple(order, 44, &ethernet()),
            timed(order, 2, [order.half(0), order.half(9)].concat().try_into().unwrap(), units, &ethernet()),
            timed(order, 6, order.word(0), units + 1, &ethernet()),
        ]
        .concat();
        let capture = read(&file);
        assert_eq!(capture.packets().iter().map(|p| p.ts_ns).collect::<Vec<_>>(), [0, units, units + 1]);
        (0..3).for_each(|index| is_the_datagram(&capture, index));
    }
}

#[test]
fn a_simple_packet_is_as_long_as_the_snap_length_lets_it_be() {
    let order = Order::Little;
    let file = [section(order), interface(order, 1, 42, &[]), simple(order, 44, &ethernet()[..42])].concat();
    let capture = read(&file);
    assert_eq!((capture.data(0).len(), capture.packets()[0].original_len), (42, 44));
    let early = [section(order), simple(order, 44, &ethernet())].concat();
    let error = file::read(&early[..], LIMIT).unwrap_err().to_string();
    assert!(error.ends_with("it comes before any interface was described"), "{error}");
}

#[test]
fn each_section_has_its_own_order_interfaces_and_clocks() {
    let mut file = Vec::new();
    // Units of 2^-10 s with an offset; units of 10^-3 s.
    for (order, resolution, offset, units) in
        [(Order::Little, 0x8a, 10u64, 2_048u64), (Order::Big, 3, 0, 7_500)]
    {
        let offset = if order == Order::Little { offset.to_le_bytes() } else { offset.to_be_bytes() };
        let options = [option(order, 9, &[resolution]), option(order, 14, &offset)].concat();
        file.extend([section(order), interface(order, 1, 0, &options)].concat());
        file.extend(timed(order, 6, order.word(0), units, &ethernet()));
    }
    let capture = read(&file);
    assert_eq!(capture.points.len(), 2);
    let seen: Vec<_> = capture.packets().iter().map(|p| (p.point, p.ts_ns)).collect();
    assert_eq!(seen, [(1, 7_500_000_000), (0, 12_000_000_000)]);
}

#[test]
fn compressed_files_are_read_and_bombs_are_not() {
    let plain = pcap(Order::Little, false, 1, &[ethernet(), ethernet()]);
    let gzip = |bytes: &[u8]| {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    };
    assert_eq!(read(&gzip(&plain)).packets().len(), 2);
    // Two members one behind the other, as logs are joined.
    let (head, tail) = plain.split_at(40);
    assert_eq!(read(&[gzip(head), gzip(tail)].concat()).packets().len(), 2);
    let zstd = ruzstd::encoding::compress_to_vec(&plain[..], ruzstd::encoding::CompressionLevel::Fastest);
    assert_eq!(read(&zstd).packets().len(), 2);
    let bomb = gzip(&pcap(Order::Little, false, 1, &vec![vec![0; 60_000]; 40]));
    assert!(bomb.len() < 20_000);
    assert!(matches!(file::read(&bomb[..], LIMIT), Err(FileError::TooLarge { limit: LIMIT })));
    let twice = gzip(&gzip(&plain));
    assert!(matches!(file::read(&twice[..], LIMIT), Err(FileError::Unknown { .. })));
}

#[test]
fn what_is_whole_of_a_file_cut_short_is_read_and_the_rest_is_told() {
    let whole = pcap(Order::Little, false, 1, &[ethernet(), ethernet()]);
    let opened = file::read(&whole[..whole.len() - 1], LIMIT).unwrap();
    assert_eq!(opened.capture.packets().len(), 1);
    assert_eq!(
        opened.shortfalls,
        ["read pcap: the file ends inside the record at offset 84; what precedes it is whole"]
    );
    for (bytes, expected) in [
        (&b""[..], "read capture: the file is empty"),
        (&whole[..20], "read pcap: the file ends inside the record at offset 0; what precedes it is whole"),
        (
            b"PK",
            "read capture: neither pcap nor pcapng, plain or compressed by gzip or zstd (it begins with 504b); convert it with `editcap -F pcapng`",
        ),
    ] {
        assert_eq!(file::read(bytes, LIMIT).unwrap_err().to_string(), expected);
    }
}

#[test]
fn an_interface_of_an_unknown_link_type_is_told_and_the_others_are_read() {
    let order = Order::Little;
    let head = [section(order), interface(order, 105, 0, &[]), timed(order, 6, order.word(0), 5, &[1, 2, 3])];
    let alone = head.concat();
    let error = file::read(&alone[..], LIMIT).unwrap_err().to_string();
    assert!(error.contains("link type 105, which is not understood"), "{error}");
    let rest = [interface(order, 1, 0, &[]), timed(order, 6, order.word(1), 5, &ethernet())].concat();
    let opened = file::read(&[alone, rest].concat()[..], LIMIT).unwrap();
    assert_eq!((opened.capture.packets().len(), opened.shortfalls.len()), (1, 1));
    is_the_datagram(&opened.capture, 0);
}

/// Every kind of file that the tests above make.
fn corpus() -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for order in [Order::Little, Order::Big] {
        let name = if order == Order::Little { "little" } else { "big" };
        for link in [1u32, 0, 12, 101, 108, 113, 228, 229, 276] {
            let packets =
                [ethernet(), packet(), [&[8, 0, 0, 0, 0, 0, 0, 2, 0, 1, 0, 6][..], &packet()].concat()];
            files.push((format!("{name}-{link}.pcap"), pcap(order, link % 2 == 0, link, &packets)));
        }
        let first = [order.half(0), order.half(0)].concat().try_into().unwrap();
        let blocks = [
            section(order),
            interface(order, 1, 0, &option(order, 9, &[9])),
            simple(order, 44, &ethernet()),
            timed(order, 2, first, 5, &ethernet()),
            timed(order, 6, order.word(0), 6, &ethernet()),
            section(order),
            interface(order, 113, 0, &[]),
            timed(order, 6, order.word(0), 6, &ethernet()),
        ];
        files.push((format!("{name}.pcapng"), blocks.concat()));
    }
    files
}

#[test]
fn capinfos_counts_as_many_packets() {
    if Command::new("capinfos").arg("--version").output().is_err() {
        let required = std::env::var_os("LABCTL_REQUIRE_WITNESS").is_some_and(|v| v == "1");
        assert!(!required, "capinfos is not installed");
        println!("skipped: capinfos is not installed");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in corpus() {
        let path = folder.path().join(&name);
        std::fs::write(&path, &bytes).unwrap();
        let told = Command::new("capinfos").args(["-TrcK"]).arg(&path).output().unwrap();
        let told = String::from_utf8_lossy(&told.stdout).into_owned();
        let count = told.trim().rsplit('\t').next().and_then(|count| count.parse::<usize>().ok());
        assert_eq!(count, Some(read(&bytes).packets().len()), "{name}: {told}");
    }
}

/// A generator whose numbers look random and are the same each time (xorshift64*).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit.max(1)
    }
}

#[test]
fn damaged_files_are_errors_and_never_more_than_they_are() {
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let files = corpus();
    for round in 0..40_000 {
        let (name, whole) = &files[round % files.len()];
        let mut bytes = whole.clone();
        for _ in 0..=numbers.below(4) {
            let at = numbers.below(bytes.len());
            match numbers.below(4) {
                0 => bytes[at] = numbers.below(256) as u8,
                1 => bytes[at] = [0, 0xff, 0x7f, 0x80][numbers.below(4)],
                2 => bytes.truncate(at.max(1)),
                _ => {
                    let part = bytes[at..].to_vec();
                    let to = numbers.below(bytes.len());
                    bytes.splice(to..to, part);
                }
            }
        }
        let Ok(opened) = file::read(&bytes[..], LIMIT) else { continue };
        let held: usize = (0..opened.capture.packets().len()).map(|i| opened.capture.data(i).len()).sum();
        // An Ethernet header more for each packet, and never what a length field merely claims.
        assert!(held <= bytes.len() + 14 * opened.capture.packets().len(), "{name} in round {round}");
        for index in 0..opened.capture.packets().len() {
            let frame = opened.capture.frame(index);
            assert!(frame.payload().end <= opened.capture.data(index).len());
        }
    }
}

#[test]
fn addresses_stay_what_they_are() {
    let capture = read(&pcap(Order::Little, true, 1, &[ethernet()]));
    assert_eq!(capture.headers(0).ipv4().unwrap().dst, Ipv4Addr::new(172, 18, 0, 3));
    assert_eq!(capture.headers(0).src, Mac(SENDER));
}
