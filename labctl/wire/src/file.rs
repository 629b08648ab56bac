//! A capture file as people have it: of any program, compressed or not, whole or cut short.
//!
//! Owns: telling what a file is from its content, never from its name, and reading as much of it as there is. Does not own: the
//! formats ([`crate::pcap`], [`crate::pcapng`]) or opening files. A run's own evidence is read by [`CaptureFile::read`],
//! which takes nothing less than a whole pcapng file.

use std::io::{self, Read};

use crate::capture::{CaptureError, CaptureFile};
use crate::pcap::{self, PcapError, PcapReader, fill};
use crate::pcapng::{Block, ReadError, Reader};

/// What was read, and what could not be.
#[derive(Clone, Debug, Default)]
pub struct Opened {
    /// Packets in the order of time.
    pub capture: CaptureFile,
    /// What is missing, for people: `the file ends inside the block at offset 1234`. Absence in such a file proves nothing.
    pub shortfalls: Vec<String>,
}

/// Why nothing of a file could be read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The source failed.
    #[error("read capture: {0}")]
    Io(#[from] io::Error),
    /// It is no capture.
    #[error(
        "read capture: neither pcap nor pcapng, plain or compressed by gzip or zstd (it begins with {found}); convert it with `editcap -F pcapng`"
    )]
    Unknown {
        /// Its first bytes in hexadecimal digits.
        found: String,
    },
    /// It has nothing at all.
    #[error("read capture: the file is empty")]
    Empty,
    /// Unpacked it is larger than this program takes.
    #[error("read capture: more than {limit} bytes of packets; cut it with `editcap -c` or filter it first")]
    TooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// A classic file is damaged.
    #[error(transparent)]
    Pcap(#[from] PcapError),
    /// A pcapng file is damaged.
    #[error(transparent)]
    Pcapng(#[from] ReadError),
    /// The compressed data cannot be unpacked.
    #[error("unpack capture: {0}")]
    Unpack(String),
    /// Packets of a kind that is not understood.
    #[error(transparent)]
    Capture(#[from] CaptureError),
}

const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Reads a file of at most `limit` bytes, unpacked.
///
/// # Errors
/// [`FileError`] if nothing can be made of it. A file that ends early, or is damaged behind some packets, is not an error:
/// what precedes is read, and [`Opened::shortfalls`] says what happened.
pub fn read(mut input: impl Read, limit: u64) -> Result<Opened, FileError> {
    let mut head = [0u8; 4];
    let filled = fill(&mut input, &mut head)?;
    let whole = head[..filled].chain(input);
    match head {
        _ if filled == 0 => Err(FileError::Empty),
        [a, b, ..] if [a, b] == GZIP => unpacked(flate2::read::MultiGzDecoder::new(whole), limit),
        ZSTD => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(whole);
            unpacked(decoder.map_err(|error| FileError::Unpack(error.to_string()))?, limit)
        }
        _ => packets(head, filled, whole, limit),
    }
}

/// Reads what was compressed: once only, so that nothing can unpack for ever.
fn unpacked(mut input: impl Read, limit: u64) -> Result<Opened, FileError> {
    let mut head = [0u8; 4];
    let filled = fill(&mut input, &mut head).map_err(|error| FileError::Unpack(error.to_string()))?;
    let whole = head[..filled].chain(input);
    packets(head, filled, whole, limit)
}

fn packets(head: [u8; 4], filled: usize, input: impl Read, limit: u64) -> Result<Opened, FileError> {
    // One byte more than the limit tells a file of that size from a larger one.
    let mut input = Counted { input, left: limit.saturating_add(1) };
    let opened = if pcap::is_pcap(head) {
        intake(PcapReader::new(&mut input).map(|block| block.map_err(FileError::from)))
    } else if head == [0x0a, 0x0d, 0x0d, 0x0a] {
        intake(Reader::new(&mut input).map(|block| block.map_err(FileError::from)))
    } else {
        let found = head[..filled].iter().map(|byte| format!("{byte:02x}")).collect();
        Err(FileError::Unknown { found })
    };
    if input.left == 0 {
        return Err(FileError::TooLarge { limit });
    }
    opened
}

/// Takes every block up to the first that is none, and says what it had to leave out.
fn intake(blocks: impl Iterator<Item = Result<Block, FileError>>) -> Result<Opened, FileError> {
    let mut capture = CaptureFile::default();
    let mut errors = Vec::new();
    for block in blocks {
        let taken = block.and_then(|block| Ok(capture.take(block)?));
        errors.extend(taken.err());
    }
    capture.sort();
    if capture.packets().is_empty() && !errors.is_empty() {
        return Err(errors.swap_remove(0));
    }
    Ok(Opened { capture, shortfalls: errors.iter().map(ToString::to_string).collect() })
}

/// A source that ends after so many bytes.
struct Counted<R> {
    input: R,
    left: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.input.read(&mut buffer[..most])?;
        self.left -= read as u64;
        Ok(read)
    }
}
