//! TCP and UDP.

use std::fmt;
use std::ops::Range;

use datapath_types::{PROTO_TCP, PROTO_UDP};

use super::checksum::Segment;
use super::{Checksum, Icmp, Ipv4, be16, be32};

/// What an IPv4 packet carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp(Tcp),
    /// UDP.
    Udp(Udp),
    /// ICMP.
    Icmp(Icmp),
    /// A fragment other than the first: it has no transport header.
    LaterFragment,
    /// Another protocol.
    Other(u8),
    /// The transport header was cut off, or contradicts the packet's length.
    Cut,
}

/// A TCP segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tcp {
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Flags.
    pub flags: TcpFlags,
    /// Window as on the wire, unscaled.
    pub window: u16,
    /// Payload bytes on the wire, without headers and options.
    pub payload_len: usize,
    /// Where the captured part of the payload lies in the frame.
    pub payload: Range<usize>,
    /// Of the segment.
    pub checksum: Checksum,
}

/// The eight TCP flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Opens a connection.
    pub const SYN: u8 = 0x02;
    /// Aborts a connection.
    pub const RST: u8 = 0x04;
    /// Hand over at once.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 0x10;

    /// Whether any of these is set.
    pub const fn has(self, flags: u8) -> bool {
        self.0 & flags != 0
    }

    /// SYN without ACK: a client's first packet.
    pub const fn is_syn(self) -> bool {
        self.0 & (Self::SYN | Self::ACK) == Self::SYN
    }

    /// SYN with ACK.
    pub const fn is_syn_ack(self) -> bool {
        self.0 & (Self::SYN | Self::ACK) == Self::SYN | Self::ACK
    }
}

impl fmt::Display for TcpFlags {
    /// As tcpdump writes them: `S`, `S.`, `P.`, `none`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LETTERS: [(u8, &str); 8] = [
            (0x01, "F"),
            (0x02, "S"),
            (0x04, "R"),
            (0x08, "P"),
            (0x10, "."),
            (0x20, "U"),
            (0x40, "E"),
            (0x80, "W"),
        ];
        if self.0 == 0 {
            return f.write_str("none");
        }
        LETTERS.iter().filter(|(bit, _)| self.has(*bit)).try_for_each(|(_, letter)| f.write_str(letter))
    }
}

/// A UDP datagram, or the first fragment of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Udp {
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// The length field: header and payload of the whole datagram.
    pub length: u16,
    /// Payload bytes in this packet on the wire (of a fragment: only its own).
    pub payload_len: usize,
    /// Where the captured part of the payload lies in the frame.
    pub payload: Range<usize>,
    /// Of the datagram.
    pub checksum: Checksum,
}

/// Where the transport header begins and how far it goes.
pub(super) struct Place<'a> {
    /// The captured frame.
    pub(super) data: &'a [u8],
    /// Offset of the transport header in it.
    pub(super) at: usize,
    /// End of the packet in it, as far as captured; never before `at`, never behind `data`.
    pub(super) end: usize,
    /// Bytes from the transport header to the end of the packet on the wire.
    pub(super) length: usize,
    /// Whether checksums are computed.
    pub(super) sums: bool,
}

impl Place<'_> {
    pub(super) fn captured(&self) -> &[u8] {
        self.data.get(self.at..self.end).unwrap_or(&[])
    }

    /// The same place with less to it: what lies behind is not part of the segment.
    fn shortened(&self, length: usize) -> Self {
        Self { end: self.end.min(self.at + length), length, ..*self }
    }

    /// The captured part of what follows `header_len` bytes of header.
    fn payload(&self, header_len: usize) -> Range<usize> {
        (self.at + header_len).min(self.end)..self.end
    }

    fn checksum(&self, ip: &Ipv4, protocol: u8, field_at: usize) -> Option<Checksum> {
        if ip.is_fragment() || !self.sums {
            return Some(Checksum::Unknown);
        }
        let captured = self.captured();
        Segment { src: ip.src, dst: ip.dst, protocol, length: self.length, captured, field_at }.judge()
    }
}

impl Tcp {
    pub(super) fn parse(ip: &Ipv4, place: &Place<'_>) -> Option<Self> {
        let bytes = place.captured();
        // Everything up to the checksum must be there; options may be cut off.
        let header_len = usize::from(*bytes.get(12)? >> 4) * 4;
        if header_len < 20 || header_len > place.length {
            return None;
        }
        Some(Self {
            src_port: be16(bytes, 0)?,
            dst_port: be16(bytes, 2)?,
            seq: be32(bytes, 4)?,
            ack: be32(bytes, 8)?,
            flags: TcpFlags(*bytes.get(13)?),
            window: be16(bytes, 14)?,
            payload_len: place.length - header_len,
            payload: place.payload(header_len),
            checksum: place.checksum(ip, PROTO_TCP, 16)?,
        })
    }
}

impl Udp {
    pub(super) fn parse(ip: &Ipv4, place: &Place<'_>) -> Option<Self> {
        let length = be16(place.captured(), 4)?;
        let whole = usize::from(length);
        // Zero: an offload packet that is cut later. A first fragment holds less than the field says.
        let as_said = length != 0 && !ip.is_fragment();
        if place.length < 8 || (as_said && !(8..=place.length).contains(&whole)) {
            return None;
        }
        let place = &if as_said { place.shortened(whole) } else { place.shortened(place.length) };
        let bytes = place.captured();
        Some(Self {
            src_port: be16(bytes, 0)?,
            dst_port: be16(bytes, 2)?,
            length,
            payload_len: place.length - 8,
            payload: place.payload(8),
            checksum: place.checksum(ip, PROTO_UDP, 6)?,
        })
    }
}
