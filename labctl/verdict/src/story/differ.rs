//! Where a packet differs from what its way demands.
//!
//! Owns: the expected next packet. Between two sightings a packet may differ only by what mode, carrier and hop demand:
//! the link's Ethernet addresses, the sockets of that part of the way, the TTL, the carrier, and the checksums that
//! follow. Everything else must be as it was, byte by byte. Does not own: which check minds ([`crate::check`]), and
//! whether checksums are right.

use std::net::SocketAddrV4;
use std::ops::Range;

use labctl_wire::Frame;
use labctl_wire::packet::{Ipv4, Mac, Tcp, TcpFlags, Transport};

use super::follow::LogicalPacket;
use super::{Role, Story};
use crate::parallel::in_pieces;
use crate::scene::case::{Case, Rewrite, Side, Sockets, Waypoint};
use crate::scene::place::Place;

/// What differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Field {
    /// Ethernet source of a frame that leaves a host.
    LinkSource,
    /// Ethernet destination of a frame that leaves a host: it is not the next place of the way.
    LinkDestination,
    /// Source address or port.
    Source,
    /// Destination address or port.
    Destination,
    Ttl,
    /// The option that carries the frontend is missing, or is where it must not be.
    Carrier,
    /// Anything that nothing may change.
    Rest(&'static str),
}

/// One thing that is not as it should be in one captured packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    /// Index into the capture's packets.
    pub(crate) packet: usize,
    /// Index of its case.
    pub(crate) of: usize,
    pub(crate) side: Side,
    pub(crate) place: Place,
    pub(crate) field: Field,
    /// What it should be, as far as that can be said in a few words.
    pub(crate) expected: String,
    pub(crate) found: String,
}

impl Difference {
    /// Whether the socket that was found has such an address.
    pub(crate) fn shows(&self, is: impl Fn(std::net::Ipv4Addr) -> bool) -> bool {
        self.found.parse::<SocketAddrV4>().is_ok_and(|socket| is(*socket.ip()))
    }
}

/// Compares every sighting with the one before and with the demands of its place.
pub(super) fn compare(story: &mut Story<'_>) {
    let all = &*story;
    let mut found = in_pieces(all.roles.len(), all.packets.len(), |range| {
        let mut found = Vec::new();
        for packet in &all.packets[range] {
            let case = &all.cases[packet.of];
            let way = all.way(packet.of, packet.side);
            let mut walk = Walk { story: all, case, packet, found: &mut found };
            walk.along(way);
        }
        found
    });
    let errors = errors_altered(story);
    found.extend(errors);
    story.differences = found;
}

/// A sighting, read.
struct Here<'s> {
    index: usize,
    data: &'s [u8],
    frame: Frame,
}

struct Walk<'w, 's, 'a> {
    story: &'s Story<'a>,
    case: &'s Case<'a>,
    packet: &'s LogicalPacket,
    found: &'w mut Vec<Difference>,
}

impl<'s> Walk<'_, 's, '_> {
    fn along(&mut self, way: &[Waypoint]) {
        let mut first: Option<(Waypoint, u8)> = None;
        let mut before: Option<Here<'s>> = None;
        for sighting in &self.packet.sightings {
            let Some(stage) = sighting.stage else { continue };
            let point = way[stage];
            let here = self.read(sighting.packet);
            let Some(ip) = here.frame.ipv4() else { continue };
            self.link(&point, &here);
            self.sockets(&point, &here);
            self.carrier(&point, &here, ip);
            match first {
                Some((origin, ttl)) => self.ttl(&origin, ttl, &point, &here, ip),
                None => first = Some((point, ip.ttl)),
            }
            match &before {
                Some(before) if sighting.is_part => self.part(&point, before, &here),
                Some(before) => self.rest(&point, before, &here),
                None => {}
            }
            if !sighting.is_part {
                before = Some(here);
            }
        }
    }

