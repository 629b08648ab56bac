//! Builds frames for tests: every field by name, lengths and checksums right unless told otherwise.
//!
//! Written apart from the parser, byte by byte, so that a mistake in one does not hide in the other.

#![expect(dead_code, reason = "each test binary uses its own part of the builder")]

use std::net::{Ipv4Addr, SocketAddrV4};

use labctl_wire::packet::Mac;

/// How the transport checksum is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sum {
    Right,
    Wrong,
    /// Left to the NIC: the folded pseudo header.
    Partial,
    Zero,
}

#[derive(Clone, Debug)]
pub(crate) enum Body {
    Tcp {
        seq: u32,
        ack: u32,
        flags: u8,
        window: u16,
    },
    Udp,
    /// Type, code, the word behind the checksum, and the quoted packet.
    Icmp {
        kind: u8,
        code: u8,
        rest: u32,
        quote: Box<Packet>,
    },
    /// Bytes of a later fragment.
    Raw(u8),
}

#[derive(Clone, Debug)]
pub(crate) struct Packet {
    pub(crate) mac_src: Mac,
    pub(crate) mac_dst: Mac,
    pub(crate) vlan: Option<u16>,
    pub(crate) src: SocketAddrV4,
    pub(crate) dst: SocketAddrV4,
    pub(crate) ttl: u8,
    pub(crate) id: u16,
    /// Flags and fragment offset as on the wire.
    pub(crate) fragment: u16,
    pub(crate) options: Vec<u8>,
    pub(crate) body: Body,
    pub(crate) payload: Vec<u8>,
    pub(crate) bad_header_sum: bool,
    pub(crate) sum: Sum,
}

pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const PSH: u8 = 8;
pub(crate) const ACK: u8 = 16;
pub(crate) const DONT_FRAGMENT: u16 = 0x4000;
pub(crate) const MORE_FRAGMENTS: u16 = 0x2000;

pub(crate) fn socket(text: &str) -> SocketAddrV4 {
    text.parse().unwrap()
}

impl Packet {
    pub(crate) fn tcp(src: SocketAddrV4, dst: SocketAddrV4, flags: u8, seq: u32, ack: u32) -> Self {
        Self {
            mac_src: Mac([2, 0, 0, 0, 0, 1]),
            mac_dst: Mac([2, 0, 0, 0, 0, 3]),
            vlan: None,
            src,
            dst,
            ttl: 64,
            id: 1,
            fragment: DONT_FRAGMENT,
            options: Vec::new(),
            body: Body::Tcp { seq, ack, flags, window: 64_240 },
            payload: Vec::new(),
            bad_header_sum: false,
            sum: Sum::Right,
        }
    }

    pub(crate) fn udp(src: SocketAddrV4, dst: SocketAddrV4, payload: &[u8]) -> Self {
        Self { body: Body::Udp, payload: payload.to_vec(), ..Self::tcp(src, dst, 0, 0, 0) }
    }

    pub(crate) fn icmp(src: Ipv4Addr, dst: Ipv4Addr, kind: u8, code: u8, rest: u32, quote: Self) -> Self {
        let (src, dst) = (SocketAddrV4::new(src, 0), SocketAddrV4::new(dst, 0));
        Self { body: Body::Icmp { kind, code, rest, quote: Box::new(quote) }, ..Self::tcp(src, dst, 0, 0, 0) }
    }

    pub(crate) fn with_payload(self, payload: &[u8]) -> Self {
        Self { payload: payload.to_vec(), ..self }
    }

    pub(crate) fn protocol(&self) -> u8 {
        match self.body {
            Body::Icmp { .. } => 1,
            Body::Tcp { .. } => 6,
            Body::Udp => 17,
            Body::Raw(protocol) => protocol,
        }
    }

    /// The frame.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = [self.mac_dst.0, self.mac_src.0].concat();
        if let Some(vlan) = self.vlan {
            out.extend([0x81, 0x00]);
            out.extend(vlan.to_be_bytes());
        }
        out.extend([0x08, 0x00]);
        out.extend(self.ip_bytes());
        out
    }

    /// The packet without the Ethernet header.
    pub(crate) fn ip_bytes(&self) -> Vec<u8> {
        let transport = self.transport();
        assert_eq!(self.options.len() % 4, 0, "options come in words");
        let header_len = 20 + self.options.len();
        let total = (header_len + transport.len()) as u16;
        let mut header = vec![0x40 | (header_len / 4) as u8, 0];
        header.extend(total.to_be_bytes());
        header.extend(self.id.to_be_bytes());
        header.extend(self.fragment.to_be_bytes());
        header.extend([self.ttl, self.protocol(), 0, 0]);
        header.extend(self.src.ip().octets());
        header.extend(self.dst.ip().octets());
        header.extend(&self.options);
        let sum = !ones_sum(&header) ^ if self.bad_header_sum { 0x0100 } else { 0 };
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        header.extend(transport);
        header
    }

    fn transport(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let sum_at = match &self.body {
            Body::Tcp { seq, ack, flags, window } => {
                out.extend([self.src.port().to_be_bytes(), self.dst.port().to_be_bytes()].concat());
                out.extend(seq.to_be_bytes());
                out.extend(ack.to_be_bytes());
                out.extend([0x50, *flags]);
                out.extend(window.to_be_bytes());
                out.extend([0, 0, 0, 0]);
                16
            }
            Body::Udp => {
                out.extend([self.src.port().to_be_bytes(), self.dst.port().to_be_bytes()].concat());
                out.extend((8 + self.payload.len() as u16).to_be_bytes());
                out.extend([0, 0]);
                6
            }
            Body::Icmp { kind, code, rest, quote } => {
                out.extend([*kind, *code, 0, 0]);
                out.extend(rest.to_be_bytes());
                out.extend(quote.ip_bytes());
                2
            }
            Body::Raw(_) => return self.payload.clone(),
        };
        out.extend(&self.payload);
        let sum = self.transport_sum(&out);
        out[sum_at..sum_at + 2].copy_from_slice(&sum.to_be_bytes());
        out
    }

    fn transport_sum(&self, segment: &[u8]) -> u16 {
        let mut pseudo = Vec::new();
        if !matches!(self.body, Body::Icmp { .. }) {
            pseudo.extend(self.src.ip().octets());
            pseudo.extend(self.dst.ip().octets());
            pseudo.extend([0, self.protocol()]);
            pseudo.extend((segment.len() as u16).to_be_bytes());
        }
        match self.sum {
            Sum::Zero => 0,
            Sum::Partial => ones_sum(&pseudo),
            Sum::Right | Sum::Wrong => {
                pseudo.extend(segment);
                !ones_sum(&pseudo) ^ if self.sum == Sum::Wrong { 0x5a5a } else { 0 }
            }
        }
    }
}

/// One's complement sum of big-endian words (RFC 1071), the plain way.
fn ones_sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
