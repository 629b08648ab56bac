//! Our filter programs against tcpdump's, over the same frames; and what a wrong filter is told.
//!
//! The witness is tcpdump's own compiler (`tcpdump -ddd`).

use std::path::Path;
use std::process::Command;

use labctl_node::filter::{Instruction, compile};

/// A frame as a packet socket sees it.
#[derive(Clone, Debug)]
struct Frame {
    bytes: Vec<u8>,
    /// Tag that the kernel keeps beside the packet.
    tag: Option<u16>,
    outgoing: bool,
}

/// Runs a classic BPF program; `None` for an instruction that the kernel would refuse.
fn run(program: &[Instruction], frame: &Frame) -> Option<u32> {
    let (mut a, mut x, mut m) = (0u32, 0u32, [0u32; 16]);
    let mut at = 0;
    let load = |offset: u32, size: u32| -> Option<u32> {
        let from = offset as usize;
        let bytes = frame.bytes.get(from..from.checked_add(size as usize)?)?;
        Some(bytes.iter().fold(0, |value, b| value << 8 | u32::from(*b)))
    };
    let ancillary = |offset: u32| match offset.wrapping_sub(0xffff_f000) {
        4 => Some(if frame.outgoing { 4 } else { 0 }),
        44 => Some(u32::from(frame.tag.unwrap_or_default())),
        48 => Some(u32::from(frame.tag.is_some())),
        _ => None,
    };
    loop {
        let Instruction { code, jt, jf, k } = *program.get(at)?;
        at += 1;
        let size = match code & 0x18 {
            0x00 => 4,
            0x08 => 2,
            _ => 1,
        };
        let operand = if code & 0x08 != 0 { x } else { k };
        match code {
            0x20 | 0x28 | 0x30 => match ancillary(k).or_else(|| load(k, size)) {
                Some(value) => a = value,
                None => return Some(0),
            },
            0x40 | 0x48 | 0x50 => match load(x.wrapping_add(k), size) {
                Some(value) => a = value,
                None => return Some(0),
            },
            0x80 => a = frame.bytes.len() as u32,
            0x00 => a = k,
            0x60 => a = *m.get(k as usize)?,
            0x01 => x = k,
            0x61 => x = *m.get(k as usize)?,
            0x81 => x = frame.bytes.len() as u32,
            0xb1 => match load(k, 1) {
                Some(value) => x = 4 * (value & 15),
                None => return Some(0),
            },
            0x02 => *m.get_mut(k as usize)? = a,
            0x03 => *m.get_mut(k as usize)? = x,
            0x07 => x = a,
            0x87 => a = x,
            0x06 => return Some(k),
            0x16 => return Some(a),
            0x05 => at += k as usize,
            _ if code & 7 == 5 => {
                let holds = match code & 0xf0 {
                    0x10 => a == operand,
                    0x20 => a > operand,
                    0x30 => a >= operand,
                    0x40 => a & operand != 0,
                    _ => return None,
                };
                at += usize::from(if holds { jt } else { jf });
            }
            _ if code & 7 == 4 => match code & 0xf0 {
                0x00 => a = a.wrapping_add(operand),
                0x10 => a = a.wrapping_sub(operand),
                0x20 => a = a.wrapping_mul(operand),
                0x30 | 0x90 if operand == 0 => return Some(0),
                0x30 => a /= operand,
                0x90 => a %= operand,
                0x40 => a |= operand,
                0x50 => a &= operand,
                0x60 => a = a.checked_shl(operand).unwrap_or(0),
                0x70 => a = a.checked_shr(operand).unwrap_or(0),
                0x80 => a = a.wrapping_neg(),
                0xa0 => a ^= operand,
                _ => return None,
            },
            _ => return None,
        }
    }
}

/// Numbers that look random and are the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        let mut bytes = [0; 8];
        labctl_node::pattern::fill(self.0, 0, &mut bytes);
        self.0 += 1;
        (u64::from_le_bytes(bytes) % sides as u64) as usize
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.roll(from.len())]
    }
}

const ADDRESSES: [[u8; 4]; 5] =
    [[172, 18, 0, 1], [172, 18, 0, 3], [10, 0, 1, 108], [10, 1, 2, 3], [224, 0, 0, 5]];
