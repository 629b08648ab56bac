//! Which exchange a captured packet belongs to, whatever was rewritten on the way.
//!
//! Owns: the assignment of packets to exchanges. Does not own: following one packet from point to point
//! ([`crate::hop`]). Where the client's socket is kept (dsr, local), it names the exchange. Where the source was rewritten
//! (snat), the first packet that repeats a known request's TCP sequence and acknowledgement numbers, or a
//! datagram's payload and IP id, gives the rewritten socket away; from then on the socket is enough.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{Ipv4Addr, SocketAddrV4};

use datapath_types::{PROTO_TCP, PROTO_UDP};

use crate::canary;
use crate::capture::{CaptureFile, Captured};
use crate::exchange::Exchange;
use crate::packet::{Ipv4, Transport};

/// Which way a packet travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    /// From the client towards the backend.
    Request,
    /// From the backend, or from a node on its behalf, towards the client.
    Reply,
}

/// A packet's place in the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tag {
    /// Index into the exchanges.
    pub exchange: usize,
    /// Its direction of travel.
    pub side: Side,
}

/// For each packet of the capture its exchange; `None` for canaries and for what is none of ours.
pub fn assign(capture: &CaptureFile, exchanges: &[Exchange]) -> Vec<Option<Tag>> {
    let mut assigner = Assigner::new(exchanges);
    let mut tags: Vec<_> = capture.packets.iter().map(|p| assigner.tag(p)).collect();
    // Second pass: a later fragment may be captured before the first one, which alone has the ports.
    for (tag, packet) in tags.iter_mut().zip(&capture.packets) {
        if let (None, Some(ip)) = (&tag, packet.frame.ipv4())
            && ip.transport == Transport::LaterFragment
        {
            *tag = assigner.fragments.get(&FragmentKey::of(ip)).copied();
        }
    }
    tags
}

/// A socket's owners over time: when each began, and its exchange. Ports are reused.
type Owners = Vec<(u64, usize)>;

/// The owner at a time: the last that began before it; for a clock that disagrees, the first.
fn owner(owners: &Owners, ts_ns: u64) -> Option<usize> {
    let after = owners.partition_point(|(since, _)| *since <= ts_ns);
    owners.get(after.saturating_sub(1)).map(|(_, exchange)| *exchange)
}

/// Enough of a request to know it again after its addresses were rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Fingerprint {
    Tcp { seq: u32, ack: u32, flags: u8 },
    Udp { id: u16, len: usize, payload: u64 },
}

impl Fingerprint {
    fn of(packet: &Captured) -> Option<Self> {
        let ip = packet.frame.ipv4()?;
        match &ip.transport {
            Transport::Tcp(tcp) => Some(Self::Tcp { seq: tcp.seq, ack: tcp.ack, flags: tcp.flags.0 }),
            Transport::Udp(udp) => {
                let mut hasher = DefaultHasher::new();
                packet.payload().iter().take(64).for_each(|b| b.hash(&mut hasher));
                Some(Self::Udp { id: ip.id, len: udp.payload_len, payload: hasher.finish() })
            }
            _ => None,
        }
    }
}

/// The fragments of one packet (RFC 791 section 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct FragmentKey(Ipv4Addr, Ipv4Addr, u16, u8);

impl FragmentKey {
    fn of(ip: &Ipv4) -> Self {
        Self(ip.src, ip.dst, ip.id, ip.protocol)
    }
}

/// A rewritten socket and the backend it talks to, with the protocol.
type Translation = (u8, SocketAddrV4, SocketAddrV4);

struct Assigner {
    clients: HashMap<(u8, SocketAddrV4), Owners>,
    translations: HashMap<Translation, Owners>,
    requests: HashMap<Fingerprint, usize>,
    fragments: HashMap<FragmentKey, Tag>,
}

impl Assigner {
    fn new(exchanges: &[Exchange]) -> Self {
        let mut clients: HashMap<_, Owners> = HashMap::new();
        for (i, exchange) in exchanges.iter().enumerate() {
            let protocol = if exchange.protocol == "udp" { PROTO_UDP } else { PROTO_TCP };
            clients.entry((protocol, exchange.local)).or_default().push((exchange.started_ns, i));
        }
        clients.values_mut().for_each(|owners| owners.sort_unstable());
        Self { clients, translations: HashMap::new(), requests: HashMap::new(), fragments: HashMap::new() }
    }

    fn tag(&mut self, packet: &Captured) -> Option<Tag> {
        if canary::is_noise(&packet.data, &packet.frame) {
            return None;
        }
        let ip = packet.frame.ipv4()?;
        if let Some((src, dst)) = packet.frame.sockets() {
            let tag = self.of_sockets(ip.protocol, src, dst, packet.ts_ns);
            let tag = tag.or_else(|| self.recognise(packet, ip.protocol, src, dst))?;
            self.remember(packet, ip, tag);
            return Some(tag);
        }
        let quote = packet.frame.icmp()?.quote.as_deref()?;
        let (src, dst) = quote.sockets()?;
        let tag = self.of_sockets(quote.ipv4.protocol, src, dst, packet.ts_ns)?;
        // An error about a request travels back to the client, and the other way round.
        let side = if tag.side == Side::Request { Side::Reply } else { Side::Request };
        Some(Tag { side, ..tag })
    }

    fn of_sockets(&self, protocol: u8, src: SocketAddrV4, dst: SocketAddrV4, ts: u64) -> Option<Tag> {
        let client = |socket| owner(self.clients.get(&(protocol, socket))?, ts);
        let translated = |from, to| owner(self.translations.get(&(protocol, from, to))?, ts);
        let request = |exchange| Tag { exchange, side: Side::Request };
        let reply = |exchange| Tag { exchange, side: Side::Reply };
        client(src)
            .map(request)
            .or_else(|| client(dst).map(reply))
            .or_else(|| translated(src, dst).map(request))
            .or_else(|| translated(dst, src).map(reply))
    }

    /// A packet between sockets that nobody knows, which repeats a request.
    fn recognise(
        &mut self,
        packet: &Captured,
        protocol: u8,
        src: SocketAddrV4,
        dst: SocketAddrV4,
    ) -> Option<Tag> {
        let exchange = *self.requests.get(&Fingerprint::of(packet)?)?;
        self.translations.entry((protocol, src, dst)).or_default().push((packet.ts_ns, exchange));
        Some(Tag { exchange, side: Side::Request })
    }

    fn remember(&mut self, packet: &Captured, ip: &Ipv4, tag: Tag) {
        if tag.side == Side::Request
            && let Some(fingerprint) = Fingerprint::of(packet)
        {
            self.requests.insert(fingerprint, tag.exchange);
        }
        if ip.is_fragment() {
            self.fragments.insert(FragmentKey::of(ip), tag);
        }
    }
}
