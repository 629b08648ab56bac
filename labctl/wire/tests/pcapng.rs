//! The pcapng writer and reader against each other, against hand-made bytes, and against the programs
//! that users open our files with.

#![expect(clippy::print_stdout, reason = "a skipped test says what it lacks")]

use std::io::{self, Write};
use std::process::{Command, Stdio};

use labctl_wire::packet::Mac;
use labctl_wire::pcapng::{Block, Interface, Packet, ReadError, Reader, Statistics, WriteError, Writer};
use labctl_wire::{CapturePoint, Direction, HostKind};

const MAC: Mac = Mac([2, 0, 0, 0, 0, 9]);
/// 2026-11-22 10:00:00.123456789 UTC.
const TIME: u64 = 1_795_341_600_123_456_789;

fn point(host: &str, kind: HostKind, interface: &str) -> CapturePoint {
    CapturePoint { host: host.into(), kind, interface: interface.into() }
}

/// A UDP datagram of 172.18.0.1:40000 -> 172.18.0.3:32000, payload "hi", checksum absent.
fn frame() -> Vec<u8> {
    let mut f = vec![2, 0, 0, 0, 0, 3, 2, 0, 0, 0, 0, 1, 8, 0];
    f.extend([0x45, 0, 0, 30, 0, 7, 0x40, 0, 64, 17, 0xe2, 0xa2, 172, 18, 0, 1, 172, 18, 0, 3]);
    f.extend([0x9c, 0x40, 0x7d, 0, 0, 10, 0, 0, b'h', b'i']);
    f
}

fn sample() -> Vec<u8> {
    let mut w = Writer::new(Vec::new()).unwrap();
    let node = w.add_interface(&point("worker", HostKind::Node, "eth0"), 256, "uplink").unwrap();
    let pod = w.add_interface_with_mac(&point("web-1", HostKind::Pod, "eth0"), 256, "", Some(MAC)).unwrap();
    w.packet(node, TIME, 1514, &frame(), Direction::In, None).unwrap();
    w.packet(pod, TIME + 1, 44, &frame()[..41], Direction::Out, Some("client-ip: fail")).unwrap();
    w.packet(node, TIME + 2, 44, &frame(), Direction::Unknown, None).unwrap();
    w.statistics(node, TIME + 3, 2, 0).unwrap();
    w.statistics(pod, TIME + 3, 1, 7).unwrap();
    w.into_inner()
}

#[test]
fn what_is_written_comes_back() {
    let blocks: Vec<_> = Reader::new(&sample()[..]).collect::<Result<_, _>>().unwrap();
    let [Block::Interface(node), Block::Interface(pod), packets @ .., stats_node, stats_pod] = &blocks[..]
    else {
        panic!("two interfaces come first, then packets, then two statistics: {blocks:#?}");
    };
    assert_eq!(node.point(), Some(point("worker", HostKind::Node, "eth0")));
    assert_eq!((node.index, node.snaplen, node.link_type), (0, 256, 1));
    assert_eq!(node.description, "node: uplink");
    assert_eq!((node.mac, pod.mac), (None, Some(MAC)));
    assert_eq!(pod.point(), Some(point("web-1", HostKind::Pod, "eth0")));
    let expected = [
        Packet {
            interface: 0,
            ts_ns: TIME,
            original_len: 1514,
            data: frame(),
            direction: Direction::In,
            comment: None,
        },
        Packet {
            interface: 1,
            ts_ns: TIME + 1,
            original_len: 44,
            data: frame()[..41].to_vec(),
            direction: Direction::Out,
            comment: Some("client-ip: fail".into()),
        },
        Packet {
            interface: 0,
            ts_ns: TIME + 2,
            original_len: 44,
            data: frame(),
            direction: Direction::Unknown,
            comment: None,
        },
    ];
    assert_eq!(packets, expected.map(Block::Packet));
    let statistics = |interface, received, dropped| {
        Block::Statistics(Statistics {
            interface,
            ts_ns: TIME + 3,
            received: Some(received),
            dropped: Some(dropped),
        })
    };
    assert_eq!([stats_node, stats_pod], [&statistics(0, 2, 0), &statistics(1, 1, 7)]);
}

