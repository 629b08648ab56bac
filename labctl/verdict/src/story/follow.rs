//! One packet's way through the lab: its sightings at all places.
//!
//! Owns: recognising a packet again after rewriting, segmentation and fragmentation. Does not own: which exchange it
//! belongs to ([`super::assign`]), or where it differs ([`super::differ`]).
//!
//! A packet is known again by what nobody rewrites. Where links segment or merge (offloads, or a load balancer of which
//! nothing is known), a packet with payload is also a *range of bytes*, of the TCP stream or of the IP datagram, as it
//! was first seen: a later sighting counts for every range that it overlaps, and a range has arrived when the
//! sightings there cover all of it.

use std::ops::Range;

use labctl_wire::packet::{Tcp, TcpFlags, Transport};
use rustc_hash::FxHashMap;

use super::{Role, Story};
use crate::parallel::in_pieces;
use crate::scene::case::{Side, Waypoint};
use crate::scene::place::Spot;

/// What a packet is, as first seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
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
}

impl Kind {
    /// Whether the client opens the exchange with it, or it is the whole request.
    pub(crate) const fn opens(self) -> bool {
        matches!(self, Self::Syn | Self::Datagram)
    }

    fn of(tcp: &Tcp) -> Self {
        let flags = tcp.flags;
        if flags.has(TcpFlags::RST) {
            Self::Rst
        } else if flags.is_syn_ack() {
            Self::SynAck
        } else if flags.is_syn() {
            Self::Syn
        } else if tcp.payload_len > 0 {
            Self::Data
        } else if flags.has(TcpFlags::FIN) {
            Self::Fin
        } else {
            Self::Ack
        }
    }
}

/// A packet seen at a stage of its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sighting {
    /// Index into the capture's packets.
    pub(crate) packet: usize,
    /// Index into the way; `None` beside it.
    pub(crate) stage: Option<usize>,
    /// Only some of its bytes, or more than them.
    pub(crate) is_part: bool,
    /// It resets the connection.
    pub(crate) resets: bool,
}

/// A packet as its sender meant it, and where it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LogicalPacket {
    /// Index of its case.
    pub(crate) of: usize,
    pub(crate) side: Side,
    pub(crate) kind: Kind,
    /// Sightings on its way in the order of the way, then those beside it; the first is where it entered our sight.
    pub(crate) sightings: Vec<Sighting>,
    /// What it is known by.
    key: Key,
    /// Bytes of the stream or datagram that it has.
    bytes: Range<i64>,
    /// Bytes seen, per stage where it was seen in parts.
    parts: Vec<(usize, Vec<Range<i64>>)>,
    /// It repeats a packet that was here before and did not come from anywhere.
    pub(crate) repeats: bool,
    /// Its sender sends something of it again.
    pub(crate) again: bool,
}

impl LogicalPacket {
    /// The capture's packet at a stage.
    pub(crate) fn at(&self, stage: usize) -> Option<usize> {
        self.sightings.iter().find(|s| s.stage == Some(stage)).map(|s| s.packet)
    }

    /// Whether all of it was seen at a stage.
    pub(crate) fn complete_at(&self, stage: usize) -> bool {
        let whole = self.sightings.iter().any(|s| s.stage == Some(stage) && !s.is_part);
        whole || self.parts.iter().any(|(s, seen)| *s == stage && *seen == [self.bytes.clone()])
    }

    /// The first stage at which it was seen.
    pub(crate) fn origin(&self) -> Option<usize> {
        self.sightings.iter().filter_map(|s| s.stage).min()
    }

    fn lacks(&self, stage: Option<usize>) -> bool {
        stage.is_none() || !self.sightings.iter().any(|s| s.stage == stage)
    }
}

/// What no load balancer rewrites in a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    kind: Kind,
    /// IP identification; 0 where it may change.
    id: u16,
    /// Sequence number, or offset of a fragment.
    at: u32,
    /// Acknowledgement number and flags of TCP.
    ack: u32,
    flags: u8,
    len: u32,
}

/// A frame of a case, read.
#[derive(Clone, Copy, Debug)]
struct Piece {
    packet: usize,
    side: Side,
    key: Key,
}

impl Piece {
    fn read(story: &Story<'_>, of: usize, packet: usize, side: Side) -> Option<Self> {
        let frame = story.headers(packet);
        let ip = frame.ipv4()?;
        let id = if story.may_change_id(of) { 0 } else { ip.id };
        let key = match &ip.transport {
            Transport::Tcp(tcp) => Key {
                kind: Kind::of(tcp),
                id,
                at: tcp.seq,
                ack: tcp.ack,
                flags: tcp.flags.0,
                len: tcp.payload_len as u32,
            },
            Transport::Udp(_) | Transport::LaterFragment => Key {
                kind: Kind::Datagram,
                // A datagram has nothing else to be known by.
                id: ip.id,
                at: u32::from(ip.fragment_offset),
                ack: 0,
                flags: u8::from(ip.more_fragments),
                len: u32::from(ip.total_len).saturating_sub(ip.header_len as u32),
            },
            _ => return None,
        };
        Some(Self { packet, side, key })
    }
}

