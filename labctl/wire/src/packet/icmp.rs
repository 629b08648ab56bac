//! ICMP and the packet that its errors quote.

use std::net::SocketAddrV4;

use super::transport::Place;
use super::{Checksum, Ipv4, be16, be32, checksum};

/// An ICMP message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Icmp {
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// Next-hop MTU of "fragmentation needed" (RFC 1191).
    pub mtu: Option<u16>,
    /// Of the message.
    pub checksum: Checksum,
    /// The quoted packet of an error, as far as it was captured.
    pub quote: Option<Box<Quote>>,
}

/// A packet quoted by an ICMP error: its IPv4 header and at least 8 bytes more (RFC 792).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quote {
    /// The quoted header; its `transport` is always [`super::Transport::Cut`].
    pub ipv4: Ipv4,
    /// Source and destination port, if the quote reaches that far.
    pub ports: Option<(u16, u16)>,
    /// Sequence number of a quoted TCP segment.
    pub tcp_seq: Option<u32>,
    /// The payload of a quoted UDP datagram, as far as it is quoted.
    pub udp_payload: Vec<u8>,
}

impl Icmp {
    /// Whether it is an error, which quotes a packet: unreachable, quench, redirect, time exceeded, bad
    /// parameter.
    pub const fn is_error(&self) -> bool {
        matches!(self.kind, 3 | 4 | 5 | 11 | 12)
    }

    pub(super) fn parse(ip: &Ipv4, place: &Place<'_>) -> Option<Self> {
        let bytes = place.captured();
        let (kind, code) = (*bytes.first()?, *bytes.get(1)?);
        let mut found = Self { kind, code, mtu: None, checksum: Checksum::Unknown, quote: None };
        if !ip.is_fragment() && place.sums {
            found.checksum = checksum::of_icmp(bytes, place.length);
        }
        if (kind, code) == (3, 4) {
            found.mtu = be16(bytes, 6);
        }
        if found.is_error() {
            found.quote = bytes.get(8..).and_then(Quote::parse).map(Box::new);
        }
        Some(found)
    }
}

impl Quote {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let ipv4 = Ipv4::parse_quoted(bytes)?;
        let inner = &bytes[ipv4.header_len..];
        let first = ipv4.fragment_offset == 0;
        let has_ports =
            first && matches!(ipv4.protocol, datapath_types::PROTO_TCP | datapath_types::PROTO_UDP);
        let ports = if has_ports { be16(inner, 0).zip(be16(inner, 2)) } else { None };
        let is = |protocol| has_ports && ipv4.protocol == protocol;
        Some(Self {
            ports,
            tcp_seq: if is(datapath_types::PROTO_TCP) { be32(inner, 4) } else { None },
            udp_payload: if is(datapath_types::PROTO_UDP) {
                inner.get(8..).unwrap_or(&[]).to_vec()
            } else {
                Vec::new()
            },
            ipv4,
        })
    }

    /// Source and destination of the quoted packet.
    pub fn sockets(&self) -> Option<(SocketAddrV4, SocketAddrV4)> {
        let (src, dst) = self.ports?;
        Some((SocketAddrV4::new(self.ipv4.src, src), SocketAddrV4::new(self.ipv4.dst, dst)))
    }
}