/// Counts the writes that reach a pipe.
struct Pieces(Vec<Vec<u8>>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.push(bytes.to_vec());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn each_block_is_one_write() {
    let mut w = Writer::new(Pieces(Vec::new())).unwrap();
    let n = w.add_interface(&point("worker", HostKind::Node, "eth0"), 0, "").unwrap();
    w.packet(n, TIME, 44, &frame(), Direction::In, Some("x")).unwrap();
    let pieces = w.into_inner().0;
    assert_eq!(pieces.len(), 3);
    for piece in pieces {
        let total = u32::from_ne_bytes(piece[4..8].try_into().unwrap()) as usize;
        assert_eq!(total, piece.len(), "a write is not one whole block");
    }
}

#[test]
fn writer_refuses_what_the_format_cannot_hold() {
    let mut w = Writer::new(Vec::new()).unwrap();
    let missing = w.packet(0, TIME, 1, &[0], Direction::In, None);
    assert!(matches!(missing, Err(WriteError::UnknownInterface(0))));
    let n = w.add_interface(&point("worker", HostKind::Node, "eth0"), 0, "").unwrap();
    let long = w.packet(n, TIME, 1, &[0], Direction::In, Some(&"x".repeat(65_536)));
    assert!(matches!(long, Err(WriteError::TooLong { what: "comment", len: 65_536 })));
    w.packet(n, TIME, 1, &[0], Direction::In, None).unwrap();
    let file = w.into_inner();
    assert_eq!(Reader::new(&file[..]).count(), 2, "a refused block left bytes behind");
}

/// A block in big-endian order.
fn big(kind: u32, body: &[u8]) -> Vec<u8> {
    let total = (body.len() as u32 + 12).to_be_bytes();
    [&kind.to_be_bytes()[..], &total, body, &total].concat()
}

#[test]
fn big_endian_with_unknown_blocks_and_binary_resolution() {
    let section = [0x1a, 0x2b, 0x3c, 0x4d, 0, 1, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255];
    // Resolution 2^-10 s, an offset of 100 s, an unknown option 77 with an odd length.
    let interface = [
        &[0, 1, 0, 0, 0, 0, 0, 96][..],
        &[0, 9, 0, 1, 0x8a, 0, 0, 0],
        &[0, 77, 0, 3, 1, 2, 3, 0],
        &[0, 14, 0, 8, 0, 0, 0, 0, 0, 0, 0, 100],
    ]
    .concat();
    let packet = [
        &[0u8; 4][..],
        &[0, 0, 0, 0, 0, 0, 4, 0],
        &[0, 0, 0, 3, 0, 0, 0, 60, 9, 8, 7, 0],
        &[0, 2, 0, 4],
        &[0, 0, 0, 2],
    ]
    .concat();
    let file = [
        big(0x0a0d_0d0a, &section),
        big(0x4242, &[1, 2, 3, 4]),
        big(1, &interface),
        big(6, &packet),
        big(0x0a0d_0d0a, &section),
        big(1, &interface),
        big(6, &packet),
    ]
    .concat();
    let blocks: Vec<_> = Reader::new(&file[..]).collect::<Result<_, _>>().unwrap();
    let interface = |index| {
        let name = String::new();
        Block::Interface(Interface {
            index,
            name: name.clone(),
            description: name,
            link_type: 1,
            snaplen: 96,
            mac: None,
        })
    };
    let packet = |interface| {
        Block::Packet(Packet {
            interface,
            ts_ns: 101_000_000_000, // 1024 units of 2^-10 s, and the offset
            original_len: 60,
            data: vec![9, 8, 7],
            direction: Direction::Out,
            comment: None,
        })
    };
    assert_eq!(blocks, [interface(0), packet(0), interface(1), packet(1)]);
}

#[test]
fn damage_is_an_error_with_its_offset() {
    let first = |bytes: &[u8]| Reader::new(bytes).find_map(Result::err);
    assert!(first(&[]).is_none());
    assert!(matches!(first(&[0xd4, 0xc3, 0xb2, 0xa1, 0, 0, 0, 0]), Some(ReadError::NotPcapng { .. })));

    let whole = sample();
    assert!(matches!(first(&whole[..whole.len() - 1]), Some(ReadError::Truncated { .. })));

    let section = u32::from_ne_bytes(whole[4..8].try_into().unwrap()) as usize;
    let mut differ = whole.clone();
    differ[section - 1] ^= 1;
    let text = first(&differ).unwrap().to_string();
    assert_eq!(text, "read pcapng: block of type 0xa0d0d0a at offset 0: its two length fields differ");

    let mut huge = whole.clone();
    huge[section + 4..section + 8].copy_from_slice(&0xffff_fffcu32.to_ne_bytes());
    let offset = section as u64;
    assert!(matches!(first(&huge), Some(ReadError::BadBlock { offset: o, .. }) if o == offset));
}

#[test]
fn garbage_never_panics() {
    let whole = sample();
    let mut seed = 1u64;
    for _ in 0..20_000 {
        let mut bytes = whole.clone();
        for _ in 0..1 + seed % 4 {
            seed = datapath_types::mix(seed.wrapping_add(0x9e37_79b9));
            let at = seed as usize % bytes.len();
            bytes[at] = (seed >> 32) as u8;
        }
        bytes.truncate(bytes.len() - (seed >> 50) as usize % 64);
        for block in Reader::new(&bytes[..]) {
            drop(block);
        }
    }
}

/// Whether a program is there; says so if it is not, so that a skip is seen.
fn installed(program: &str) -> bool {
    let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if found.is_err() {
        let required = std::env::var_os("LABCTL_REQUIRE_WITNESS").is_some_and(|v| v == "1");
        assert!(!required, "{program} is not installed");
        println!("skipped: {program} is not installed");
    }
    found.is_ok()
}

#[test]
fn tcpdump_reads_the_file() {
    if !installed("tcpdump") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sample.pcapng");
    std::fs::write(&path, sample()).unwrap();
    let out = Command::new("tcpdump").args(["-nn", "-tt", "--nano", "-r"]).arg(&path).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    let first = text.lines().next().unwrap_or_default();
    assert!(
        first.starts_with("1795341600.123456789 IP 172.18.0.1.40000 > 172.18.0.3.32000: UDP, length 2"),
        "tcpdump printed: {text}\n{}",
        String::from_utf8_lossy(&out.stderr)
    );
    assert_eq!(text.lines().count(), 3);
}

#[test]
fn tshark_reads_a_live_pipe() {
    if !installed("tshark") {
        return;
    }
    let fields =
        ["frame.interface_name", "frame.time_epoch", "frame.comment", "frame.packet_flags_direction"];
    let mut child = Command::new("tshark")
        .args(["-r", "-", "-Tfields"])
        .args(fields.iter().flat_map(|f| ["-e", f]))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&sample()).unwrap();
    let out = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{}", String::from_utf8_lossy(&out.stderr));
    assert!(lines[0].starts_with("worker:eth0\t1795341600.123456789"), "{}", lines[0]);
    assert!(lines[1].contains("web-1:eth0") && lines[1].contains("client-ip: fail"), "{}", lines[1]);
}
