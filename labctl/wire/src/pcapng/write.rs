//! Writes pcapng. Every block goes out in one `write_all`, so a reader at the other end of a pipe never
//! waits for the rest of a packet.

use std::io::{self, Write};

use super::{MAGIC, block, code, padding};
use crate::packet::Mac;
use crate::point::{CapturePoint, Direction};

/// Why a block was not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The destination refused the bytes.
    #[error("write pcapng: {0}")]
    Io(#[from] io::Error),
    /// `add_interface` never returned this number.
    #[error("write pcapng: interface {0} was never added; call add_interface first")]
    UnknownInterface(u32),
    /// A name, comment or frame does not fit the format's length fields.
    #[error("write pcapng: {what} of {len} bytes is too long")]
    TooLong {
        /// What it was.
        what: &'static str,
        /// Its length in bytes.
        len: usize,
    },
}

/// A pcapng file of one section, in the machine's byte order, with nanosecond time stamps.
#[derive(Debug)]
pub struct Writer<W: Write> {
    out: W,
    interfaces: u32,
    /// The block under construction; kept so that a packet costs no allocation.
    block: Vec<u8>,
}

impl<W: Write> Writer<W> {
    /// Starts a section: writes the section header.
    ///
    /// # Errors
    /// [`WriteError::Io`].
    pub fn new(out: W) -> Result<Self, WriteError> {
        Self::with_comments(out, &[])
    }

    /// As [`Writer::new`], with what readers show as properties of the file.
    ///
    /// # Errors
    /// [`WriteError::Io`], or [`WriteError::TooLong`] for a comment over 65,535 bytes.
    pub fn with_comments(out: W, comments: &[String]) -> Result<Self, WriteError> {
        let mut writer = Self { out, interfaces: 0, block: Vec::with_capacity(2048) };
        writer.begin(block::SECTION);
        writer.u32(MAGIC);
        writer.u16(1); // major version
        writer.u16(0); // minor version
        writer.u64(u64::MAX); // section length unknown: the file may be a pipe
        writer.option(
            code::SECTION_APPLICATION,
            concat!("labctl ", env!("CARGO_PKG_VERSION")).as_bytes(),
            "name",
        )?;
        for comment in comments {
            writer.option(code::COMMENT, comment.as_bytes(), "comment")?;
        }
        writer.end_options();
        writer.finish()?;
        Ok(writer)
    }

    /// Describes a capture point; the number it returns is the `interface` of its packets, from 0.
    ///
    /// The interface is named `host:interface`, its description begins with the kind of host (`node: `),
    /// link type is Ethernet, time stamps are nanoseconds. `snaplen` is the largest number of captured
    /// bytes, 0 for no limit; give every interface of a file the same, because libpcap (tcpdump) refuses
    /// to read on at an interface whose snap length differs from the first one's.
    ///
    /// # Errors
    /// [`WriteError::Io`], or [`WriteError::TooLong`] for a name or description over 65,535 bytes.
    pub fn add_interface(
        &mut self,
        point: &CapturePoint,
        snaplen: u32,
        description: &str,
    ) -> Result<u32, WriteError> {
        self.add_interface_with_mac(point, snaplen, description, None)
    }

    /// As [`Writer::add_interface`], and says the interface's own Ethernet address (`if_MACaddr`). With it the
    /// verdict knows which frames were meant for the host without guessing from traffic.
    ///
    /// # Errors
    /// As [`Writer::add_interface`].
    pub fn add_interface_with_mac(
        &mut self,
        point: &CapturePoint,
        snaplen: u32,
        description: &str,
        mac: Option<Mac>,
    ) -> Result<u32, WriteError> {
        let name = format!("{}:{}", point.host, point.interface);
        let description = format!("{}: {description}", point.kind);
        self.begin(block::INTERFACE);
        self.u16(crate::link::ETHERNET);
        self.u16(0); // reserved
        self.u32(snaplen);
        self.option(code::INTERFACE_NAME, name.as_bytes(), "interface name")?;
        self.option(code::INTERFACE_DESCRIPTION, description.as_bytes(), "interface description")?;
        if let Some(Mac(address)) = mac {
            self.option(code::INTERFACE_MAC, &address, "address")?;
        }
        self.option(code::INTERFACE_RESOLUTION, &[9], "time resolution")?;
        self.end_options();
        self.finish()?;
        self.interfaces += 1;
        Ok(self.interfaces - 1)
    }

