//! Whether a checksum field is right, and the cases in which that cannot or need not be said.

use std::net::Ipv4Addr;

use datapath_types::checksum;
use serde::{Deserialize, Serialize};

/// What is known about a checksum field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Checksum {
    /// The field is the checksum of the bytes.
    Right,
    /// It is not.
    Wrong,
    /// Not all bytes that it covers were captured, or they are spread over fragments.
    Unknown,
    /// The field holds the folded sum of the pseudo header: the sender's stack left the rest to the NIC
    /// (`CHECKSUM_PARTIAL`), which on a veth nobody ever does.
    Partial,
    /// UDP without a checksum: the field is zero, which IPv4 allows (RFC 768).
    Absent,
}

/// Checks an IPv4 header whose bytes are all there, its checksum field included.
pub(super) fn of_header(header: &[u8]) -> Checksum {
    if checksum::of(header, 0) == 0 { Checksum::Right } else { Checksum::Wrong }
}

/// A TCP or UDP segment.
pub(super) struct Segment<'a> {
    pub(super) src: Ipv4Addr,
    pub(super) dst: Ipv4Addr,
    pub(super) protocol: u8,
    /// Length in the pseudo header: of header and payload on the wire.
    pub(super) length: usize,
    /// The segment as far as it was captured, at most `length`.
    pub(super) captured: &'a [u8],
    /// Offset of the checksum field in it.
    pub(super) field_at: usize,
}

impl Segment<'_> {
    /// Judges the checksum field, or `None` if it was not captured.
    pub(super) fn judge(&self) -> Option<Checksum> {
        let field = super::bytes::<2>(self.captured, self.field_at).map(u16::from_ne_bytes)?;
        if field == 0 && self.protocol == datapath_types::PROTO_UDP {
            return Some(Checksum::Absent);
        }
        let pseudo = self.pseudo_header();
        let whole = self.captured.len() == self.length;
        if whole && checksum::of(self.captured, pseudo) == 0 {
            return Some(Checksum::Right);
        }
        // Not inverted: the NIC adds the rest and inverts (`tcp_v4_send_check`: `~tcp_v4_check(..)`).
        if same_sum(field, checksum::fold(pseudo)) {
            return Some(Checksum::Partial);
        }
        Some(if whole { Checksum::Wrong } else { Checksum::Unknown })
    }

    fn pseudo_header(&self) -> u64 {
        // A segmentation offload packet beyond 64 KiB ("BIG TCP") wraps here as it does in the kernel.
        checksum::pseudo_header(
            u32::from_ne_bytes(self.src.octets()),
            u32::from_ne_bytes(self.dst.octets()),
            self.protocol,
            self.length as u16,
        )
    }
}

/// Equality of one's complement sums: zero has two spellings.
const fn same_sum(a: u16, b: u16) -> bool {
    a == b || (a == 0 && b == 0xffff) || (a == 0xffff && b == 0)
}

/// Checks ICMP, which has no pseudo header.
pub(super) fn of_icmp(captured: &[u8], length: usize) -> Checksum {
    if captured.len() < length {
        return Checksum::Unknown;
    }
    of_header(captured)
}
