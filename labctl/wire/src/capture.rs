//! Captured packets of all points, in the order of time.
//!
//! Owns: reading them from pcapng, merging, writing them with comments, and the Ethernet addresses of the points.
//! Does not own: the pcapng bytes ([`crate::pcapng`]) or what packets mean together (the verdict). All captures of
//! a run are taken on one host with one clock, so time alone orders them.
//!
//! A packet is a record of 40 bytes; its bytes lie in a store that many packets share, so that a million packets cost
//! little more memory than their file.

use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Write};

use crate::link::{Addresses, Link};
use crate::packet::{Frame, Mac};
use crate::pcapng::{self, Block, Interface, ReadError, Reader, SNAPLEN_WHOLE, WriteError, Writer};
use crate::point::{CapturePoint, Direction, HostKind};

/// Why a capture could not be read.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The file is damaged.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// An interface's link type is not understood.
    #[error(
        "read capture: interface `{name}` has link type {link_type}, which is not understood; capture on an Ethernet interface, or on `any`"
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
    /// Which Ethernet addresses its frames have.
    pub addresses: Addresses,
}

/// One captured packet, without its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Captured {
    /// Index into [`CaptureFile::points`].
    pub point: usize,
    /// `CLOCK_REALTIME`, ns.
    pub ts_ns: u64,
    /// Direction at the point.
    pub direction: Direction,
    /// Bytes on the wire.
    pub original_len: u32,
    /// Where its bytes begin in the store.
    start: usize,
    /// Captured bytes, from the Ethernet header on.
    len: u32,
}

/// Everything that was captured in a run.
#[derive(Clone, Default)]
pub struct CaptureFile {
    /// Points; packets name them by index.
    pub points: Vec<PointInfo>,
    packets: Vec<Captured>,
    store: Vec<u8>,
    /// Of each interface that was described.
    sources: Vec<Source>,
}

/// An interface of a file.
#[derive(Clone, Debug)]
struct Source {
    /// `None` for a link type that is not understood: its packets are left out.
    link: Option<Link>,
    /// Its point; for a file with packets of several interfaces under one, only a pattern for theirs.
    point: PointInfo,
    /// Its index among the points, by the kernel's number of the interface where packets tell.
    points: BTreeMap<Option<u32>, usize>,
}