    fn read(&self, index: usize) -> Here<'s> {
        Here { index, data: self.story.evidence.capture.data(index), frame: self.story.headers(index) }
    }

    fn note(&mut self, here: &Here<'_>, place: Place, field: Field, expected: String, found: String) {
        let LogicalPacket { of, side, .. } = *self.packet;
        self.found.push(Difference { packet: here.index, of, side, place, field, expected, found });
    }

    /// Both Ethernet addresses, where both ends of the link are known.
    fn link(&mut self, point: &Waypoint, here: &Here<'_>) {
        if !point.spot.place.on_segment() && !self.story.habits.owns_pod_links {
            return;
        }
        let (from, to) = point.link;
        let told = self.story.info(self.story.captured(here.index).point).addresses;
        let ends = [
            (told.tell_sender(), Field::LinkSource, from, here.frame.src),
            (told.tell_receiver(), Field::LinkDestination, to, here.frame.dst),
        ];
        for (is_told, field, place, found) in ends {
            if is_told
                && let Some(expected) = self.story.addresses.of(place)
                && expected != found
            {
                let expected = format!("{expected} of {}", self.story.place_name(place));
                self.note(here, point.spot.place, field, expected, self.owner(found));
            }
        }
    }

    /// An Ethernet address, and whose it is.
    fn owner(&self, mac: Mac) -> String {
        let whose = (0..self.story.places.len()).find(|p| self.story.addresses.of_point(*p) == Some(mac));
        match whose {
            Some(point) => format!("{mac} of {}", self.story.info(point).point),
            None => mac.to_string(),
        }
    }

    fn sockets(&mut self, point: &Waypoint, here: &Here<'_>) {
        let Some((src, dst)) = here.frame.sockets() else { return };
        let (client, server) = match self.packet.side {
            Side::Request => (src, dst),
            Side::Reply => (dst, src),
        };
        let place = point.spot.place;
        let (of_client, of_server) = match self.packet.side {
            Side::Request => (Field::Source, Field::Destination),
            Side::Reply => (Field::Destination, Field::Source),
        };
        if let Some(expected) = self.client_side(point)
            && !self.fits(point, client, expected)
        {
            self.note(here, place, of_client, expected.to_string(), client.to_string());
        }
        if let Some(expected) = self.server_side(point)
            && expected != server
        {
            self.note(here, place, of_server, expected.to_string(), server.to_string());
        }
    }

    /// The client's socket at this place, or what stands for it.
    fn client_side(&self, point: &Waypoint) -> Option<SocketAddrV4> {
        match point.sockets {
            Sockets::Outside | Sockets::Inside => Some(self.case.exchange.local),
            Sockets::Translated => self.story.translated[self.packet.of],
        }
    }

    fn fits(&self, point: &Waypoint, found: SocketAddrV4, expected: SocketAddrV4) -> bool {
        let (plan, case) = (self.story.plan, self.case);
        match (point.sockets, case.rewrite()) {
            (Sockets::Translated, _) => found == expected && case.is_of_ingress(plan, *found.ip()),
            (Sockets::Inside, Rewrite::Maybe) => found == expected || case.is_of_ingress(plan, *found.ip()),
            _ => found == expected,
        }
    }

    fn server_side(&self, point: &Waypoint) -> Option<SocketAddrV4> {
        match point.sockets {
            Sockets::Outside => Some(self.case.exchange.remote),
            Sockets::Inside | Sockets::Translated => self.case.backend_socket(self.story.plan),
        }
    }

    fn ttl(&mut self, origin: &Waypoint, sent: u8, point: &Waypoint, here: &Here<'_>, ip: &Ipv4) {
        let hops = point.hops.saturating_sub(origin.hops);
        let expected = sent.saturating_sub(hops);
        let kept = if self.story.habits.may_keep_ttl { point.asked.saturating_sub(origin.asked) } else { 0 };
        if !(expected..=expected.saturating_add(kept)).contains(&ip.ttl) {
            let expected = format!("{expected} after {hops} hop{}", if hops == 1 { "" } else { "s" });
            self.note(here, point.spot.place, Field::Ttl, expected, ip.ttl.to_string());
        }
    }

    /// Whether the carrier is where it must be, and nowhere else. What it says is [`crate::check`]'s matter.
    fn carrier(&mut self, point: &Waypoint, here: &Here<'_>, ip: &Ipv4) {
        let due = point.carrier
            && match &ip.transport {
                Transport::Tcp(tcp) => tcp.flags.is_syn(),
                Transport::Udp(_) => true,
                // The option is of the kind that is copied into fragments; a node may have cut after tagging.
                Transport::LaterFragment => ip.options.dsr.is_some(),
                _ => false,
            };
        let has = ip.options.dsr_count > 0;
        let habits = &self.story.habits;
        // What a client sends again may be tagged again: the backend's node may have forgotten the flow.
        let again = point.carrier && self.packet.again;
        let kept = !habits.must_strip_option && self.case.is_carried() && point.hops > 0;
        let allowed = due || again || kept;
        if due && !has && habits.must_carry_option {
            self.note(here, point.spot.place, Field::Carrier, "the option".to_owned(), "none".to_owned());
        } else if has && !allowed {
            self.note(here, point.spot.place, Field::Carrier, "none".to_owned(), "an option".to_owned());
        }
    }

    /// Of a piece, what it shares with the whole.
    fn part(&mut self, point: &Waypoint, before: &Here<'_>, here: &Here<'_>) {
        let mut found = Vec::new();
        shared(&mut found, before, here);
        for (name, expected, value) in found {
            self.note(here, point.spot.place, Field::Rest(name), expected, value);
        }
    }

    /// Everything else is as it was at the last sighting.
    fn rest(&mut self, point: &Waypoint, before: &Here<'_>, here: &Here<'_>) {
        let (Some(old), Some(new)) = (before.frame.ipv4(), here.frame.ipv4()) else { return };
        let changes_id = self.story.may_change_id(self.packet.of);
        let mut found = Vec::new();
        header(&mut found, before, here, old, new, changes_id);
        transport(&mut found, before, here, old, new);
        for (name, expected, value) in found {
            self.note(here, point.spot.place, Field::Rest(name), expected, value);
        }
    }
}

