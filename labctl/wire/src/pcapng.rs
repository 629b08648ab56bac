//! The pcapng file format: a writer and a reader, both streaming.
//!
//! Owns: the bytes of section header, interface description, packet (enhanced, simple, and the obsolete one) and interface
//! statistics blocks. Does not own: files and sockets (it takes any `Write` or `Read`) or the meaning of a frame
//! ([`crate::packet`]). The capture role writes with it, the verdict reads with it, and both ends may be
//! a pipe.
//!
//! Written here and not taken from a crate: pcap-file 2.0 has no packet flags on its fast path, no file
//! offsets in its errors and takes every time stamp for nanoseconds whatever `if_tsresol` says; 3.0 is a
//! release candidate. The format is small: draft-ietf-opsawg-pcapng, sections 3 and 4.

mod read;
mod write;

pub(crate) use read::Order;

pub use read::{Block, Interface, Packet, ReadError, Reader, Statistics};
pub use write::{WriteError, Writer};

/// Block types (draft-ietf-opsawg-pcapng section 11.1).
mod block {
    /// Section Header Block; reads the same in both byte orders.
    pub(super) const SECTION: u32 = 0x0a0d_0d0a;
    /// Interface Description Block.
    pub(super) const INTERFACE: u32 = 1;
    /// Packet Block, obsolete; old programs write it.
    pub(super) const OLD_PACKET: u32 = 2;
    /// Simple Packet Block: neither time nor interface.
    pub(super) const SIMPLE_PACKET: u32 = 3;
    /// Interface Statistics Block.
    pub(super) const STATISTICS: u32 = 5;
    /// Enhanced Packet Block.
    pub(super) const PACKET: u32 = 6;
    /// Type, total length, and the total length again at the end.
    pub(super) const OVERHEAD: usize = 12;
}

/// Option codes; those below 2 mean the same in every block.
mod code {
    pub(super) const END: u16 = 0;
    pub(super) const COMMENT: u16 = 1;
    pub(super) const SECTION_APPLICATION: u16 = 4;
    pub(super) const INTERFACE_NAME: u16 = 2;
    pub(super) const INTERFACE_DESCRIPTION: u16 = 3;
    pub(super) const INTERFACE_MAC: u16 = 6;
    pub(super) const INTERFACE_RESOLUTION: u16 = 9;
    pub(super) const INTERFACE_OFFSET: u16 = 14;
    pub(super) const PACKET_FLAGS: u16 = 2;
    pub(super) const STATISTICS_RECEIVED: u16 = 4;
    pub(super) const STATISTICS_INTERFACE_DROP: u16 = 5;
    pub(super) const STATISTICS_SYSTEM_DROP: u16 = 7;
}

/// Byte order magic of the section header.
pub(crate) const MAGIC: u32 = 0x1a2b_3c4d;

/// The snap length that means "everything", as tcpdump writes it.
pub const SNAPLEN_WHOLE: u32 = 262_144;

/// Bytes to the next multiple of four.
const fn padding(len: usize) -> usize {
    len.wrapping_neg() & 3
}
