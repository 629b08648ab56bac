//! Frames to put in: Ethernet, IPv4 with options, TCP, UDP and ICMP errors, every checksum right.
//!
//! A test says what it expects in the same words: the frame that came out must equal, byte for byte, a
//! frame that was built from scratch. This file shares no code with the datapath, so a wrong sum there
//! cannot cancel out here; `check.rs` recomputes the sums a third way.

use std::net::{Ipv4Addr, SocketAddrV4};

/// TCP flag FIN.
pub(crate) const FIN: u8 = 0x01;
/// TCP flag SYN.
pub(crate) const SYN: u8 = 0x02;
/// TCP flag RST.
pub(crate) const RST: u8 = 0x04;
/// TCP flag ACK.
pub(crate) const ACK: u8 = 0x10;

/// IPv4 protocol number of ICMP.
const ICMP: u8 = 1;
/// IPv4 protocol number of TCP.
const TCP: u8 = 6;
/// IPv4 protocol number of UDP.
const UDP: u8 = 17;

/// Bytes of the Ethernet header.
pub(crate) const ETH: usize = 14;

/// One end of a flow.
pub(crate) fn at(addr: Ipv4Addr, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(addr, port)
}

/// Where frames come from, unless a test says otherwise: another node.
pub(crate) const NEIGHBOUR: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];

/// The same frame from another station.
pub(crate) fn sent_by(station: [u8; 6], mut frame: Vec<u8>) -> Vec<u8> {
    frame[6..12].copy_from_slice(&station);
    frame
}

/// The frame with the right IPv4 header checksum, if it has a header.
pub(crate) fn with_header_sum(mut frame: Vec<u8>) -> Vec<u8> {
    let end = ETH + usize::from(frame[ETH] & 0x0f) * 4;
    frame[24..26].fill(0);
    let check = sum(&frame[ETH..end]);
    frame[24..26].copy_from_slice(&check.to_be_bytes());
    frame
}

/// An Ethernet header with the EtherType, to the interface that BPF_PROG_TEST_RUN uses: the loopback's address
/// is all zeros.
pub(crate) fn ethernet(ether_type: u16) -> Vec<u8> {
    let mut bytes = vec![0; 6];
    bytes.extend(NEIGHBOUR);
    bytes.extend(ether_type.to_be_bytes());
    bytes
}

/// The Internet checksum (RFC 1071), big-endian arithmetic.
fn sum(bytes: &[u8]) -> u16 {
    let mut total = 0u32;
    for pair in bytes.chunks(2) {
        total += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    }
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    !(total as u16)
}

/// The fields of an IPv4 header that the tests vary.
#[derive(Clone, Debug)]
struct Header {
    src: Ipv4Addr,
    dst: Ipv4Addr,
    tos: u8,
    id: u16,
    /// Flags and fragment offset as they stand in the header.
    frag: u16,
    ttl: u8,
    proto: u8,
    options: Vec<u8>,
}

impl Header {
    fn bytes(&self, payload: &[u8]) -> Vec<u8> {
        assert!(self.options.len().is_multiple_of(4) && self.options.len() <= 40, "options fill words");
        let ihl = 5 + self.options.len() / 4;
        let mut out = vec![0x40 | ihl as u8, self.tos];
        out.extend(((ihl * 4 + payload.len()) as u16).to_be_bytes());
        out.extend(self.id.to_be_bytes());
        out.extend(self.frag.to_be_bytes());
        out.extend([self.ttl, self.proto, 0, 0]);
        out.extend(self.src.octets());
        out.extend(self.dst.octets());
        out.extend(&self.options);
        let check = sum(&out);
        out[10..12].copy_from_slice(&check.to_be_bytes());
        out.extend(payload);
        out
    }
}

/// A TCP or UDP packet.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    ip: Header,
    sport: u16,
    dport: u16,
    tcp_flags: u8,
    seq: u32,
    ack: u32,
    payload: Vec<u8>,
    checksum: bool,
}

/// The first sequence number of both ends of every connection. The packets of a test follow the handshake, and
/// carry what the other end acknowledges, unless the test says otherwise.
pub(crate) const ISN: u32 = 0x1122_3344;

impl Frame {
    /// A TCP packet.
    pub(crate) fn tcp(src: SocketAddrV4, dst: SocketAddrV4, flags: u8) -> Self {
        Self::new(TCP, src, dst, flags)
    }