const ADDRESSES6: [[u8; 16]; 3] = [
    [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    [0x20, 1, 0xd, 0xb8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2],
    [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
];
const MACS: [[u8; 6]; 3] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2], [0xff; 6]];
const PORTS: [u16; 6] = [22, 80, 443, 8080, 32000, 40000];

fn frame(dice: &mut Dice) -> Frame {
    let mut bytes = Vec::new();
    bytes.extend(*dice.pick(&MACS));
    bytes.extend(*dice.pick(&MACS));
    for _ in 0..dice.roll(6).saturating_sub(3) {
        let tpid: u16 = *dice.pick(&[0x8100, 0x88a8, 0x9100]);
        let id: u16 = *dice.pick(&[5, 7, 0x2005]);
        bytes.extend([tpid.to_be_bytes(), id.to_be_bytes()].concat());
    }
    match dice.roll(8) {
        0 => arp(dice, &mut bytes),
        1 | 2 => ip6(dice, &mut bytes),
        3 => bytes.extend([0x88, 0xcc, 1, 2, 3, 4]),
        _ => ip4(dice, &mut bytes),
    }
    // As on a wire. In a frame too short for its headers the two may read different fields before the missing
    // one ends the program: that is left to each optimizer.
    bytes.resize(bytes.len().max(60), 0);
    let tag = [None, None, Some(5), Some(7), Some(0x6005)][dice.roll(5)];
    Frame { bytes, tag, outgoing: dice.roll(2) == 0 }
}

fn arp(dice: &mut Dice, out: &mut Vec<u8>) {
    out.extend(if dice.roll(4) == 0 { [0x80, 0x35] } else { [8, 6] });
    out.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    for _ in 0..2 {
        out.extend(*dice.pick(&MACS));
        out.extend(*dice.pick(&ADDRESSES));
    }
}

fn ip4(dice: &mut Dice, out: &mut Vec<u8>) {
    let words = dice.roll(3) as u8 * 2;
    let fragment: u16 = *dice.pick(&[0, 0, 0, 0x4000, 0x2000, 0x2001, 0x0100]);
    let protocol = *dice.pick(&[6, 6, 6, 17, 17, 1, 132, 2, 47, 103]);
    out.extend([8, 0, 0x45 + words, 0, 0, 60, 1, 2]);
    out.extend(fragment.to_be_bytes());
    out.extend([*dice.pick(&[63, 64]), protocol, 0, 0]);
    out.extend(*dice.pick(&ADDRESSES));
    out.extend(*dice.pick(&ADDRESSES));
    out.extend((0..words).flat_map(|_| [0x9a, 8, 0x7d, 0]));
    transport(dice, protocol, out);
}

fn ip6(dice: &mut Dice, out: &mut Vec<u8>) {
    let protocol = *dice.pick(&[6, 17, 58, 132, 44]);
    out.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 40, protocol, 64]);
    out.extend(*dice.pick(&ADDRESSES6));
    out.extend(*dice.pick(&ADDRESSES6));
    if protocol == 44 {
        out.extend([*dice.pick(&[6, 17]), 0, 0, 1, 0, 0, 0, 1]);
    }
    transport(dice, protocol, out);
}

fn transport(dice: &mut Dice, protocol: u8, out: &mut Vec<u8>) {
    if matches!(protocol, 1 | 58) {
        out.extend([*dice.pick(&[0, 3, 8, 128, 135]), 0, 0, 0, 0, 0, 0, 0]);
        return;
    }
    out.extend(dice.pick(&PORTS).to_be_bytes());
    out.extend(dice.pick(&PORTS).to_be_bytes());
    out.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, *dice.pick(&[2, 0x12, 0x10, 0x14, 0x11]), 1, 0, 0, 0, 0, 0]);
    out.extend(vec![7; dice.roll(60)]);
}

