//! One packet's way through the lab: the sightings of one logical packet at all capture points.
//!
//! Owns: recognising a packet again after rewriting, segmentation and fragmentation. Does not own: which
//! exchange it belongs to ([`crate::flow`]) or what way it should have taken (the verdict).
//!
//! On a veth with offloads a 64 KiB segment may be seen whole at one point and in pieces at the next, and IP
//! may fragment a datagram on the way. So a logical packet with payload is a *range of bytes*, of the TCP
//! stream or of the IP datagram, as it was first seen; a later sighting counts for every range that it
//! overlaps, and a range has arrived at a point when the sightings there cover all of it.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use crate::capture::{CaptureFile, Captured};
use crate::flow::{Side, Tag};
use crate::packet::{Ipv4, Tcp, TcpFlags, Transport};
use crate::point::Direction;

/// What a logical packet is, as first seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// TCP SYN.
    Syn,
    /// TCP SYN with ACK.
    SynAck,
    /// TCP with payload.
    Data,
    /// TCP FIN without payload.
    Fin,
    /// TCP acknowledgement and nothing else.
    Ack,
    /// TCP RST.
    Rst,
    /// UDP, or a fragment of it.
    Datagram,
    /// ICMP error.
    Icmp,
}

/// A packet seen at a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// Index into the capture's packets.
    pub packet: usize,
    /// Index into the capture's points.
    pub point: usize,
    /// Direction there.
    pub direction: Direction,
    /// When, ns.
    pub ts_ns: u64,
}

/// A packet as its sender meant it, and where it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogicalPacket {
    /// Exchange and direction of travel.
    pub tag: Tag,
    /// What it is.
    pub kind: Kind,
    /// Bytes of the TCP stream (0 is the SYN; FIN counts one) or of the IP payload; empty for the others.
    pub bytes: Range<i64>,
    /// Sightings in the order of time, the first being where it entered our sight.
    pub sightings: Vec<Sighting>,
    /// Bytes seen per point and direction, sorted and disjoint.
    seen: Vec<(usize, Direction, Vec<Range<i64>>)>,
}

impl LogicalPacket {
    /// The first sighting at a point in a direction.
    pub fn at(&self, point: usize, direction: Direction) -> Option<&Sighting> {
        self.sightings.iter().find(|s| s.point == point && s.direction == direction)
    }

    /// Whether all of it was seen at a point in a direction.
    pub fn complete_at(&self, point: usize, direction: Direction) -> bool {
        let seen = self.seen.iter().find(|(p, d, _)| (*p, *d) == (point, direction));
        seen.is_some_and(|(_, _, ranges)| self.bytes.is_empty() || *ranges == [self.bytes.clone()])
    }

    fn was_at(&self, point: usize, direction: Direction) -> bool {
        self.seen.iter().any(|(p, d, _)| (*p, *d) == (point, direction))
    }

    fn see(&mut self, sighting: Sighting, parts: &[Range<i64>]) {
        let place = (sighting.point, sighting.direction);
        let known = self.seen.iter().position(|(p, d, _)| (*p, *d) == place);
        let index = known.unwrap_or_else(|| {
            self.seen.push((place.0, place.1, Vec::new()));
            self.seen.len() - 1
        });
        parts.iter().for_each(|part| insert(&mut self.seen[index].2, part.clone()));
        self.sightings.push(sighting);
    }
}

/// Adds a range to a sorted, disjoint list.
fn insert(ranges: &mut Vec<Range<i64>>, new: Range<i64>) {
    ranges.push(new);
    ranges.sort_by_key(|r| r.start);
    ranges.dedup_by(|next, kept| {
        let touches = next.start <= kept.end;
        if touches {
            kept.end = kept.end.max(next.end);
        }
        touches
    });
}

/// Follows every tagged packet through the capture; `skip` names packets that do not count (those that
/// [`CaptureFile::overheard`] names). The result is in the order of first sighting.
pub fn trace(capture: &CaptureFile, tags: &[Option<Tag>], skip: &[bool]) -> Vec<LogicalPacket> {
    let mut tracer = Tracer::default();
    for (i, packet) in capture.packets.iter().enumerate() {
        if let Some(tag) = tags[i]
            && !skip[i]
            && let Some(ip) = packet.frame.ipv4()
        {
            let Captured { point, direction, ts_ns, .. } = *packet;
            tracer.follow(tag, ip, Sighting { packet: i, point, direction, ts_ns });
        }
    }
    tracer.packets
}