    /// A UDP datagram.
    pub(crate) fn udp(src: SocketAddrV4, dst: SocketAddrV4) -> Self {
        Self::new(UDP, src, dst, 0).payload(b"ping")
    }

    fn new(proto: u8, src: SocketAddrV4, dst: SocketAddrV4, tcp_flags: u8) -> Self {
        let ip = Header {
            src: *src.ip(),
            dst: *dst.ip(),
            tos: 0,
            id: 0x1c46,
            frag: 0x4000,
            ttl: 64,
            proto,
            options: Vec::new(),
        };
        Self {
            ip,
            sport: src.port(),
            dport: dst.port(),
            tcp_flags,
            seq: if tcp_flags & SYN != 0 { ISN } else { ISN + 1 },
            ack: ISN + 1,
            payload: Vec::new(),
            checksum: true,
        }
    }

    pub(crate) fn ihl(&self) -> usize {
        20 + self.ip.options.len()
    }

    pub(crate) fn is_tcp(&self) -> bool {
        self.ip.proto == TCP
    }

    pub(crate) fn is_syn(&self) -> bool {
        self.is_tcp() && self.tcp_flags & (SYN | ACK) == SYN
    }

    /// With another source.
    pub(crate) fn from(mut self, src: SocketAddrV4) -> Self {
        (self.ip.src, self.sport) = (*src.ip(), src.port());
        self
    }

    /// With another destination.
    pub(crate) fn to(mut self, dst: SocketAddrV4) -> Self {
        (self.ip.dst, self.dport) = (*dst.ip(), dst.port());
        self
    }

    /// With another sequence number.
    pub(crate) fn seq(mut self, seq: u32) -> Self {
        self.seq = seq;
        self
    }

    /// This many bytes later in its direction's stream.
    pub(crate) fn after(mut self, bytes: u32) -> Self {
        self.seq = self.seq.wrapping_add(bytes);
        self
    }

    /// With another acknowledgement number.
    pub(crate) fn ack(mut self, ack: u32) -> Self {
        self.ack = ack;
        self
    }

    pub(crate) fn ttl(mut self, ttl: u8) -> Self {
        self.ip.ttl = ttl;
        self
    }

    /// One router further.
    pub(crate) fn hop(mut self) -> Self {
        self.ip.ttl -= 1;
        self
    }

    pub(crate) fn id(mut self, id: u16) -> Self {
        self.ip.id = id;
        self
    }

    /// Without the Don't Fragment flag.
    pub(crate) fn may_fragment(mut self) -> Self {
        self.ip.frag = 0;
        self
    }

    pub(crate) fn options(mut self, options: &[u8]) -> Self {
        self.ip.options = options.to_vec();
        self
    }

    /// With its options blanked, unless they begin with a router alert.
    pub(crate) fn without_names(mut self) -> Self {
        if self.ip.options.first() != Some(&0x94) {
            self.ip.options.fill(1);
        }
        self
    }

    /// With these options in front of those it has.
    pub(crate) fn options_first(mut self, options: &[u8]) -> Self {
        self.ip.options.splice(0..0, options.iter().copied());
        self
    }

    pub(crate) fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    /// Padded so that the IPv4 packet has `len` bytes.
    pub(crate) fn total_len(mut self, len: usize) -> Self {
        let headers = self.ihl() + if self.is_tcp() { 20 } else { 8 };
        self.payload = (0..len - headers).map(|i| (i * 7) as u8).collect();
        self
    }

    /// UDP without a checksum.
    pub(crate) fn no_checksum(mut self) -> Self {
        self.checksum = false;
        self
    }

    /// Transport header and payload.
    fn transport(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(self.sport.to_be_bytes());
        out.extend(self.dport.to_be_bytes());
        let field = if self.is_tcp() {
            out.extend(self.seq.to_be_bytes());
            out.extend(self.ack.to_be_bytes());
            out.extend([0x50, self.tcp_flags, 0xfa, 0xf0, 0, 0, 0, 0]);
            16
        } else {
            out.extend(((8 + self.payload.len()) as u16).to_be_bytes());
            out.extend([0, 0]);
            6
        };
        out.extend(&self.payload);
        if self.checksum {
            let mut check = sum(&[&self.pseudo_header(out.len())[..], &out].concat());
            if !self.is_tcp() && check == 0 {
                check = 0xffff;
            }
            out[field..field + 2].copy_from_slice(&check.to_be_bytes());
        }
        out
    }