/// Terms that both compilers take.
const TERMS: &[&str] = &[
    "ip",
    "ip6",
    "arp",
    "rarp",
    "tcp",
    "udp",
    "sctp",
    "icmp",
    "icmp6",
    "igmp",
    "pim",
    "host 172.18.0.1",
    "src host 172.18.0.1",
    "dst 10.0.1.108",
    "src and dst host 172.18.0.3",
    "dst or src host 172.18.0.3",
    "ip host 10.1.2.3",
    "arp host 172.18.0.1",
    "rarp src host 172.18.0.1",
    "host 10.1",
    "net 10",
    "net 172.18",
    "src net 10.0.0.0/8",
    "net 172.18.0.0 mask 255.255.0.0",
    "dst net 0.0.0.0/0",
    "host 2001:db8::1",
    "ip6 src host 2001:db8:0:1::2",
    "net 2001:db8::/48",
    "dst net 2001:db8:0:1::/64",
    "net ::/0",
    "host (172.18.0.1 or 10.1.2.3)",
    "host 172.18.0.1 and not 10.0.1.108",
    "port 80",
    "tcp port 32000",
    "udp dst port 443",
    "src port 8080",
    "src and dst port 80",
    "tcp src or dst port 443",
    "port 80 or 443",
    "tcp port (22 or 443)",
    "portrange 400-9000",
    "tcp src portrange 1-100",
    "udp portrange 9000-400",
    "ether host 2:0:0:0:0:1",
    "ether src 02-00-00-00-00-02",
    "ether dst 0200.0000.0001",
    "broadcast",
    "ether broadcast",
    "multicast",
    "ip multicast",
    "ip6 multicast",
    "ip proto 6",
    "ip proto \\udp",
    "ip6 proto 17",
    "proto 132",
    "ip proto 47 or 2",
    "ether proto 0x88cc",
    "ether proto \\arp",
    "less 60",
    "greater 80",
    "len > 70",
    "len <= 66",
    "70 <= len",
    "tcp[tcpflags] & (tcp-syn|tcp-ack) == tcp-syn",
    "tcp[13] & 4 != 0",
    "tcp[2:2] = 32000",
    "tcp[0:4] = 0x00501f90",
    "ip[8] < 64",
    "ip[0] & 0xf != 5",
    "ip[(ip[0] & 0xf) * 4 : 2] = 80",
    "ip[20] = 0x9a and ip[21] = 8",
    "ip[6:2] & 0x1fff = 0",
    "icmp[icmptype] = icmp-echo",
    "icmp6[icmp6type] = 128",
    "udp[2:2] > udp[0:2]",
    "tcp[tcp[12] >> 2] = 7",
    "ip6[6] = 6",
    "ether[0] & 1 != 0",
    "ether[12:2] = 0x0800",
    "arp[6:2] = 1",
    "ip[2:2] - ip[0] * 2 + 1 > 3",
    "38 % 4 * 8 = ip[9]",
    "ip[9] ^ 5 & 2 = 6",
    "-1 - len > 4294967200",
    "ip[8] / (ip[9] - 6) = 5",
    "len - 14 - 20 < 40",
    "1 << ip[9] = 64",
    "inbound",
    "outbound",
    "vlan",
    "vlan 5",
    "vlan 7 and tcp port 80",
    "vlan and vlan",
    "vlan 5 and vlan 7 and host 172.18.0.1",
    "vlan 5 or tcp",
    "udp and not vlan",
    "vlan and ether host 2:0:0:0:0:1",
    "vlan and icmp[0] = 8",
];

/// Joins terms at random.
fn expression(dice: &mut Dice, terms: &[&str], depth: usize) -> String {
    let negation = if dice.roll(4) == 0 { "not " } else { "" };
    if depth == 0 || dice.roll(3) == 0 {
        return format!("{negation}({})", dice.pick(terms));
    }
    let (left, right) = (expression(dice, terms, depth - 1), expression(dice, terms, depth - 1));
    format!("{negation}({left} {} {right})", dice.pick(&["and", "or", "&&", "||"]))
}

/// What tcpdump compiles for.
#[derive(Clone, Copy, Debug)]
enum For<'a> {
    /// The loopback interface, which speaks Ethernet and, being live, has tags beside the packet. Needs root.
    Live,
    /// A file: every tag is in the frame.
    File(&'a Path),
}

