//! A captured Ethernet frame as a typed value.
//!
//! Owns: what the bytes of one frame say, and whether its checksums are right. Does not own: where and when
//! it was seen ([`crate::capture`]) or which exchange it belongs to ([`crate::flow`]). Input is untrusted and
//! often cut by the snap length, so parsing never fails and never panics: what is not there is `None`, `Cut`
//! or `Malformed`. Header length always comes from IHL or data offset.

mod checksum;
mod frame;
mod icmp;
mod ipv4;
mod transport;

pub use checksum::Checksum;
pub use frame::{Arp, Frame, Mac, Network};
pub use icmp::{Icmp, Quote};
pub use ipv4::{DsrOption, Ipv4, Options};
pub use transport::{Tcp, TcpFlags, Transport, Udp};

/// The `N` bytes at `at`, if they were captured.
fn bytes<const N: usize>(data: &[u8], at: usize) -> Option<[u8; N]> {
    data.get(at..)?.first_chunk::<N>().copied()
}

fn be16(data: &[u8], at: usize) -> Option<u16> {
    bytes(data, at).map(u16::from_be_bytes)
}

fn be32(data: &[u8], at: usize) -> Option<u32> {
    bytes(data, at).map(u32::from_be_bytes)
}