impl std::fmt::Debug for CaptureFile {
    /// Points and counts: nobody reads a million packets in a failed assertion.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (packets, bytes) = (self.packets.len(), self.store.len());
        f.debug_struct("CaptureFile")
            .field("points", &self.points)
            .field("packets", &packets)
            .field("bytes", &bytes)
            .finish()
    }
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
    /// [`CaptureError::LinkType`]; whoever goes on has all packets but those of that interface.
    pub fn take(&mut self, block: Block) -> Result<(), CaptureError> {
        match block {
            Block::Interface(interface) => {
                let link = Link::new(interface.link_type);
                self.describe(Source::new(&interface, link));
                if link.is_none() {
                    let Interface { name, link_type, .. } = interface;
                    return Err(CaptureError::LinkType { name, link_type });
                }
            }
            Block::Packet(p) => self.take_packet(&p),
            Block::Statistics(s) => {
                for point in self.sources[s.interface as usize].points.values() {
                    let point = &mut self.points[*point];
                    (point.received, point.dropped) = (s.received, s.dropped);
                }
            }
        }
        Ok(())
    }

    /// Adds an interface. One whose packets name the interface that each passed becomes a point for each of these.
    fn describe(&mut self, mut source: Source) {
        if source.link.is_some_and(|link| !link.tells_interface()) {
            source.points.insert(None, self.points.len());
            self.points.push(source.point.clone());
        }
        self.sources.push(source);
    }

    fn take_packet(&mut self, packet: &pcapng::Packet) {
        let source = &mut self.sources[packet.interface as usize];
        let Some(link) = source.link else { return };
        let framed = link.frame(&packet.data);
        let point = *source.points.entry(framed.interface).or_insert_with(|| {
            let mut info = source.point.clone();
            info.point.interface = framed.interface.map_or_else(String::new, |number| format!("if{number}"));
            self.points.push(info);
            self.points.len() - 1
        });
        let direction = framed.direction.unwrap_or(packet.direction);
        let original_len = i64::from(packet.original_len) + framed.longer;
        let start = self.store.len();
        self.store.extend_from_slice(framed.header.as_ref().map_or(&[], |header| &header[..]));
        self.store.extend_from_slice(framed.rest);
        let len = (self.store.len() - start) as u32;
        let original_len = u32::try_from(original_len).unwrap_or(0).max(len);
        self.packets.push(Captured { point, ts_ns: packet.ts_ns, direction, original_len, start, len });
    }

    /// Adds a packet behind all others. `original_len` is its length on the wire, never less than what was captured.
    pub fn push(&mut self, point: usize, ts_ns: u64, direction: Direction, original_len: u32, data: &[u8]) {
        let (start, len) = (self.store.len(), data.len() as u32);
        self.store.extend_from_slice(data);
        self.packets.push(Captured {
            point,
            ts_ns,
            direction,
            original_len: original_len.max(len),
            start,
            len,
        });
    }

    /// The packets, in the order of time once the capture is read or merged.
    pub fn packets(&self) -> &[Captured] {
        &self.packets
    }

    /// The packets, to be damaged: the judge is tested with evidence that something has happened to.
    pub fn packets_mut(&mut self) -> &mut Vec<Captured> {
        &mut self.packets
    }

    /// Keeps the packets of which `keep` says so; it is asked by index, in their order.
    pub fn retain(&mut self, mut keep: impl FnMut(&Self, usize) -> bool) {
        let kept: Vec<bool> = (0..self.packets.len()).map(|packet| keep(self, packet)).collect();
        let mut kept = kept.into_iter();
        self.packets.retain(|_| kept.next() == Some(true));
    }

    /// The captured bytes of a packet, from the Ethernet header on.
    pub fn data(&self, packet: usize) -> &[u8] {
        let Captured { start, len, .. } = self.packets[packet];
        &self.store[start..start + len as usize]
    }

    /// Gives a packet other bytes; its length on the wire changes by as much as the captured one.
    pub fn replace(&mut self, packet: usize, data: &[u8]) {
        let start = self.store.len();
        self.store.extend_from_slice(data);
        let record = &mut self.packets[packet];
        let cut = record.original_len - record.len;
        (record.start, record.len, record.original_len) = (start, data.len() as u32, data.len() as u32 + cut);
    }

    /// A packet with its bytes read and its checksums computed.
    pub fn frame(&self, packet: usize) -> Frame {
        Frame::parse(self.data(packet), self.packets[packet].original_len)
    }

    /// A packet with its bytes read; checksums of its payload are left unknown, which makes it much cheaper.
    pub fn headers(&self, packet: usize) -> Frame {
        Frame::headers(self.data(packet), self.packets[packet].original_len)
    }

    /// Whether a packet is an untagged frame with an IPv4 header of 20 bytes, as most are: then nothing else needs to be read
    /// to know that it has neither VLAN nor options.
    pub fn is_plain(&self, packet: usize) -> bool {
        matches!(self.data(packet).get(12..15), Some([0x08, 0x00, 0x45]))
    }

    /// One capture of many: points in the order of the files, packets by time. Packets with equal times keep
    /// the order of the files.
    pub fn merge(files: impl IntoIterator<Item = Self>) -> Self {
        let mut merged = Self::default();
        for mut file in files {
            let (base, at) = (merged.points.len(), merged.store.len());
            merged.points.append(&mut file.points);
            if at == 0 {
                merged.store = file.store;
            } else {
                merged.store.append(&mut file.store);
            }
            let moved = file.packets.into_iter();
            merged.packets.extend(moved.map(|p| Captured {
                point: base + p.point,
                start: at + p.start,
                ..p
            }));
        }
        merged.sort();
        merged
    }

    /// Puts the packets in the order of time; those with equal times keep theirs.
    pub fn sort(&mut self) {
        if !self.packets.is_sorted_by_key(|p| p.ts_ns) {
            self.packets.sort_by_key(|p| p.ts_ns);
        }
    }

    /// Writes everything as one pcapng file with an interface per point; `about` stands in its header, `comments` are by
    /// packet index.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn write(
        &self,
        out: impl Write,
        about: &[String],
        comments: &BTreeMap<usize, String>,
    ) -> Result<(), WriteError> {
        let mut writer = Writer::with_comments(out, about)?;
        for info in &self.points {
            writer.add_interface_with_mac(&info.point, SNAPLEN_WHOLE, "", info.mac)?;
        }
        for (i, p) in self.packets.iter().enumerate() {
            let comment = comments.get(&i).map(String::as_str);
            writer.packet(p.point as u32, p.ts_ns, p.original_len, self.data(i), p.direction, comment)?;
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
        if self.points.iter().any(|info| info.mac.is_none()) {
            for (i, packet) in self.packets.iter().enumerate() {
                let info = &self.points[packet.point];
                if info.mac.is_none() && info.addresses == Addresses::Both {
                    guesses[packet.point].note(packet.direction, &self.headers(i));
                }
            }
        }
        self.points.iter().zip(guesses).map(|(info, guess)| info.mac.or_else(|| guess.best())).collect()
    }
}

impl Source {
    fn new(interface: &Interface, link: Option<Link>) -> Self {
        let foreign = || CapturePoint {
            // Whoever knows the file knows the host.
            host: String::new(),
            kind: HostKind::Node,
            interface: interface.name.clone(),
        };
        let point = PointInfo {
            point: interface.point().unwrap_or_else(foreign),
            live: false,
            received: None,
            dropped: None,
            mac: interface.mac,
            addresses: link.map_or(Addresses::None, Link::addresses),
        };
        Self { link, point, points: BTreeMap::new() }
    }
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
    fn note(&mut self, direction: Direction, frame: &Frame) {
        match direction {
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
