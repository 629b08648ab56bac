//! The IPv4 header and its options.

use std::net::{Ipv4Addr, SocketAddrV4};

use datapath_types::option::{self, WireOrder};
use datapath_types::{PROTO_ICMP, PROTO_TCP, PROTO_UDP};

use super::transport::{Place, Transport};
use super::{Checksum, Icmp, Tcp, Udp, be16, bytes, checksum};

/// Bytes of a header without options.
const MIN_HEADER: usize = 20;
/// Option codes of one byte (RFC 791 section 3.1).
const END_OF_OPTIONS: u8 = 0;
const NO_OPERATION: u8 = 1;

/// An IPv4 packet. Addresses are values, numbers are in machine order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ipv4 {
    /// Bytes of the header: four times IHL.
    pub header_len: usize,
    /// Former type of service: DSCP and ECN.
    pub tos: u8,
    /// The total length field in bytes; 0 in an offload packet beyond 64 KiB.
    pub total_len: u16,
    /// Identification.
    pub id: u16,
    /// Don't fragment.
    pub dont_fragment: bool,
    /// More fragments follow.
    pub more_fragments: bool,
    /// Offset of this fragment in bytes.
    pub fragment_offset: u16,
    /// Time to live.
    pub ttl: u8,
    /// Protocol number.
    pub protocol: u8,
    /// Source.
    pub src: Ipv4Addr,
    /// Destination.
    pub dst: Ipv4Addr,
    /// Options.
    pub options: Options,
    /// Of the header.
    pub checksum: Checksum,
    /// What the packet carries.
    pub transport: Transport,
}

/// IPv4 options.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// All option bytes, padding included.
    pub raw: Vec<u8>,
    /// The first DSR option.
    pub dsr: Option<DsrOption>,
    /// How many DSR options there are.
    pub dsr_count: usize,
    /// An option's length does not fit, or a DSR option's is not 8.
    pub malformed: bool,
}

/// A DSR option; bytes alone do not tell its byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DsrOption {
    /// As on the wire.
    pub bytes: [u8; option::LEN],
    /// Read in network order.
    pub network: SocketAddrV4,
    /// Read in Cilium's order.
    pub cilium: SocketAddrV4,
}

impl DsrOption {
    /// The frontend, read in this order.
    pub const fn read(&self, order: WireOrder) -> SocketAddrV4 {
        match order {
            WireOrder::Network => self.network,
            WireOrder::Cilium => self.cilium,
        }
    }
}

impl Ipv4 {
    /// Whether it is one piece of a larger packet.
    pub const fn is_fragment(&self) -> bool {
        self.more_fragments || self.fragment_offset > 0
    }