/// Follows every packet of every case.
pub(super) fn follow(story: &mut Story<'_>) {
    let (starts, order) = by_case(story);
    let cuts = may_cut(story);
    let all = &*story;
    let packets = in_pieces(all.roles.len(), all.cases.len(), |range| {
        let mut packets = Vec::new();
        for of in range {
            packets.append(&mut case(all, of, &order[starts[of]..starts[of + 1]], cuts));
        }
        packets
    });
    story.packets = packets;
    learn_translations(story);
}

/// Every packet of one case, from its frames in the order of time.
fn case(story: &Story<'_>, of: usize, frames: &[usize], cuts: bool) -> Vec<LogicalPacket> {
    let mut case = Following { packets: Vec::new(), index: None, base: [None; 2], sent: [0; 2], cuts };
    if frames.len() > MANY {
        case.index = Some(FxHashMap::default());
    }
    for &index in frames {
        let Role::Exchange(_, side) = story.roles[index] else { continue };
        let Some(piece) = Piece::read(story, of, index, side) else { continue };
        case.follow(of, stage(story, of, &piece), &piece);
    }
    case.finish();
    case.packets
}

/// Frames by case, each case's in the order of time: where each begins, and the frames.
fn by_case(story: &Story<'_>) -> (Vec<usize>, Vec<usize>) {
    let mut starts = vec![0usize; story.cases.len() + 1];
    let of = |role: &Role| match *role {
        Role::Exchange(of, _) => Some(of),
        _ => None,
    };
    story.roles.iter().filter_map(of).for_each(|of| starts[of + 1] += 1);
    for i in 1..starts.len() {
        starts[i] += starts[i - 1];
    }
    let mut next = starts.clone();
    let mut order = vec![0; starts[story.cases.len()]];
    for (index, role) in story.roles.iter().enumerate() {
        if let Some(of) = of(role) {
            order[next[of]] = index;
            next[of] += 1;
        }
    }
    (starts, order)
}

/// Whether somebody may cut or merge packets on their way.
fn may_cut(story: &Story<'_>) -> bool {
    !story.offloads_off() || story.plan.datapath.external
}

fn stage(story: &Story<'_>, of: usize, piece: &Piece) -> Option<usize> {
    let captured = story.captured(piece.packet);
    let place = story.places[captured.point]?;
    let spot = Spot { place, direction: captured.direction };
    story.way(of, piece.side).iter().position(|w: &Waypoint| w.spot == spot)
}

/// The socket behind the node that was asked, as the first request there shows it.
fn learn_translations(story: &mut Story<'_>) {
    for packet in &story.packets {
        if packet.side != Side::Request || story.translated[packet.of].is_some() {
            continue;
        }
        let way = story.way(packet.of, Side::Request);
        let behind = packet.sightings.iter().find(|s| s.stage.is_some_and(|at| way[at].hops > 0));
        if let Some(sighting) = behind
            && let Some((src, _)) = story.evidence.capture.headers(sighting.packet).sockets()
        {
            story.translated[packet.of] = Some(src);
        }
    }
}

/// Frames of a case beyond which its packets are looked up and not searched.
const MANY: usize = 256;

/// One case being followed.
struct Following {
    packets: Vec<LogicalPacket>,
    /// Packets by what they are known by, in a case of many frames.
    index: Option<FxHashMap<(Side, Key), Vec<usize>>>,
    /// Position 0 of each side's stream.
    base: [Option<u32>; 2],
    /// How far each side's stream has been sent.
    sent: [i64; 2],
    cuts: bool,
}

impl Following {
    fn follow(&mut self, of: usize, stage: Option<usize>, piece: &Piece) {
        let resets = piece.key.kind == Kind::Rst;
        let sighting = |is_part| Sighting { packet: piece.packet, stage, is_part, resets };
        if let Some(index) = self.find(piece, stage) {
            return self.packets[index].sightings.push(sighting(false));
        }
        let bytes = self.bytes(piece);
        if let (true, Some(stage), false) = (self.cuts, stage, bytes.is_empty())
            && self.share_out(piece, stage, &bytes)
        {
            return;
        }
        let known = self.is_known(piece);
        let repeats = stage.is_some_and(|s| s > 0) && known;
        let sent = &mut self.sent[piece.side as usize];
        // A FIN without payload takes one sequence number all the same.
        let end = bytes.end.max(bytes.start + i64::from(piece.key.flags & TcpFlags::FIN != 0));
        let again = known || (bytes.start < end && bytes.start < *sent);
        *sent = (*sent).max(end);
        if let Some(index) = &mut self.index {
            index.entry((piece.side, piece.key)).or_default().push(self.packets.len());
        }
        self.packets.push(LogicalPacket {
            of,
            side: piece.side,
            kind: piece.key.kind,
            sightings: vec![sighting(false)],
            key: piece.key,
            bytes,
            parts: Vec::new(),
            repeats,
            again,
        });
    }