/// Bytes that belong together: a direction of a connection, or one datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum StreamKey {
    Tcp(Tag),
    Datagram(Tag, u16),
}

/// A packet without payload, known again by what no node rewrites.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum ControlKey {
    Tcp { tag: Tag, seq: u32, ack: u32, window: u16, id: u16 },
    Icmp { tag: Tag, kind: u8, code: u8, id: u16, quoted_id: u16 },
}

#[derive(Default)]
struct Stream {
    /// Sequence number and position of the last packet: positions do not wrap.
    last: Option<(u32, i64)>,
    /// Logical packets by where they begin.
    packets: BTreeMap<i64, Vec<usize>>,
    /// Length of the longest of them.
    longest: i64,
}

impl Stream {
    /// The position of a sequence number. The first one seen is 0; it is the SYN unless that was missed.
    fn position(&mut self, seq: u32) -> i64 {
        let (last_seq, last) = self.last.unwrap_or((seq, 0));
        let at = last + i64::from(seq.wrapping_sub(last_seq) as i32);
        self.last = Some((seq, at));
        at
    }

    fn overlapping(&self, bytes: &Range<i64>) -> impl Iterator<Item = usize> {
        self.packets
            .range(bytes.start - self.longest..bytes.end)
            .flat_map(|(_, packets)| packets.iter().copied())
    }
}

#[derive(Default)]
struct Tracer {
    packets: Vec<LogicalPacket>,
    streams: HashMap<StreamKey, Stream>,
    controls: HashMap<ControlKey, Vec<usize>>,
    /// Payload packets by stream, range and, for TCP, IP id: tells a retransmission from the original.
    exact: HashMap<(StreamKey, i64, i64, u16), Vec<usize>>,
}

impl Tracer {
    fn follow(&mut self, tag: Tag, ip: &Ipv4, sighting: Sighting) {
        match &ip.transport {
            Transport::Tcp(tcp) => self.follow_tcp(tag, ip, tcp, sighting),
            Transport::Icmp(icmp) => {
                let quoted_id = icmp.quote.as_ref().map_or(0, |q| q.ipv4.id);
                let key = ControlKey::Icmp { tag, kind: icmp.kind, code: icmp.code, id: ip.id, quoted_id };
                self.follow_control(key, tag, Kind::Icmp, 0, sighting);
            }
            Transport::Udp(_) | Transport::LaterFragment => {
                let start = i64::from(ip.fragment_offset);
                let bytes = start..start + (i64::from(ip.total_len) - ip.header_len as i64).max(1);
                self.follow_bytes(StreamKey::Datagram(tag, ip.id), 0, tag, Kind::Datagram, bytes, sighting);
            }
            Transport::Other(_) | Transport::Cut => {}
        }
    }

    fn follow_tcp(&mut self, tag: Tag, ip: &Ipv4, tcp: &Tcp, sighting: Sighting) {
        let stream = StreamKey::Tcp(tag);
        let at = self.streams.entry(stream).or_default().position(tcp.seq);
        let kind = tcp_kind(tcp);
        if tcp.payload_len == 0 {
            let key = ControlKey::Tcp { tag, seq: tcp.seq, ack: tcp.ack, window: tcp.window, id: ip.id };
            return self.follow_control(key, tag, kind, at, sighting);
        }
        let fin = i64::from(tcp.flags.has(TcpFlags::FIN));
        // A SYN with payload (TCP Fast Open) has its first byte one later.
        let at = at + i64::from(tcp.flags.has(TcpFlags::SYN));
        self.follow_bytes(stream, ip.id, tag, kind, at..at + tcp.payload_len as i64 + fin, sighting);
    }