    /// Writes one packet.
    ///
    /// `ts_ns` is `CLOCK_REALTIME` in nanoseconds, `original_len` the length on the wire in bytes, `data`
    /// what was captured of it from the Ethernet header on.
    ///
    /// # Errors
    /// [`WriteError::Io`], [`WriteError::UnknownInterface`], or [`WriteError::TooLong`] for a comment over
    /// 65,535 bytes or data over 4 GiB.
    pub fn packet(
        &mut self,
        interface: u32,
        ts_ns: u64,
        original_len: u32,
        data: &[u8],
        direction: Direction,
        comment: Option<&str>,
    ) -> Result<(), WriteError> {
        self.check_interface(interface)?;
        let too_long = WriteError::TooLong { what: "frame", len: data.len() };
        let captured = u32::try_from(data.len()).map_err(|_| too_long)?;
        self.begin(block::PACKET);
        self.u32(interface);
        self.timestamp(ts_ns);
        self.u32(captured);
        self.u32(original_len.max(captured));
        self.padded(data);
        if direction != Direction::Unknown {
            self.option(code::PACKET_FLAGS, &direction.flags().to_ne_bytes(), "flags")?;
        }
        if let Some(text) = comment {
            self.option(code::COMMENT, text.as_bytes(), "comment")?;
        }
        if direction != Direction::Unknown || comment.is_some() {
            self.end_options();
        }
        self.finish()
    }

    /// Writes the counters of one interface: packets that passed its filter since the capture began, and
    /// how many of them the kernel dropped because nobody took them out of the ring.
    ///
    /// # Errors
    /// [`WriteError::Io`] or [`WriteError::UnknownInterface`].
    pub fn statistics(
        &mut self,
        interface: u32,
        ts_ns: u64,
        received: u64,
        dropped_by_kernel: u64,
    ) -> Result<(), WriteError> {
        self.check_interface(interface)?;
        self.begin(block::STATISTICS);
        self.u32(interface);
        self.timestamp(ts_ns);
        self.option(code::STATISTICS_RECEIVED, &received.to_ne_bytes(), "counter")?;
        // Both: the system dropped them, but dumpcap puts the same number into ifdrop, and that is the
        // one Wireshark's "capture file properties" and capinfos print.
        let dropped = dropped_by_kernel.to_ne_bytes();
        self.option(code::STATISTICS_INTERFACE_DROP, &dropped, "counter")?;
        self.option(code::STATISTICS_SYSTEM_DROP, &dropped, "counter")?;
        self.end_options();
        self.finish()
    }

    /// Flushes the destination.
    ///
    /// # Errors
    /// [`WriteError::Io`].
    pub fn flush(&mut self) -> Result<(), WriteError> {
        Ok(self.out.flush()?)
    }

    /// The destination, to write to or to inspect; everything so far has been handed to it.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.out
    }

    /// Gives the destination back, unflushed.
    pub fn into_inner(self) -> W {
        self.out
    }

    fn check_interface(&self, interface: u32) -> Result<(), WriteError> {
        if interface < self.interfaces { Ok(()) } else { Err(WriteError::UnknownInterface(interface)) }
    }

    fn begin(&mut self, kind: u32) {
        self.block.clear();
        self.u32(kind);
        self.u32(0); // total length, known in `finish`
    }

    fn finish(&mut self) -> Result<(), WriteError> {
        let total = u32::try_from(self.block.len() + 4)
            .map_err(|_| WriteError::TooLong { what: "block", len: self.block.len() })?;
        self.u32(total);
        self.block[4..8].copy_from_slice(&total.to_ne_bytes());
        Ok(self.out.write_all(&self.block)?)
    }

    fn u16(&mut self, value: u16) {
        self.block.extend_from_slice(&value.to_ne_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.block.extend_from_slice(&value.to_ne_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.block.extend_from_slice(&value.to_ne_bytes());
    }

    /// High half first, whatever the byte order of the halves (section 4.3).
    fn timestamp(&mut self, ns: u64) {
        self.u32((ns >> 32) as u32);
        self.u32(ns as u32);
    }

    fn padded(&mut self, bytes: &[u8]) {
        self.block.extend_from_slice(bytes);
        self.block.extend_from_slice(&[0; 3][..padding(bytes.len())]);
    }

    fn option(&mut self, code: u16, value: &[u8], what: &'static str) -> Result<(), WriteError> {
        let len = u16::try_from(value.len()).map_err(|_| WriteError::TooLong { what, len: value.len() })?;
        self.u16(code);
        self.u16(len);
        self.padded(value);
        Ok(())
    }

    fn end_options(&mut self) {
        self.u16(code::END);
        self.u16(0);
    }
}