    /// The first packet like this one that was not at this stage yet: a sender that repeats itself makes packets that are
    /// all alike.
    fn find(&self, piece: &Piece, stage: Option<usize>) -> Option<usize> {
        if let Some(index) = &self.index {
            let like = index.get(&(piece.side, piece.key))?;
            return like.iter().copied().find(|i| self.packets[*i].lacks(stage));
        }
        let fits = |p: &LogicalPacket| (p.side, p.key) == (piece.side, piece.key) && p.lacks(stage);
        self.packets.iter().position(fits)
    }

    fn is_known(&self, piece: &Piece) -> bool {
        match &self.index {
            Some(index) => index.contains_key(&(piece.side, piece.key)),
            None => self.packets.iter().any(|p| (p.side, p.key) == (piece.side, piece.key)),
        }
    }

    /// Bytes of the stream (0 is the first sequence number seen; FIN counts one) or of the datagram.
    fn bytes(&mut self, piece: &Piece) -> Range<i64> {
        let key = &piece.key;
        let len = i64::from(key.len);
        if key.kind == Kind::Datagram {
            // Datagrams of one socket are told apart by their ids.
            let at = i64::from(key.at) + (i64::from(key.id) << 20);
            return at..at + len.max(1);
        }
        let base = self.base[piece.side as usize].get_or_insert(key.at);
        let at = i64::from(key.at.wrapping_sub(*base) as i32);
        // A SYN with payload (TCP Fast Open) has its first byte one later.
        let at = at + i64::from(key.flags & TcpFlags::SYN != 0);
        if len == 0 { at..at } else { at..at + len + i64::from(key.flags & TcpFlags::FIN != 0) }
    }

    /// Counts a sighting for the packets that it is made of, each byte for the earliest that still lacks bytes here;
    /// `false` if there is none. One that began at this very stage is none: its sender repeats itself.
    fn share_out(&mut self, piece: &Piece, stage: usize, bytes: &Range<i64>) -> bool {
        let mut left = vec![bytes.clone()];
        let resets = piece.key.kind == Kind::Rst;
        let mut counted = false;
        for packet in &mut self.packets {
            let other = packet.side != piece.side || packet.bytes.is_empty();
            if other || packet.origin() == Some(stage) || packet.complete_at(stage) {
                continue;
            }
            let same = (packet.key.at, packet.key.len) == (piece.key.at, piece.key.len);
            if !counted && same && packet.lacks(Some(stage)) {
                // Neither cut nor merged: the same packet, altered.
                packet.sightings.push(Sighting {
                    packet: piece.packet,
                    stage: Some(stage),
                    is_part: false,
                    resets,
                });
                return true;
            }
            let (own, rest) = split(&left, &packet.bytes);
            if own.is_empty() {
                continue;
            }
            let known = packet.parts.iter().position(|(s, _)| *s == stage);
            let known = known.unwrap_or_else(|| {
                packet.parts.push((stage, Vec::new()));
                packet.parts.len() - 1
            });
            own.iter().for_each(|part| insert(&mut packet.parts[known].1, part.clone()));
            packet.sightings.push(Sighting {
                packet: piece.packet,
                stage: Some(stage),
                is_part: true,
                resets,
            });
            left = rest;
            counted = true;
        }
        counted
    }

    /// Joins what was altered on its way with what it was before, and puts sightings in the order of the way.
    fn finish(&mut self) {
        self.join_altered();
        for packet in &mut self.packets {
            packet.sightings.sort_by_key(|s| s.stage.unwrap_or(usize::MAX));
        }
    }

    /// A packet that appears in the middle of the way, where one that is much like it was not seen, is that one, altered:
    /// the difference says more than a loss and a stranger.
    fn join_altered(&mut self) {
        let mut index = 0;
        while index < self.packets.len() {
            let altered = &self.packets[index];
            let appeared = !altered.repeats && altered.origin().is_some_and(|origin| origin > 0);
            let like = |p: &LogicalPacket| {
                let fills = altered.sightings.iter().all(|s| s.stage.is_some() && p.lacks(s.stage));
                let earlier = p.origin() < altered.origin();
                fills && earlier && p.side == altered.side && alike(&p.key, &altered.key)
            };
            let before = if appeared { self.packets.iter().position(like) } else { None };
            match before {
                Some(before) => {
                    let altered = self.packets.remove(index);
                    let before = before - usize::from(before > index);
                    self.packets[before].sightings.extend(altered.sightings);
                }
                None => index += 1,
            }
        }
    }
}

/// Whether two packets may be one that was altered: at most one of the things that make a packet is different.
fn alike(a: &Key, b: &Key) -> bool {
    let differs = [a.id != b.id, a.at != b.at, a.ack != b.ack, a.flags != b.flags, a.len != b.len];
    differs.iter().filter(|d| **d).count() <= 1
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

/// What of `ranges` lies within `window`, and what does not.
fn split(ranges: &[Range<i64>], window: &Range<i64>) -> (Vec<Range<i64>>, Vec<Range<i64>>) {
    let parts = |from: i64, to: i64| {
        ranges.iter().map(move |r| r.start.max(from)..r.end.min(to)).filter(|r| !r.is_empty())
    };
    let outside = parts(i64::MIN, window.start).chain(parts(window.end, i64::MAX));
    (parts(window.start, window.end).collect(), outside.collect())
}