    fn follow_control(&mut self, key: ControlKey, tag: Tag, kind: Kind, at: i64, sighting: Sighting) {
        let known = self.controls.entry(key).or_default();
        // The same bytes twice at one point: the sender repeated them, and each counts.
        let free = known.iter().find(|i| !self.packets[**i].was_at(sighting.point, sighting.direction));
        let index = *free.unwrap_or(&self.packets.len());
        if index == self.packets.len() {
            known.push(index);
            self.packets.push(new_packet(tag, kind, at..at));
        }
        self.packets[index].see(sighting, &[]);
    }

    fn follow_bytes(
        &mut self,
        key: StreamKey,
        id: u16,
        tag: Tag,
        kind: Kind,
        bytes: Range<i64>,
        sighting: Sighting,
    ) {
        let exact_key = (key, bytes.start, bytes.end, id);
        let exact = self.exact.get(&exact_key).map_or(&[][..], Vec::as_slice);
        let here = (sighting.point, sighting.direction);
        if let Some(same) = exact.iter().find(|i| !self.packets[**i].was_at(here.0, here.1)) {
            return self.packets[*same].see(sighting, std::slice::from_ref(&bytes));
        }
        if self.share_out(key, &sighting, &bytes) {
            return;
        }
        let index = self.packets.len();
        self.exact.entry(exact_key).or_default().push(index);
        let stream = self.streams.entry(key).or_default();
        stream.packets.entry(bytes.start).or_default().push(index);
        stream.longest = stream.longest.max(bytes.end - bytes.start);
        self.packets.push(new_packet(tag, kind, bytes.clone()));
        self.packets[index].see(sighting, std::slice::from_ref(&bytes));
    }

    /// Counts a sighting for the logical packets that it is made of, each byte for the earliest that still lacks
    /// bytes here; `false` if there is none. One that began at this very point is none: its sender repeats
    /// itself.
    fn share_out(&mut self, key: StreamKey, sighting: &Sighting, bytes: &Range<i64>) -> bool {
        let mut candidates: Vec<_> = self.streams.entry(key).or_default().overlapping(bytes).collect();
        candidates.sort_unstable();
        let mut left = vec![bytes.clone()];
        let mut counted = false;
        for index in candidates {
            let packet = &mut self.packets[index];
            let began_here = packet
                .sightings
                .first()
                .is_some_and(|s| (s.point, s.direction) == (sighting.point, sighting.direction));
            if began_here || packet.complete_at(sighting.point, sighting.direction) {
                continue;
            }
            let (own, rest) = split(&left, &packet.bytes);
            if !own.is_empty() {
                packet.see(*sighting, &own);
                left = rest;
                counted = true;
            }
        }
        counted
    }
}

/// What of `ranges` lies within `window`, and what does not.
fn split(ranges: &[Range<i64>], window: &Range<i64>) -> (Vec<Range<i64>>, Vec<Range<i64>>) {
    let parts = |from: i64, to: i64| {
        ranges.iter().map(move |r| r.start.max(from)..r.end.min(to)).filter(|r| !r.is_empty())
    };
    let outside = parts(i64::MIN, window.start).chain(parts(window.end, i64::MAX));
    (parts(window.start, window.end).collect(), outside.collect())
}

fn new_packet(tag: Tag, kind: Kind, bytes: Range<i64>) -> LogicalPacket {
    LogicalPacket { tag, kind, bytes, sightings: Vec::new(), seen: Vec::new() }
}

fn tcp_kind(tcp: &Tcp) -> Kind {
    let flags = tcp.flags;
    if flags.has(TcpFlags::RST) {
        Kind::Rst
    } else if flags.is_syn_ack() {
        Kind::SynAck
    } else if flags.is_syn() {
        Kind::Syn
    } else if tcp.payload_len > 0 {
        Kind::Data
    } else if flags.has(TcpFlags::FIN) {
        Kind::Fin
    } else {
        Kind::Ack
    }
}

impl Kind {
    /// Whether the client opens the exchange with it, or it is the whole request.
    pub const fn opens(self) -> bool {
        matches!(self, Self::Syn | Self::Datagram)
    }
}

impl Side {
    /// The other way.
    pub const fn reversed(self) -> Self {
        match self {
            Self::Request => Self::Reply,
            Self::Reply => Self::Request,
        }
    }
}