type Altered = (&'static str, String, String);

/// A packet of which `here` is a piece, or the other way round: what every piece has of the whole, and the bytes that both
/// have. Pieces are merged only if acknowledgement number and window are the same (`tcp_gro_receive`), and cutting
/// keeps both.
fn shared(found: &mut Vec<Altered>, before: &Here<'_>, here: &Here<'_>) -> Option<()> {
    let (old, new) = (before.frame.ipv4()?, here.frame.ipv4()?);
    let mut differ = |name, a: u32, b: u32| {
        if a != b {
            found.push((name, format!("{a:#x}"), format!("{b:#x}")));
        }
    };
    differ("ToS", old.tos.into(), new.tos.into());
    differ("IP flags", old.dont_fragment.into(), new.dont_fragment.into());
    differ("protocol", old.protocol.into(), new.protocol.into());
    let (a, b, ahead) = match (&old.transport, &new.transport) {
        (Transport::Tcp(a), Transport::Tcp(b)) => {
            differ("TCP acknowledgement number", a.ack, b.ack);
            differ("TCP window", a.window.into(), b.window.into());
            // The last piece alone has what ends a segment.
            let lasting = |flags: u8| u32::from(flags & !(TcpFlags::FIN | TcpFlags::PSH));
            differ("TCP flags", lasting(a.flags.0), lasting(b.flags.0));
            differ("TCP header length", header_of(before, old, a), header_of(here, new, b));
            let payload = |here: &Here<'_>| here.frame.payload();
            (
                before.data.get(payload(before))?,
                here.data.get(payload(here))?,
                i64::from(b.seq.wrapping_sub(a.seq) as i32),
            )
        }
        (Transport::Tcp(_), _) | (_, Transport::Tcp(_)) => return None,
        _ => {
            // The first fragment's UDP checksum is another's matter.
            let (mut a, mut b) = (inside(before, old), inside(here, new));
            let mut ahead = i64::from(new.fragment_offset) - i64::from(old.fragment_offset);
            if old.fragment_offset == 0 {
                (a, ahead) = (a.get(8..)?, ahead - 8);
            }
            if new.fragment_offset == 0 {
                (b, ahead) = (b.get(8..)?, ahead + 8);
            }
            (a, b, ahead)
        }
    };
    let (from, to) = (ahead.max(0), (ahead + b.len() as i64).min(a.len() as i64));
    if from < to {
        let a = a.get(from as usize..to as usize)?;
        let b = b.get((from - ahead) as usize..(to - ahead) as usize)?;
        same(found, "payload", a, b, 0..usize::MAX);
    }
    Some(())
}

fn header(
    found: &mut Vec<Altered>,
    before: &Here<'_>,
    here: &Here<'_>,
    old: &Ipv4,
    new: &Ipv4,
    changes_id: bool,
) {
    let mut differ = |name, a: u32, b: u32| {
        if a != b {
            found.push((name, format!("{a:#x}"), format!("{b:#x}")));
        }
    };
    differ("ToS", old.tos.into(), new.tos.into());
    if !changes_id {
        differ("IP identification", old.id.into(), new.id.into());
    }
    let flags = |here: &Here<'_>| here.data.get(here.frame.header_len + 6).map_or(0, |b| u32::from(b >> 5));
    differ("IP flags", flags(before), flags(here));
    differ("fragment offset", old.fragment_offset.into(), new.fragment_offset.into());
    differ("protocol", old.protocol.into(), new.protocol.into());
    let inside = |ip: &Ipv4| u32::from(ip.total_len).saturating_sub(ip.header_len as u32);
    differ("length", inside(old), inside(new));
    differ("VLAN", before.frame.vlan.map_or(0x1000, u32::from), here.frame.vlan.map_or(0x1000, u32::from));
    if old.header_len > 20 || new.header_len > 20 {
        let (a, b) = (other_options(&old.options.raw), other_options(&new.options.raw));
        if a != b {
            found.push(("IP options", hex(&a), hex(&b)));
        }
    }
}

/// Options without the carrier and without padding.
fn other_options(raw: &[u8]) -> Vec<u8> {
    let mut rest = raw;
    let mut other = Vec::new();
    while let [kind, after @ ..] = rest {
        let len = match (*kind, after.first()) {
            (0, _) => break,
            (1, _) => {
                rest = after;
                continue;
            }
            (_, Some(len)) if (2..=rest.len()).contains(&usize::from(*len)) => usize::from(*len),
            _ => rest.len(),
        };
        if *kind != datapath_types::option::TYPE {
            other.extend_from_slice(&rest[..len]);
        }
        rest = &rest[len..];
    }
    other
}

/// Bytes of a TCP header.
fn header_of(here: &Here<'_>, ip: &Ipv4, tcp: &Tcp) -> u32 {
    tcp.payload.start.saturating_sub(here.frame.header_len + ip.header_len) as u32
}

/// The transport header without ports and checksum, and the payload.
fn transport(found: &mut Vec<Altered>, before: &Here<'_>, here: &Here<'_>, old: &Ipv4, new: &Ipv4) {
    let (a, b) = (inside(before, old), inside(here, new));
    // Ports and checksum are others' matter.
    let parts: &[(&str, Range<usize>)] = match &new.transport {
        Transport::Tcp(_) => {
            let end = tcp_header(b);
            return tcp_parts(found, a, b, end.min(a.len()).min(b.len()));
        }
        Transport::Udp(_) => &[("UDP length", 4..6), ("payload", 8..usize::MAX)],
        _ => &[("payload", 0..usize::MAX)],
    };
    parts.iter().for_each(|(name, range)| same(found, name, a, b, range.clone()));
}

fn tcp_header(bytes: &[u8]) -> usize {
    bytes.get(12).map_or(20, |b| usize::from(b >> 4) * 4)
}

fn tcp_parts(found: &mut Vec<Altered>, a: &[u8], b: &[u8], end: usize) {
    // The usual case: nothing differs, and two comparisons say so.
    if a.len() == b.len() && a.len() > 18 && a[4..16] == b[4..16] && a[18..] == b[18..] {
        return;
    }
    let parts = [
        ("TCP sequence number", 4..8),
        ("TCP acknowledgement number", 8..12),
        ("TCP flags", 12..14),
        ("TCP window", 14..16),
        ("TCP urgent pointer", 18..20),
        ("TCP options", 20..end.max(20)),
        ("payload", end.max(20)..usize::MAX),
    ];
    for (name, range) in parts {
        same(found, name, a, b, range);
    }
}

/// What the IP packet carries, as far as it was captured; padding of the frame is none of it.
fn inside<'s>(here: &Here<'s>, ip: &Ipv4) -> &'s [u8] {
    let at = here.frame.header_len;
    let end = if ip.total_len == 0 { here.data.len() } else { at + usize::from(ip.total_len) };
    here.data.get(at + ip.header_len..end.min(here.data.len())).unwrap_or(&[])
}