    /// Reads the packet at `at`. The error says what contradicts itself.
    pub(super) fn parse(
        data: &[u8],
        at: usize,
        original_len: usize,
        sums: bool,
    ) -> Result<Self, &'static str> {
        let fixed: [u8; MIN_HEADER] = bytes(data, at).ok_or("IPv4 header is cut off")?;
        if fixed[0] >> 4 != 4 {
            return Err("IP version is not 4");
        }
        let header_len = usize::from(fixed[0] & 0x0f) * 4;
        if header_len < MIN_HEADER {
            return Err("IHL is below 5");
        }
        let header = data.get(at..at + header_len).ok_or("IPv4 options are cut off")?;
        let length = length_on_wire(&fixed, at, original_len);
        if length < header_len {
            return Err("total length is below the header's");
        }
        if at + length > original_len {
            return Err("total length is beyond the frame");
        }
        let mut packet = Self::from_header(&fixed, header);
        // Ethernet padding behind the packet is not part of it.
        let end = data.len().min(at + length);
        let place = Place { data, at: at + header_len, end, length: length - header_len, sums };
        packet.transport = packet.parse_transport(&place);
        Ok(packet)
    }

    /// Everything that stands in the header itself.
    fn from_header(fixed: &[u8; MIN_HEADER], header: &[u8]) -> Self {
        let flags = u16::from_be_bytes([fixed[6], fixed[7]]);
        Self {
            header_len: header.len(),
            tos: fixed[1],
            total_len: u16::from_be_bytes([fixed[2], fixed[3]]),
            id: u16::from_be_bytes([fixed[4], fixed[5]]),
            dont_fragment: flags & 0x4000 != 0,
            more_fragments: flags & 0x2000 != 0,
            fragment_offset: (flags & 0x1fff) * 8,
            ttl: fixed[8],
            protocol: fixed[9],
            src: Ipv4Addr::new(fixed[12], fixed[13], fixed[14], fixed[15]),
            dst: Ipv4Addr::new(fixed[16], fixed[17], fixed[18], fixed[19]),
            options: Options::parse(&header[MIN_HEADER..]),
            checksum: checksum::of_header(header),
            transport: Transport::Cut,
        }
    }

    fn parse_transport(&self, place: &Place<'_>) -> Transport {
        if self.fragment_offset > 0 {
            return Transport::LaterFragment;
        }
        let parsed = match self.protocol {
            PROTO_TCP => Tcp::parse(self, place).map(Transport::Tcp),
            PROTO_UDP => Udp::parse(self, place).map(Transport::Udp),
            PROTO_ICMP => Icmp::parse(self, place).map(Transport::Icmp),
            other => return Transport::Other(other),
        };
        parsed.unwrap_or(Transport::Cut)
    }

    /// Reads only the header, for a packet that an ICMP error quotes: neither its length nor its end need be
    /// there.
    pub(super) fn parse_quoted(data: &[u8]) -> Option<Self> {
        let fixed: [u8; MIN_HEADER] = bytes(data, 0)?;
        let header_len = usize::from(fixed[0] & 0x0f) * 4;
        if fixed[0] >> 4 != 4 || header_len < MIN_HEADER {
            return None;
        }
        Some(Self::from_header(&fixed, data.get(..header_len)?))
    }
}

/// Bytes of the packet on the wire. The field is zero in an offload packet beyond 64 KiB; such a packet
/// fills its frame.
fn length_on_wire(fixed: &[u8; MIN_HEADER], at: usize, original_len: usize) -> usize {
    match be16(fixed, 2) {
        Some(0) | None => original_len.saturating_sub(at),
        Some(length) => usize::from(length),
    }
}

impl Options {
    fn parse(raw: &[u8]) -> Self {
        let mut found = Self { raw: raw.to_vec(), ..Self::default() };
        let mut rest = raw;
        while let [kind, after @ ..] = rest {
            match *kind {
                END_OF_OPTIONS => break,
                NO_OPERATION => rest = after,
                kind => match after.first().map(|len| usize::from(*len)) {
                    Some(len) if (2..=rest.len()).contains(&len) => {
                        found.note(kind, &rest[..len]);
                        rest = &rest[len..];
                    }
                    _ => {
                        found.malformed = true;
                        break;
                    }
                },
            }
        }
        found
    }

    fn note(&mut self, kind: u8, option: &[u8]) {
        if kind != option::TYPE {
            return;
        }
        self.dsr_count += 1;
        match DsrOption::parse(option) {
            Some(dsr) => self.dsr = self.dsr.or(Some(dsr)),
            None => self.malformed = true,
        }
    }
}

impl DsrOption {
    fn parse(option: &[u8]) -> Option<Self> {
        let bytes: [u8; option::LEN] = option.try_into().ok()?;
        let (network, cilium) = option::decode(bytes).ok()?;
        let socket = |f: option::DsrFrontend| {
            SocketAddrV4::new(f.addr.to_ne_bytes().into(), u16::from_be_bytes(f.port.to_ne_bytes()))
        };
        Some(Self { bytes, network: socket(network), cilium: socket(cilium) })
    }
}