/// tcpdump's program for a filter, or its complaint.
fn witness(filter: &str, source: For<'_>) -> Result<Vec<Instruction>, String> {
    let mut tcpdump = Command::new("tcpdump");
    match source {
        For::Live => tcpdump.args(["-i", "lo"]),
        For::File(path) => tcpdump.arg("-r").arg(path),
    };
    let output = tcpdump.args(["-s", "262144", "-ddd", "--", filter]).output();
    let output = output.map_err(|e| e.to_string())?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    if complaint.contains("expression rejects all packets") {
        return Ok(vec![Instruction { code: 6, jt: 0, jf: 0, k: 0 }]);
    }
    if !output.status.success() {
        return Err(complaint.into_owned());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let line = |line: &str| {
        let mut fields = line.split_whitespace().map(|f| f.parse::<u32>().expect("-ddd prints numbers"));
        let mut next = || fields.next().expect("-ddd prints four numbers a line");
        Instruction { code: next() as u16, jt: next() as u8, jf: next() as u8, k: next() }
    };
    Ok(text.lines().skip(1).map(line).collect())
}

#[expect(clippy::print_stderr, reason = "a skipped test says why")]
fn no_witness(source: For<'_>) -> bool {
    if let Err(why) = witness("tcp", source) {
        eprintln!("skipped: tcpdump cannot compile for {source:?}: {why}");
        return true;
    }
    false
}

fn frames() -> Vec<Frame> {
    let mut dice = Dice(1);
    (0..4000).map(|_| frame(&mut dice)).collect()
}

/// Panics with the first frame on which the two programs differ; else says how many frames matched.
fn assert_same(filter: &str, source: For<'_>, frames: &[Frame]) -> usize {
    let ours = compile(filter, 262_144).unwrap_or_else(|e| panic!("{e}"));
    let theirs = witness(filter, source).unwrap_or_else(|e| panic!("{filter}: {e}"));
    let mut matched = 0;
    for frame in frames {
        let (our, their) = (run(ours.instructions(), frame), run(&theirs, frame));
        // A file's program returns the file's snap length: compare the verdict only.
        let (our, their) = (our.map(|n| n > 0), their.map(|n| n > 0));
        assert_eq!(our, their, "{filter}\n{frame:02x?}\nours {:#?}", ours.instructions());
        matched += usize::from(our == Some(true));
    }
    matched
}

#[test]
fn each_term_matches_what_tcpdump_matches() {
    if no_witness(For::Live) {
        return;
    }
    let frames = frames();
    for term in TERMS {
        let matched = assert_same(term, For::Live, &frames);
        assert!(matched > 0 && matched < frames.len(), "{term} is not exercised: {matched}");
    }
}

/// `vlan` comes first here: libpcap's program for a live interface shifts offsets only if a `vlan` was tested
/// on the way, against its manual, and 1.10.3 keeps that shift in the same scratch word as a number.
#[test]
fn tags_beside_the_packet_match_what_tcpdump_matches() {
    if no_witness(For::Live) {
        return;
    }
    let frames = &frames()[..1000];
    let mut dice = Dice(1 << 33);
    let plain: Vec<&str> = TERMS.iter().copied().filter(|t| !t.contains(['[', '<', '>', '='])).collect();
    let plain: Vec<&str> =
        plain.into_iter().filter(|t| !["vlan", "less", "greater"].iter().any(|w| t.contains(w))).collect();
    for _ in 0..60 {
        let first = dice.pick(&["vlan", "vlan 5", "not vlan 7", "vlan 7 and vlan"]);
        let rest = expression(&mut dice, &plain, 2);
        assert_same(&format!("{first} and {rest}"), For::Live, frames);
    }
}

#[test]
fn joined_terms_match_what_tcpdump_matches() {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    // The header of a pcap file: version 2.4, 262144 bytes, Ethernet.
    let header: [u32; 6] = [0xa1b2_c3d4, 0x0004_0002, 0, 0, 262_144, 1];
    std::fs::write(file.path(), header.map(u32::to_ne_bytes).concat()).expect("a temporary file");
    let source = For::File(file.path());
    if no_witness(source) {
        return;
    }
    let mut frames = frames();
    frames.truncate(1000);
    frames.iter_mut().for_each(|f| f.tag = None);
    let mut dice = Dice(1 << 32);
    // Files do not say which way a frame went.
    let terms: Vec<&str> = TERMS.iter().copied().filter(|t| !t.ends_with("bound")).collect();
    for _ in 0..250 {
        assert_same(&expression(&mut dice, &terms, 3), source, &frames);
    }
}

#[test]
fn the_usual_filter_is_short() {
    let program = compile("tcp port 32000", 96).expect("a filter");
    assert!(program.instructions().len() <= 20, "{:#?}", program.instructions());
    let everything = compile("  ", 96).expect("an empty filter takes everything");
    assert_eq!(everything.instructions(), [Instruction { code: 6, jt: 0, jf: 0, k: 96 }]);
}

#[test]
fn long_filters_jump_far() {
    let hosts: Vec<String> = (0..600).map(|i| format!("10.9.{}.{}", i / 250, i % 250 + 1)).collect();
    let filter = format!("tcp and src host ({} or 172.18.0.1)", hosts.join(" or "));
    let program = compile(&filter, 100).expect("600 hosts fit");
    let all = frames();
    let expected =
        |f: &Frame| f.bytes[12..14] == [8, 0] && f.bytes[23] == 6 && f.bytes[26..30] == ADDRESSES[0];
    let matched = all.iter().filter(|f| run(program.instructions(), f) == Some(100)).count();
    assert_eq!(matched, all.iter().filter(|f| expected(f)).count());
    assert!(matched > 0);
    let hosts: Vec<String> = (0..5000).map(|i| format!("10.{}.{}.1", i / 250, i % 250)).collect();
    let error =
        compile(&format!("src host ({})", hosts.join(" or ")), 100).expect_err("5000 hosts do not fit");
    assert!(error.to_string().contains("4096"), "{error}");
}

#[test]
fn a_wrong_filter_is_told_what_and_where() {
    let cases = [
        ("tcp prot 80", 5, "\"prot\" is no word of the filter language"),
        ("port http", 6, "names are not resolved"),
        ("tcp port 80 tcp", 13, "found 'tcp' where 'and', 'or' or the end is needed"),
        ("host 10.0.0.1 and", 18, "found the end where"),
        ("10.0.0.1", 1, "needs a word that says what it is"),
        ("tcp or 80", 8, "needs a word that says what it is"),
        ("port 70000", 6, "the port 70000 is larger than 65535"),
        ("vlan 5000", 6, "the vlan number 5000 is larger than 4095"),
        ("net 10.1.2.3/8", 5, "bits set outside of its mask"),
        ("host 10.0.0.0/8", 14, "only a net has a mask"),
        ("ip6 host 10.0.0.1", 10, "'ip6' cannot be applied to an ipv4 address"),
        ("icmp port 3", 11, "'icmp' cannot be applied to a port"),
        ("host 00:11:22:33:44:55", 6, "write ether before it"),
        ("tcp[0:3] = 1", 7, "1, 2 or 4 bytes, not 3"),
        ("ip[0] / 0 = 1", 7, "divides by zero"),
        ("(tcp port 80", 13, "where ')' is needed"),
        ("tcp & udp", 5, "found '&' where 'and', 'or' or the end is needed"),
        ("host 1.2.3.400", 6, "neither a number nor an address"),
        ("mpls 5", 1, "not supported here"),
        ("ether[4294967295] = 0", 7, "larger than"),
        ("tcp ~ 5", 5, "means nothing in a filter"),
    ];
    for (filter, column, words) in cases {
        let error = compile(filter, 96).expect_err(filter);
        assert!(error.to_string().contains(words), "{filter}: {error}");
        assert_eq!(error.column(), column, "{filter}: {error}");
    }
    let nested = format!("{}tcp{}", "(".repeat(5000), ")".repeat(5000));
    assert!(compile(&nested, 96).expect_err("too deep").to_string().contains("nested too deeply"));
    let error = compile("tcp port x", 96).expect_err("a name");
    assert_eq!(error.excerpt(), "tcp port x\n         ^");
}
