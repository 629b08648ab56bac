//! Packets into a pcapng file.
//!
//! Owns: the order of what is written and when it is flushed. Does not own: the format (wire).

use std::io::{self, BufWriter, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use labctl_wire::CapturePoint;
use labctl_wire::packet::Mac;
use labctl_wire::pcapng::{WriteError, Writer};

use super::{CaptureSummary, CapturedPacket, Sink};

/// Bytes gathered before they are written.
const BUFFER: usize = 256 * 1024;

/// A [`Sink`] that writes pcapng.
#[derive(Debug)]
pub struct Recorder<W: Write> {
    writer: Writer<BufWriter<W>>,
}

impl<W: Write> Recorder<W> {
    /// Writes the file's head, so that a reader at the other end of a pipe can begin.
    pub(super) fn new<'a>(
        out: W,
        snaplen: u32,
        points: impl Iterator<Item = (&'a CapturePoint, Mac)>,
    ) -> io::Result<Self> {
        let mut writer = Writer::new(BufWriter::with_capacity(BUFFER, out)).map_err(into_io)?;
        for (point, mac) in points {
            writer
                .add_interface_with_mac(point, snaplen, "captured by labctl", Some(mac))
                .map_err(into_io)?;
        }
        writer.flush().map_err(into_io)?;
        Ok(Self { writer })
    }
}

impl<W: Write> Sink for Recorder<W> {
    fn packet(&mut self, packet: &CapturedPacket<'_>) -> io::Result<()> {
        let CapturedPacket { ts_ns, original_len, data, direction, .. } = *packet;
        let point = packet.point as u32;
        self.writer.packet(point, ts_ns, original_len, data, direction, None).map_err(into_io)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush().map_err(into_io)
    }

    fn finish(&mut self, summary: &CaptureSummary) -> io::Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        for (index, point) in (0..).zip(&summary.points) {
            self.writer.statistics(index, now, point.received, point.dropped).map_err(into_io)?;
        }
        self.flush()
    }
}

fn into_io(error: WriteError) -> io::Error {
    match error {
        WriteError::Io(error) => error,
        other => io::Error::other(other),
    }
}
