//! Reads pcapng as a stream: both byte orders, several sections, any time resolution. Blocks and options
//! that it does not know are passed over; a block that contradicts itself is an error with its offset.

use std::io::{self, Read};

use super::{MAGIC, block, code, padding};
use crate::packet::Mac;
use crate::point::{CapturePoint, Direction, HostKind};

/// No sane block is larger: the largest frame is 64 KiB plus headers. Guards against allocating what a
/// damaged length field says.
const LARGEST_BLOCK: usize = 16 << 20;

/// Why a block could not be read. Offsets are bytes from the start of the input.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The source failed.
    #[error("read pcapng at offset {offset}: {source}")]
    Io {
        /// Where.
        offset: u64,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The input does not begin with a section header.
    #[error(
        "read pcapng: this is not a pcapng file (it begins with {found:#010x}); convert it with `editcap -F pcapng`"
    )]
    NotPcapng {
        /// The first four bytes.
        found: u32,
    },
    /// The input ends inside a block: the program that wrote it was stopped, or the disk was full.
    #[error("read pcapng: the file ends inside the block at offset {offset}; what precedes it is whole")]
    Truncated {
        /// Where that block begins.
        offset: u64,
    },
    /// A block contradicts itself.
    #[error("read pcapng: block of type {kind:#x} at offset {offset}: {reason}")]
    BadBlock {
        /// Where it begins.
        offset: u64,
        /// Its type.
        kind: u32,
        /// What is wrong.
        reason: &'static str,
    },
}

/// One thing that a file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Block {
    /// An interface; its number counts from 0 over all sections of the file.
    Interface(Interface),
    /// A packet.
    Packet(Packet),
    /// Counters of an interface.
    Statistics(Statistics),
}

/// An interface description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Number over all sections of the file, from 0.
    pub index: u32,
    /// `if_name`, empty if absent.
    pub name: String,
    /// `if_description`, empty if absent.
    pub description: String,
    /// `LINKTYPE_*`; [`crate::link`] says what each means.
    pub link_type: u16,
    /// Largest number of captured bytes, 0 for no limit.
    pub snaplen: u32,
    /// The interface's own Ethernet address, if the file says.
    pub mac: Option<Mac>,
}

impl Interface {
    /// The capture point, if this interface was written by [`super::Writer`].
    pub fn point(&self) -> Option<CapturePoint> {
        let (host, interface) = self.name.split_once(':')?;
        let (kind, _) = self.description.split_once(':')?;
        let kind = match kind {
            "client" => HostKind::Client,
            "node" => HostKind::Node,
            "pod" => HostKind::Pod,
            _ => return None,
        };
        Some(CapturePoint { host: host.to_owned(), kind, interface: interface.to_owned() })
    }
}

/// A captured packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Number of its interface over all sections.
    pub interface: u32,
    /// Time in nanoseconds, converted from the interface's resolution; 0 in a Simple Packet Block, which has none.
    pub ts_ns: u64,
    /// Bytes on the wire.
    pub original_len: u32,
    /// Bytes captured, from the link header on.
    pub data: Vec<u8>,
    /// Direction at the interface.
    pub direction: Direction,
    /// Comments, joined by newlines.
    pub comment: Option<String>,
}

/// Counters of an interface, from the start of its capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statistics {
    /// Number of the interface over all sections.
    pub interface: u32,
    /// When they were read, ns.
    pub ts_ns: u64,
    /// Packets that passed the filter, if the file says.
    pub received: Option<u64>,
    /// Packets that the system dropped, if the file says.
    pub dropped: Option<u64>,
}

/// Byte order of a section, or of a classic file.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Order {
    Little,
    Big,
}

impl Order {
    pub(crate) fn u16(self, b: [u8; 2]) -> u16 {
        match self {
            Self::Little => u16::from_le_bytes(b),
            Self::Big => u16::from_be_bytes(b),
        }
    }

    pub(crate) fn u32(self, b: [u8; 4]) -> u32 {
        match self {
            Self::Little => u32::from_le_bytes(b),
            Self::Big => u32::from_be_bytes(b),
        }
    }

    fn u64(self, b: [u8; 8]) -> u64 {
        match self {
            Self::Little => u64::from_le_bytes(b),
            Self::Big => u64::from_be_bytes(b),
        }
    }
}

/// Time resolution of an interface: `if_tsresol` and `if_tsoffset`.
#[derive(Clone, Copy, Debug)]
struct Clock {
    units_per_second: u64,
    offset_seconds: i64,
}