fn same(found: &mut Vec<Altered>, name: &'static str, a: &[u8], b: &[u8], range: Range<usize>) {
    let cut = |bytes: &[u8]| range.start.min(bytes.len())..range.end.min(bytes.len());
    let (a, b) = (&a[cut(a)], &b[cut(b)]);
    if a == b {
        return;
    }
    let at = a.iter().zip(b).position(|(x, y)| x != y).unwrap_or(a.len().min(b.len()));
    let show = |bytes: &[u8]| hex(&bytes[at.min(bytes.len())..bytes.len().min(at + 8)]);
    let place = if range.len() > 8 { format!(" at byte {at}") } else { String::new() };
    found.push((name, format!("{}{place}", show(a)), show(b)));
}

fn hex(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "nothing".to_owned();
    }
    bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" ")
}

/// ICMP errors seen at both ends of one link must be the same there, down to the last byte.
fn errors_altered(story: &Story<'_>) -> Vec<Difference> {
    let mut found = Vec::new();
    let mut left: Vec<(usize, usize, Side)> = Vec::new();
    for (index, role) in story.roles.iter().enumerate() {
        let Role::Error(of, side) = *role else { continue };
        match story.captured(index).direction {
            labctl_wire::Direction::Out => left.push((index, of, side)),
            labctl_wire::Direction::In => {
                let Some(place) = story.places[story.captured(index).point] else { continue };
                let same_id = |i: usize| {
                    let id = |i| story.headers(i).ipv4().map(|ip| (ip.id, ip.src, ip.dst));
                    id(i) == id(index)
                };
                let sent = left.iter().rposition(|(i, o, s)| (*o, *s) == (of, side) && same_id(*i));
                let Some(sent) = sent else { continue };
                let (a, b) = (story.evidence.capture.data(left[sent].0), story.evidence.capture.data(index));
                if a != b {
                    let mut altered = Vec::new();
                    same(&mut altered, "ICMP error", a, b, 0..usize::MAX);
                    for (name, expected, value) in altered {
                        let field = Field::Rest(name);
                        found.push(Difference {
                            packet: index,
                            of,
                            side,
                            place,
                            field,
                            expected,
                            found: value,
                        });
                    }
                }
                left.remove(sent);
            }
            labctl_wire::Direction::Unknown => {}
        }
    }
    found
}
