//! Captured packets of all points, in the order of time.
//!
//! Owns: reading them from pcapng, merging, writing them with comments, and which frames a host only
//! overheard. Does not own: the pcapng bytes ([`crate::pcapng`]) or what packets mean together
//! ([`crate::flow`], [`crate::hop`]). All captures of a run are taken on one host with one clock, so time
//! alone orders them.

use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Write};

use crate::packet::{Frame, Mac};
use crate::pcapng::{self, Block, LINKTYPE_ETHERNET, ReadError, Reader, SNAPLEN_WHOLE, WriteError, Writer};
use crate::point::{CapturePoint, Direction, HostKind};

/// Why a capture could not be read.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The file is damaged.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// An interface is not Ethernet.
    #[error(
        "read capture: interface `{name}` has link type {link_type}, and only Ethernet (1) is understood; capture on the interface itself, not on `any`"
    )]
    LinkType {
        /// Interface name in the file.
        name: String,
        /// Its `LINKTYPE_*`.
        link_type: u16,
    },
}

/// A capture point and how far it can be trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PointInfo {
    /// Where.
    pub point: CapturePoint,
    /// Whether it was proven to see packets during the whole run ([`crate::canary::prove_live`]).
    pub live: bool,
    /// Packets that passed its filter; `None` if the capture ended without saying.
    pub received: Option<u64>,
    /// Packets that the kernel dropped; `None` if the capture ended without saying.
    pub dropped: Option<u64>,
    /// The interface's own Ethernet address, if the capture says.
    pub mac: Option<Mac>,
}

impl PointInfo {
    /// Whether the absence of a packet here proves anything: proven live, and known to have lost nothing.
    pub fn is_proof(&self) -> bool {
        self.live && self.dropped == Some(0)
    }
}

/// One captured packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captured {
    /// Index into [`CaptureFile::points`].
    pub point: usize,
    /// `CLOCK_REALTIME`, ns.
    pub ts_ns: u64,
    /// Direction at the point.
    pub direction: Direction,
    /// Bytes on the wire.
    pub original_len: u32,
    /// Captured bytes, from the Ethernet header on.
    pub data: Vec<u8>,
    /// The same bytes, read.
    pub frame: Frame,
}

impl Captured {
    /// A captured packet with its bytes read.
    pub fn new(point: usize, ts_ns: u64, direction: Direction, original_len: u32, data: Vec<u8>) -> Self {
        let frame = Frame::parse(&data, original_len);
        Self { point, ts_ns, direction, original_len, data, frame }
    }

    /// The captured part of the TCP or UDP payload.
    pub fn payload(&self) -> &[u8] {
        self.data.get(self.frame.payload()).unwrap_or(&[])
    }
}

/// Everything that was captured in a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CaptureFile {
    /// Points; packets name them by index.
    pub points: Vec<PointInfo>,
    /// Packets, ordered by time.
    pub packets: Vec<Captured>,
}

impl CaptureFile {
    /// Reads a pcapng file. No point is live until [`crate::canary::prove_live`] says so.
    ///
    /// # Errors
    /// [`CaptureError`]; a file that ends inside a block is an error too, because what was lost is unknown.
    pub fn read(input: impl Read) -> Result<Self, CaptureError> {
        let mut file = Self::default();
        for block in Reader::new(input) {
            file.take(block?)?;
        }
        file.sort();
        Ok(file)
    }

    /// Adds what a stream says next, for whoever must know how far it is. [`Self::merge`] then puts the
    /// packets in the order of time.
    ///
    /// # Errors
    /// [`CaptureError::LinkType`].
    pub fn take(&mut self, block: Block) -> Result<(), CaptureError> {
        match block {
            Block::Interface(interface) => self.points.push(point_info(&interface)?),
            Block::Packet(p) => self.packets.push(Captured::new(
                p.interface as usize,
                p.ts_ns,
                p.direction,
                p.original_len,
                p.data,
            )),
            Block::Statistics(s) => {
                let point = &mut self.points[s.interface as usize];
                (point.received, point.dropped) = (s.received, s.dropped);
            }
        }
        Ok(())
    }

    /// One capture of many: points in the order of the files, packets by time. Packets with equal times keep
    /// the order of the files.
    pub fn merge(files: impl IntoIterator<Item = Self>) -> Self {
        let mut merged = Self::default();
        for file in files {
            let base = merged.points.len();
            merged.points.extend(file.points);
            merged.packets.extend(file.packets.into_iter().map(|p| Captured { point: base + p.point, ..p }));
        }
        merged.sort();
        merged
    }