impl Default for Clock {
    /// Microseconds, when the file is silent (section 4.2).
    fn default() -> Self {
        Self { units_per_second: 1_000_000, offset_seconds: 0 }
    }
}

impl Clock {
    fn nanoseconds(self, units: u64) -> u64 {
        let ns = u128::from(units) * 1_000_000_000 / u128::from(self.units_per_second);
        let ns = ns as i128 + i128::from(self.offset_seconds) * 1_000_000_000;
        u64::try_from(ns.max(0)).unwrap_or(u64::MAX)
    }
}

/// What packets need to know of their interface.
#[derive(Clone, Copy, Debug)]
struct Described {
    clock: Clock,
    /// 0 for no limit.
    snaplen: u32,
}

/// `if_tsresol`: a power of ten, or of two if the top bit is set. `None` if it does not fit 64 bits.
fn resolution(byte: u8) -> Option<u64> {
    let exponent = u32::from(byte & 0x7f);
    if byte & 0x80 == 0 { 10u64.checked_pow(exponent) } else { 1u64.checked_shl(exponent) }
}

/// A streaming reader; iterate over it. After an error the iteration ends.
#[derive(Debug)]
pub struct Reader<R: Read> {
    input: R,
    /// Where the next block begins.
    offset: u64,
    order: Order,
    /// Interfaces of the earlier sections: their numbers begin anew in each section.
    base: u32,
    /// This section's interfaces.
    interfaces: Vec<Described>,
    started: bool,
    ended: bool,
    body: Vec<u8>,
}

/// A block whose body is in the reader's buffer.
#[derive(Clone, Copy)]
struct Raw {
    kind: u32,
    offset: u64,
}

impl Raw {
    fn bad(self, reason: &'static str) -> ReadError {
        ReadError::BadBlock { offset: self.offset, kind: self.kind, reason }
    }
}

impl<R: Read> Reader<R> {
    /// A reader; nothing is read yet. Wrap files in a `BufReader`: headers are read in small pieces.
    pub fn new(input: R) -> Self {
        Self {
            input,
            offset: 0,
            order: Order::Little,
            base: 0,
            interfaces: Vec::new(),
            started: false,
            ended: false,
            body: Vec::new(),
        }
    }

