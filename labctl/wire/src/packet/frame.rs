//! The Ethernet frame and what it carries.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::{Icmp, Ipv4, Tcp, Transport, Udp, be16, bytes};

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_VLAN: [u16; 2] = [0x8100, 0x88a8];

/// An Ethernet address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Whether it names a group, such as broadcast.
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A frame, as far as it was captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Bytes on the wire, from the Ethernet header on, without FCS.
    pub original_len: u32,
    /// Destination; all zero if not captured.
    pub dst: Mac,
    /// Source; all zero if not captured.
    pub src: Mac,
    /// Bytes of the Ethernet header, VLAN tags included.
    pub header_len: usize,
    /// Number of the outermost VLAN.
    pub vlan: Option<u16>,
    /// The payload of the frame.
    pub network: Network,
}

/// What a frame carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Network {
    /// IPv4.
    Ipv4(Ipv4),
    /// ARP for IPv4 over Ethernet.
    Arp(Arp),
    /// Another Ethertype.
    Other(u16),
    /// It says IPv4 and is none, or is too short for an Ethernet header; the text says why.
    Malformed(&'static str),
}

/// ARP (RFC 826).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// 1 request, 2 reply.
    pub operation: u16,
    /// Sender's Ethernet address.
    pub sender_mac: Mac,
    /// Sender's IPv4 address.
    pub sender: Ipv4Addr,
    /// Target's IPv4 address.
    pub target: Ipv4Addr,
}

impl Frame {
    /// Reads a frame of which `data` was captured and which had `original_len` bytes on the wire.
    pub fn parse(data: &[u8], original_len: u32) -> Self {
        Self::read(data, original_len, true)
    }

    /// As [`Frame::parse`], and leaves the checksums of TCP, UDP and ICMP [`super::Checksum::Unknown`]: they cost a look at
    /// every byte.
    pub fn headers(data: &[u8], original_len: u32) -> Self {
        Self::read(data, original_len, false)
    }

    fn read(data: &[u8], original_len: u32, sums: bool) -> Self {
        let original_len = original_len.max(data.len() as u32);
        let address = |at| bytes(data, at).map(Mac).unwrap_or_default();
        let (header_len, vlan, network) = parse_network(data, original_len as usize, sums);
        Self { original_len, dst: address(0), src: address(6), header_len, vlan, network }
    }

    /// The IPv4 packet.
    pub fn ipv4(&self) -> Option<&Ipv4> {
        match &self.network {
            Network::Ipv4(ip) => Some(ip),
            _ => None,
        }
    }

    /// The TCP header.
    pub fn tcp(&self) -> Option<&Tcp> {
        match &self.ipv4()?.transport {
            Transport::Tcp(tcp) => Some(tcp),
            _ => None,
        }
    }

    /// The UDP header.
    pub fn udp(&self) -> Option<&Udp> {
        match &self.ipv4()?.transport {
            Transport::Udp(udp) => Some(udp),
            _ => None,
        }
    }

    /// The ICMP message.
    pub fn icmp(&self) -> Option<&Icmp> {
        match &self.ipv4()?.transport {
            Transport::Icmp(icmp) => Some(icmp),
            _ => None,
        }
    }

    /// Source and destination of a TCP segment or UDP datagram.
    pub fn sockets(&self) -> Option<(SocketAddrV4, SocketAddrV4)> {
        let ip = self.ipv4()?;
        let (src, dst) = match &ip.transport {
            Transport::Tcp(tcp) => (tcp.src_port, tcp.dst_port),
            Transport::Udp(udp) => (udp.src_port, udp.dst_port),
            _ => return None,
        };
        Some((SocketAddrV4::new(ip.src, src), SocketAddrV4::new(ip.dst, dst)))
    }

    /// Where the TCP or UDP payload lies in the captured bytes; empty if there is none or it was cut off.
    pub fn payload(&self) -> Range<usize> {
        match self.ipv4().map(|ip| &ip.transport) {
            Some(Transport::Tcp(tcp)) => tcp.payload.clone(),
            Some(Transport::Udp(udp)) => udp.payload.clone(),
            _ => 0..0,
        }
    }
}

fn parse_network(data: &[u8], original_len: usize, sums: bool) -> (usize, Option<u16>, Network) {
    let short = Network::Malformed("frame is shorter than an Ethernet header");
    let Some(mut ethertype) = be16(data, 12) else { return (14, None, short) };
    let (mut vlan, mut at) = (None, 14);
    while ETHERTYPE_VLAN.contains(&ethertype) {
        let (Some(tag), Some(next)) = (be16(data, at), be16(data, at + 2)) else {
            return (at, vlan, Network::Malformed("frame ends inside a VLAN tag"));
        };
        vlan = vlan.or(Some(tag & 0x0fff));
        (ethertype, at) = (next, at + 4);
    }
    let network = match ethertype {
        ETHERTYPE_IPV4 => {
            Ipv4::parse(data, at, original_len, sums).map_or_else(Network::Malformed, Network::Ipv4)
        }
        ETHERTYPE_ARP => parse_arp(data, at).map_or(Network::Other(ethertype), Network::Arp),
        other => Network::Other(other),
    };
    (at, vlan, network)
}

/// ARP with hardware type Ethernet and protocol type IPv4; anything else is of no use here.
fn parse_arp(data: &[u8], at: usize) -> Option<Arp> {
    let kinds: [u8; 6] = bytes(data, at)?;
    if kinds != [0, 1, 8, 0, 6, 4] {
        return None;
    }
    Some(Arp {
        operation: be16(data, at + 6)?,
        sender_mac: Mac(bytes(data, at + 8)?),
        sender: bytes::<4>(data, at + 14)?.into(),
        target: bytes::<4>(data, at + 24)?.into(),
    })
}
