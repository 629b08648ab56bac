//! The classic capture format of libpcap, read as a stream: both byte orders, microseconds and nanoseconds.
//!
//! Owns: its file header and packet records (draft-ietf-opsawg-pcap). Does not own: what link types mean ([`crate::link`]). It is
//! only read: what labctl writes is pcapng, which can say where and which way.

use std::io::{self, Read};

use crate::pcapng::{Block, Interface, Order, Packet};
use crate::point::Direction;

/// Magic numbers: the second half of a time stamp is microseconds, or nanoseconds.
const MICROSECONDS: u32 = 0xa1b2_c3d4;
const NANOSECONDS: u32 = 0xa1b2_3c4d;

/// No link's frame is larger; libpcap's own limit (`MAXIMUM_SNAPLEN`) is 256 KiB.
const LARGEST_PACKET: u32 = 16 << 20;

/// Why a file could not be read. Offsets are bytes from its start.
#[derive(Debug, thiserror::Error)]
pub enum PcapError {
    /// The source failed.
    #[error("read pcap at offset {offset}: {source}")]
    Io {
        /// Where.
        offset: u64,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The input ends inside a record, or inside the file's header.
    #[error("read pcap: the file ends inside the record at offset {offset}; what precedes it is whole")]
    Truncated {
        /// Where the record begins.
        offset: u64,
    },
    /// A record contradicts itself.
    #[error("read pcap: record at offset {offset}: {reason}")]
    BadRecord {
        /// Where it begins.
        offset: u64,
        /// What is wrong.
        reason: &'static str,
    },
}

/// Byte order and unit of time, by the file's first four bytes; `None` if they begin no such file.
fn kind(magic: [u8; 4]) -> Option<(Order, u64)> {
    let known = |number| match number {
        MICROSECONDS => Some(1_000),
        NANOSECONDS => Some(1),
        _ => None,
    };
    let little = known(u32::from_le_bytes(magic)).map(|unit| (Order::Little, unit));
    little.or_else(|| known(u32::from_be_bytes(magic)).map(|unit| (Order::Big, unit)))
}

/// Whether a file that begins so is a classic one.
pub(crate) fn is_pcap(magic: [u8; 4]) -> bool {
    kind(magic).is_some()
}

/// A streaming reader; iterate over it: first the one interface, then packets. After an error the iteration ends.
#[derive(Debug)]
pub(crate) struct PcapReader<R> {
    input: R,
    offset: u64,
    /// Byte order, and nanoseconds of the smaller unit of time; `None` before the header was read.
    kind: Option<(Order, u64)>,
    ended: bool,
}

impl<R: Read> PcapReader<R> {
    pub(crate) const fn new(input: R) -> Self {
        Self { input, offset: 0, kind: None, ended: false }
    }

    fn next_block(&mut self) -> Result<Option<Block>, PcapError> {
        match self.kind {
            None => self.header().map(|interface| Some(Block::Interface(interface))),
            Some((order, unit)) => self.record(order, unit),
        }
    }

    /// Magic, version, two unused words, snap length, link type.
    fn header(&mut self) -> Result<Interface, PcapError> {
        let mut head = [0u8; 24];
        if self.fill(&mut head)? < head.len() {
            return Err(PcapError::Truncated { offset: 0 });
        }
        let [m0, m1, m2, m3, ..] = head;
        let bad = PcapError::BadRecord { offset: 0, reason: "it does not begin with pcap's magic number" };
        let (order, unit) = kind([m0, m1, m2, m3]).ok_or(bad)?;
        self.kind = Some((order, unit));
        let word = |at: usize| order.u32([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        Ok(Interface {
            index: 0,
            name: String::new(),
            description: String::new(),
            // The upper bits tell of a frame check sequence, which capture programs leave out all the same.
            link_type: (word(20) & 0xffff) as u16,
            snaplen: word(16),
            mac: None,
        })
    }

    /// Seconds, smaller units, captured length, length on the wire, bytes.
    fn record(&mut self, order: Order, unit: u64) -> Result<Option<Block>, PcapError> {
        let offset = self.offset;
        let mut head = [0u8; 16];
        match self.fill(&mut head)? {
            0 => return Ok(None),
            16 => {}
            _ => return Err(PcapError::Truncated { offset }),
        }
        let word = |at: usize| order.u32([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (captured, original_len) = (word(8), word(12));
        if captured > LARGEST_PACKET {
            let reason = "its length is over 16 MiB, which no packet needs";
            return Err(PcapError::BadRecord { offset, reason });
        }
        let mut data = Vec::new();
        // Grows with the bytes that come, not with the length that a damaged field claims.
        let read = (&mut self.input).take(u64::from(captured)).read_to_end(&mut data);
        let read = read.map_err(|source| PcapError::Io { offset, source })?;
        self.offset += read as u64;
        if read < captured as usize {
            return Err(PcapError::Truncated { offset });
        }
        let ts_ns = u64::from(word(0)) * 1_000_000_000 + u64::from(word(4)) * unit;
        let direction = Direction::Unknown;
        Ok(Some(Block::Packet(Packet { interface: 0, ts_ns, original_len, data, direction, comment: None })))
    }

    /// As [`fill`], and counts.
    fn fill(&mut self, bytes: &mut [u8]) -> Result<usize, PcapError> {
        let filled = fill(&mut self.input, bytes);
        let filled = filled.map_err(|source| PcapError::Io { offset: self.offset, source })?;
        self.offset += filled as u64;
        Ok(filled)
    }
}

/// Fills `bytes` as far as the input goes; how far that is.
pub(crate) fn fill(input: &mut impl Read, bytes: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < bytes.len() {
        match input.read(&mut bytes[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

impl<R: Read> Iterator for PcapReader<R> {
    type Item = Result<Block, PcapError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.next_block();
        self.ended = !matches!(next, Ok(Some(_)));
        next.transpose()
    }
}