    fn next_block(&mut self) -> Result<Option<Block>, ReadError> {
        while let Some(raw) = self.read_block()? {
            let found = match raw.kind {
                block::INTERFACE => Some(Block::Interface(self.interface(raw)?)),
                block::PACKET => Some(Block::Packet(self.packet(raw)?)),
                block::OLD_PACKET => Some(Block::Packet(self.old_packet(raw)?)),
                block::SIMPLE_PACKET => Some(Block::Packet(self.simple_packet(raw)?)),
                block::STATISTICS => Some(Block::Statistics(self.statistics(raw)?)),
                _ => None,
            };
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Reads the next block into `body` (without type and lengths), or `None` at the end of the input.
    fn read_block(&mut self) -> Result<Option<Raw>, ReadError> {
        let offset = self.offset;
        let mut head = [0u8; 8];
        if !self.fill_or_end(&mut head)? {
            return Ok(None);
        }
        let [k0, k1, k2, k3, l0, l1, l2, l3] = head;
        // The section's type is a palindrome, so any order reads it.
        if self.order.u32([k0, k1, k2, k3]) == block::SECTION {
            self.begin_section(offset)?;
        } else if !self.started {
            return Err(ReadError::NotPcapng { found: u32::from_be_bytes([k0, k1, k2, k3]) });
        }
        let raw = Raw { kind: self.order.u32([k0, k1, k2, k3]), offset };
        let total = self.order.u32([l0, l1, l2, l3]) as usize;
        if total < block::OVERHEAD || !total.is_multiple_of(4) {
            return Err(raw.bad("its length is not a multiple of four or too small"));
        }
        if total > LARGEST_BLOCK {
            return Err(raw.bad("its length is over 16 MiB, which no packet needs"));
        }
        // A section header's magic has been taken already: it decides how to read the length.
        let taken = if raw.kind == block::SECTION { 12 } else { 8 };
        let rest = total.checked_sub(taken + 4).ok_or_else(|| raw.bad("it is too short for a section"))?;
        self.read_body(raw, rest, total)?;
        Ok(Some(raw))
    }

    fn read_body(&mut self, raw: Raw, len: usize, total: usize) -> Result<(), ReadError> {
        self.body.clear();
        // Grows with the bytes that come, not with the length that a damaged field claims.
        let read = (&mut self.input).take(len as u64).read_to_end(&mut self.body);
        let read = read.map_err(|source| ReadError::Io { offset: self.offset, source })?;
        self.offset += read as u64;
        if read < len {
            return Err(ReadError::Truncated { offset: raw.offset });
        }
        let mut trailer = [0u8; 4];
        self.fill(&mut trailer, raw.offset)?;
        if self.order.u32(trailer) as usize != total {
            return Err(raw.bad("its two length fields differ"));
        }
        Ok(())
    }

    fn begin_section(&mut self, offset: u64) -> Result<(), ReadError> {
        let mut magic = [0u8; 4];
        self.fill(&mut magic, offset)?;
        self.order = match (u32::from_le_bytes(magic), u32::from_be_bytes(magic)) {
            (MAGIC, _) => Order::Little,
            (_, MAGIC) => Order::Big,
            _ => {
                let raw = Raw { kind: block::SECTION, offset };
                return Err(raw.bad("its byte order magic is wrong"));
            }
        };
        self.started = true;
        self.base += self.interfaces.len() as u32;
        self.interfaces.clear();
        Ok(())
    }

    fn interface(&mut self, raw: Raw) -> Result<Interface, ReadError> {
        let (head, options) = self.split::<8>(raw)?;
        let [t0, t1, _, _, s0, s1, s2, s3] = head;
        let mut clock = Clock::default();
        let mut found = Interface {
            index: self.base + self.interfaces.len() as u32,
            name: String::new(),
            description: String::new(),
            link_type: self.order.u16([t0, t1]),
            snaplen: self.order.u32([s0, s1, s2, s3]),
            mac: None,
        };
        for (option, value) in self.options(options) {
            match (option, value) {
                (code::INTERFACE_NAME, text) => found.name = lossy(text),
                (code::INTERFACE_DESCRIPTION, text) => found.description = lossy(text),
                (code::INTERFACE_MAC, &[a, b, c, d, e, f]) => found.mac = Some(Mac([a, b, c, d, e, f])),
                (code::INTERFACE_RESOLUTION, [byte, ..]) => {
                    clock.units_per_second =
                        resolution(*byte).ok_or_else(|| raw.bad("its time resolution is out of range"))?;
                }
                (code::INTERFACE_OFFSET, &[a, b, c, d, e, f, g, h]) => {
                    clock.offset_seconds = self.order.u64([a, b, c, d, e, f, g, h]) as i64;
                }
                _ => {}
            }
        }
        self.interfaces.push(Described { clock, snaplen: found.snaplen });
        Ok(found)
    }

    fn packet(&self, raw: Raw) -> Result<Packet, ReadError> {
        let (head, rest) = self.split::<20>(raw)?;
        self.timed_packet(raw, self.word(&head, 0), &head, rest)
    }

    /// The obsolete Packet Block (section A.1 of the draft): as an enhanced one, but for two numbers of 16 bits in the first
    /// word, the interface and a count of drops.
    fn old_packet(&self, raw: Raw) -> Result<Packet, ReadError> {
        let (head, rest) = self.split::<20>(raw)?;
        self.timed_packet(raw, u32::from(self.order.u16([head[0], head[1]])), &head, rest)
    }

    fn timed_packet(
        &self,
        raw: Raw,
        interface: u32,
        head: &[u8; 20],
        rest: &[u8],
    ) -> Result<Packet, ReadError> {
        let (interface, clock) = self.clock(raw, interface)?;
        let captured = self.word(head, 12) as usize;
        let padded = captured.saturating_add(padding(captured));
        if padded > rest.len() {
            return Err(raw.bad("it holds less data than it says"));
        }
        let mut found = Packet {
            interface,
            ts_ns: clock.nanoseconds(self.units(head)),
            original_len: self.word(head, 16),
            data: rest[..captured].to_vec(),
            direction: Direction::Unknown,
            comment: None,
        };
        for (option, value) in self.options(&rest[padded..]) {
            match (option, value) {
                (code::COMMENT, text) => {
                    let text = lossy(text);
                    found.comment = Some(found.comment.map_or(text.clone(), |c| c + "\n" + &text));
                }
                (code::PACKET_FLAGS, &[a, b, c, d]) => {
                    found.direction = Direction::from_flags(self.order.u32([a, b, c, d]));
                }
                _ => {}
            }
        }
        Ok(found)
    }

    /// A Simple Packet Block (section 4.4): of the section's first interface, at no known time, and as long as that
    /// interface's snap length lets it be.
    fn simple_packet(&self, raw: Raw) -> Result<Packet, ReadError> {
        let (head, rest) = self.split::<4>(raw)?;
        let first = self.interfaces.first();
        let first = first.ok_or_else(|| raw.bad("it comes before any interface was described"))?;
        let original_len = self.order.u32(head);
        let limit = if first.snaplen == 0 { u32::MAX } else { first.snaplen };
        let captured = original_len.min(limit) as usize;
        let data = rest.get(..captured).ok_or_else(|| raw.bad("it holds less data than it says"))?.to_vec();
        Ok(Packet {
            interface: self.base,
            ts_ns: 0,
            original_len,
            data,
            direction: Direction::Unknown,
            comment: None,
        })
    }

    fn statistics(&self, raw: Raw) -> Result<Statistics, ReadError> {
        let (head, options) = self.split::<12>(raw)?;
        let (interface, clock) = self.clock(raw, self.word(&head, 0))?;
        let mut received = None;
        let mut dropped: Option<u64> = None;
        for (option, value) in self.options(options) {
            let Ok(bytes) = <[u8; 8]>::try_from(value) else { continue };
            let count = self.order.u64(bytes);
            match option {
                code::STATISTICS_RECEIVED => received = Some(count),
                // Writers put the kernel's count into either or both: the larger one is the truth.
                code::STATISTICS_INTERFACE_DROP | code::STATISTICS_SYSTEM_DROP => {
                    dropped = Some(dropped.map_or(count, |d| d.max(count)));
                }
                _ => {}
            }
        }
        let ts_ns = clock.nanoseconds(self.units(&head));
        Ok(Statistics { interface, ts_ns, received, dropped })
    }

    /// The interface of a packet or of counters, by its number in this section.
    fn clock(&self, raw: Raw, number: u32) -> Result<(u32, Clock), ReadError> {
        let described = self.interfaces.get(number as usize);
        let described = described.ok_or_else(|| raw.bad("it names an interface that was not described"))?;
        Ok((self.base + number, described.clock))
    }

    /// The fixed part of the body and what follows.
    fn split<const N: usize>(&self, raw: Raw) -> Result<([u8; N], &[u8]), ReadError> {
        let (head, rest) = self.body.split_first_chunk::<N>().ok_or_else(|| raw.bad("it is too short"))?;
        Ok((*head, rest))
    }

    fn word(&self, head: &[u8], at: usize) -> u32 {
        self.order.u32([head[at], head[at + 1], head[at + 2], head[at + 3]])
    }

    /// The time stamp at offset 4 of packets and counters: high half first.
    fn units(&self, head: &[u8]) -> u64 {
        u64::from(self.word(head, 4)) << 32 | u64::from(self.word(head, 8))
    }

    /// Options up to the end mark, or as far as they are whole.
    fn options<'a>(&self, bytes: &'a [u8]) -> impl Iterator<Item = (u16, &'a [u8])> + use<'a, R> {
        let order = self.order;
        let mut rest = bytes;
        std::iter::from_fn(move || {
            let (&[c0, c1, l0, l1], after) = rest.split_first_chunk::<4>()?;
            let (code, len) = (order.u16([c0, c1]), usize::from(order.u16([l0, l1])));
            if code == code::END {
                return None;
            }
            let value = after.get(..len)?;
            rest = after.get(len + padding(len)..).unwrap_or(&[]);
            Some((code, value))
        })
    }

    /// Fills `bytes`; the end of the input is an error.
    fn fill(&mut self, bytes: &mut [u8], block: u64) -> Result<(), ReadError> {
        match self.input.read_exact(bytes) {
            Ok(()) => {
                self.offset += bytes.len() as u64;
                Ok(())
            }
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Err(ReadError::Truncated { offset: block }),
            Err(source) => Err(ReadError::Io { offset: self.offset, source }),
        }
    }

    /// Fills `bytes`, or says `false` if the input ends just here.
    fn fill_or_end(&mut self, bytes: &mut [u8]) -> Result<bool, ReadError> {
        let block = self.offset;
        let mut first = [0u8; 1];
        loop {
            match self.input.read(&mut first) {
                Ok(0) => return Ok(false),
                Ok(_) => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(ReadError::Io { offset: block, source }),
            }
        }
        self.offset += 1;
        bytes[0] = first[0];
        self.fill(&mut bytes[1..], block)?;
        Ok(true)
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl<R: Read> Iterator for Reader<R> {
    type Item = Result<Block, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.next_block();
        self.ended = !matches!(next, Ok(Some(_)));
        next.transpose()
    }
}