    fn sort(&mut self) {
        self.packets.sort_by_key(|p| p.ts_ns);
    }

    /// Writes everything as one pcapng file with an interface per point; `comments` are by packet index.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn write(&self, out: impl Write, comments: &BTreeMap<usize, String>) -> Result<(), WriteError> {
        let mut writer = Writer::new(out)?;
        for info in &self.points {
            writer.add_interface_with_mac(&info.point, SNAPLEN_WHOLE, "", info.mac)?;
        }
        for (i, p) in self.packets.iter().enumerate() {
            let comment = comments.get(&i).map(String::as_str);
            writer.packet(p.point as u32, p.ts_ns, p.original_len, &p.data, p.direction, comment)?;
        }
        let end = self.packets.last().map_or(0, |p| p.ts_ns);
        for (i, info) in self.points.iter().enumerate() {
            if let (Some(received), Some(dropped)) = (info.received, info.dropped) {
                writer.statistics(i as u32, end, received, dropped)?;
            }
        }
        writer.flush()
    }

    /// The Ethernet address of each point: as the capture says, else worked out from its traffic.
    pub fn link_addresses(&self) -> Vec<Option<Mac>> {
        let mut guesses = vec![Guess::default(); self.points.len()];
        for packet in &self.packets {
            guesses[packet.point].note(packet);
        }
        self.points.iter().zip(guesses).map(|(info, guess)| info.mac.or_else(|| guess.best())).collect()
    }

    /// Which packets came in at a host that they were not addressed to. A switch floods frames whose
    /// destination it has not learned yet; the hosts that overhear one ignore it.
    pub fn overheard(&self) -> Vec<bool> {
        let addresses = self.link_addresses();
        let others: HashMap<Mac, usize> =
            addresses.iter().enumerate().filter_map(|(i, mac)| Some(((*mac)?, i))).collect();
        let is_overheard = |p: &Captured| {
            p.direction == Direction::In
                && !p.frame.dst.is_group()
                && match addresses[p.point] {
                    Some(own) => own != p.frame.dst,
                    None => others.get(&p.frame.dst).is_some_and(|other| *other != p.point),
                }
        };
        self.packets.iter().map(is_overheard).collect()
    }
}

fn point_info(interface: &pcapng::Interface) -> Result<PointInfo, CaptureError> {
    if interface.link_type != LINKTYPE_ETHERNET {
        return Err(CaptureError::LinkType { name: interface.name.clone(), link_type: interface.link_type });
    }
    let foreign = || CapturePoint {
        host: format!("capture-{}", interface.index),
        kind: HostKind::Node,
        interface: interface.name.clone(),
    };
    Ok(PointInfo {
        point: interface.point().unwrap_or_else(foreign),
        live: false,
        received: None,
        dropped: None,
        mac: interface.mac,
    })
}

/// What the traffic of one point says of its Ethernet address, the best witness first: its own ARP, the address
/// that it both receives at and sends from, the one that it receives at most. What a host writes as its own
/// source comes last: a datapath that gets that wrong must not vouch for itself.
#[derive(Clone, Debug, Default)]
struct Guess {
    arp: Option<Mac>,
    received: HashMap<Mac, u32>,
    sent: HashMap<Mac, u32>,
}

impl Guess {
    fn note(&mut self, packet: &Captured) {
        let frame = &packet.frame;
        match packet.direction {
            Direction::Out => {
                if let crate::packet::Network::Arp(arp) = &frame.network {
                    self.arp = Some(arp.sender_mac);
                }
                *self.sent.entry(frame.src).or_default() += 1;
            }
            Direction::In if !frame.dst.is_group() => *self.received.entry(frame.dst).or_default() += 1,
            Direction::In | Direction::Unknown => {}
        }
    }

    fn best(&self) -> Option<Mac> {
        let both = self.received.iter().filter(|(mac, _)| self.sent.contains_key(mac));
        let both = both.map(|(mac, count)| (*mac, *count)).collect();
        self.arp.or_else(|| most(&both)).or_else(|| most(&self.received)).or_else(|| most(&self.sent))
    }
}

/// The most frequent address; of equals the smallest, so that the answer does not depend on hashing.
fn most(counts: &HashMap<Mac, u32>) -> Option<Mac> {
    counts.iter().max_by_key(|(mac, count)| (**count, std::cmp::Reverse(**mac))).map(|(mac, _)| *mac)
}