    fn pseudo_header(&self, len: usize) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(self.ip.src.octets());
        out.extend(self.ip.dst.octets());
        out.extend([0, self.ip.proto]);
        out.extend((len as u16).to_be_bytes());
        out
    }

    /// The IPv4 packet.
    pub(crate) fn packet(&self) -> Vec<u8> {
        self.ip.bytes(&self.transport())
    }

    /// The whole frame.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        [ethernet(0x0800), self.packet()].concat()
    }

    /// What an ICMP error quotes of it: the IPv4 header and `transport` bytes.
    pub(crate) fn quote(&self, transport: usize) -> Vec<u8> {
        let packet = self.packet();
        packet[..packet.len().min(self.ihl() + transport)].to_vec()
    }

    /// Cuts the packet into fragments that carry `size` bytes each, a multiple of 8. Options with the copied
    /// flag go into every fragment; the tests use no others.
    pub(crate) fn fragments(&self, size: usize) -> Vec<Vec<u8>> {
        let transport = self.transport();
        let count = transport.len().div_ceil(size);
        let pieces = transport.chunks(size).enumerate().map(|(i, piece)| {
            let more = if i + 1 < count { 0x2000 } else { 0 };
            let ip = Header { frag: more | (i * size / 8) as u16, ..self.ip.clone() };
            [ethernet(0x0800), ip.bytes(piece)].concat()
        });
        pieces.collect()
    }

    /// A last fragment at this byte of the transport part.
    pub(crate) fn piece(&self, offset: usize, bytes: &[u8]) -> Vec<u8> {
        let ip = Header { frag: (offset / 8) as u16, ..self.ip.clone() };
        [ethernet(0x0800), ip.bytes(bytes)].concat()
    }

    /// The same packet inside an 802.1Q tag.
    pub(crate) fn tagged(&self, vlan: u16) -> Vec<u8> {
        [ethernet(0x8100), vlan.to_be_bytes().to_vec(), vec![0x08, 0x00], self.packet()].concat()
    }
}

/// An ICMP error, or another ICMP message.
#[derive(Clone, Debug)]
pub(crate) struct Icmp {
    ip: Header,
    kind: u8,
    code: u8,
    rest: [u8; 4],
    quote: Vec<u8>,
}

impl Icmp {
    pub(crate) fn new(src: Ipv4Addr, dst: Ipv4Addr, kind: u8, code: u8, quote: Vec<u8>) -> Self {
        let ip = Header { src, dst, tos: 0xc0, id: 0, frag: 0, ttl: 64, proto: ICMP, options: Vec::new() };
        Self { ip, kind, code, rest: [0; 4], quote }
    }

    /// Destination unreachable, port unreachable.
    pub(crate) fn port_unreachable(src: Ipv4Addr, dst: Ipv4Addr, quote: Vec<u8>) -> Self {
        Self::new(src, dst, 3, 3, quote)
    }

    /// Destination unreachable, fragmentation needed.
    pub(crate) fn too_big(src: Ipv4Addr, dst: Ipv4Addr, mtu: u16, quote: Vec<u8>) -> Self {
        let [a, b] = mtu.to_be_bytes();
        Self { rest: [0, 0, a, b], ..Self::new(src, dst, 3, 4, quote) }
    }

    /// Time exceeded in transit.
    pub(crate) fn time_exceeded(src: Ipv4Addr, dst: Ipv4Addr, quote: Vec<u8>) -> Self {
        Self::new(src, dst, 11, 0, quote)
    }

    pub(crate) fn from(mut self, src: Ipv4Addr) -> Self {
        self.ip.src = src;
        self
    }

    pub(crate) fn to(mut self, dst: Ipv4Addr) -> Self {
        self.ip.dst = dst;
        self
    }

    pub(crate) fn ttl(mut self, ttl: u8) -> Self {
        self.ip.ttl = ttl;
        self
    }

    pub(crate) fn hop(mut self) -> Self {
        self.ip.ttl -= 1;
        self
    }

    pub(crate) fn options(mut self, options: &[u8]) -> Self {
        self.ip.options = options.to_vec();
        self
    }

    pub(crate) fn about(mut self, quote: Vec<u8>) -> Self {
        self.quote = quote;
        self
    }

    /// The whole frame.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = vec![self.kind, self.code, 0, 0];
        out.extend(self.rest);
        out.extend(&self.quote);
        let check = sum(&out);
        out[2..4].copy_from_slice(&check.to_be_bytes());
        [ethernet(0x0800), self.ip.bytes(&out)].concat()
    }
}
