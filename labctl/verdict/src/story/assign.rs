//! Whose each captured frame is, whatever was rewritten on the way.
//!
//! Owns: the role of each frame, and the backend of each case. Does not own: following one packet from place to place
//! ([`super::follow`]). Where the client's socket is kept (dsr, local), it names the exchange. Where the source was
//! rewritten (snat), the packet that opens a flow is known again by what no load balancer touches (TCP sequence
//! number; a datagram's payload and IP id), and gives the rewritten socket away. A socket may serve one exchange after
//! the other: each new opening packet says whose it is from then on.

use std::net::{Ipv4Addr, SocketAddrV4};

use datapath_types::{PROTO_TCP, PROTO_UDP};
use labctl_model::Protocol;
use labctl_wire::packet::{Frame, Ipv4, Transport};
use labctl_wire::{Direction, canary};
use rustc_hash::FxHashMap;

use super::{Role, Story};
use crate::scene::case::{Case, Side};
use crate::scene::place::Place;

/// Gives every frame its role and every case its backend.
pub(super) fn assign(story: &mut Story<'_>) {
    let mut assigner = Assigner::new(&story.cases);
    let count = story.evidence.capture.packets().len();
    let mut roles = Vec::with_capacity(count);
    let mut loose = Vec::new();
    for index in 0..count {
        let frame = story.headers(index);
        let role = assigner.role(story, index, &frame);
        if role == Role::Other && is_later_fragment(&frame) {
            loose.push(index);
        }
        roles.push(role);
    }
    // A later fragment may be captured before the first one, which alone has the ports.
    for index in loose {
        if let Some(ip) = story.headers(index).ipv4() {
            roles[index] = assigner.of_fragment(ip, story.captured(index).ts_ns);
        }
    }
    story.roles = roles;
    story.addressed = assigner.backends;
    find_backends(story);
}

/// The backend of each case: the one that a request was addressed to, else the one that says it answered. A
/// hostNetwork backend on the node that was asked is never seen as a destination: the rewrite happens behind the
/// capture.
fn find_backends(story: &mut Story<'_>) {
    let backends = story.backends();
    let port = story.plan.service.target_port;
    for (case, addressed) in story.cases.iter_mut().zip(&story.addressed) {
        let seen = addressed.and_then(|socket| {
            backends.iter().copied().find(|b| SocketAddrV4::new(b.pod.address, port) == socket)
        });
        let served_by = case.exchange.served_by.as_ref();
        let told = || served_by.and_then(|s| backends.iter().copied().find(|b| b.pod.name == s.pod));
        case.backend = seen.or_else(told);
    }
}

fn is_later_fragment(frame: &Frame) -> bool {
    frame.ipv4().is_some_and(|ip| ip.transport == Transport::LaterFragment)
}

/// A socket's owners over time: when each began, and its case. Ports are reused.
type Owners = Vec<(u64, usize)>;

/// Enough of the packet that opens a flow to know it again after its addresses were rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Opening {
    Syn { seq: u32 },
    Datagram { id: u16, len: usize, payload: u64 },
}

impl Opening {
    pub(crate) const fn protocol(self) -> Protocol {
        match self {
            Self::Syn { .. } => Protocol::Tcp,
            Self::Datagram { .. } => Protocol::Udp,
        }
    }

    pub(crate) fn of(frame: &Frame, ip: &Ipv4, data: &[u8]) -> Option<Self> {
        match &ip.transport {
            Transport::Tcp(tcp) if tcp.flags.is_syn() => Some(Self::Syn { seq: tcp.seq }),
            Transport::Udp(udp) => {
                let payload = data.get(frame.payload()).unwrap_or(&[]);
                let head = payload.iter().take(64);
                let hash = head.fold(0u64, |h, b| {
                    (h.rotate_left(5) ^ u64::from(*b)).wrapping_mul(0x517c_c1b7_2722_0a95)
                });
                Some(Self::Datagram { id: ip.id, len: udp.payload_len, payload: hash })
            }
            _ => None,
        }
    }
}

/// The protocol in an IPv4 header (IANA protocol numbers).
pub(crate) const fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => PROTO_TCP,
        Protocol::Udp => PROTO_UDP,
    }
}

/// The fragments of one packet (RFC 791 section 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Fragments(Ipv4Addr, Ipv4Addr, u16, u8);

impl Fragments {
    fn of(ip: &Ipv4) -> Self {
        Self(ip.src, ip.dst, ip.id, ip.protocol)
    }
}

type Owner = (usize, Side);

struct Assigner {
    clients: FxHashMap<(u8, SocketAddrV4), Owners>,
    /// A rewritten socket and the backend it talks to, with the protocol.
    translations: FxHashMap<(u8, SocketAddrV4, SocketAddrV4), usize>,
    openings: FxHashMap<Opening, usize>,
    fragments: FxHashMap<Fragments, Vec<(u64, Owner)>>,
    /// Per case the first destination of a request that is not the frontend.
    backends: Vec<Option<SocketAddrV4>>,
    remotes: Vec<SocketAddrV4>,
}

impl Assigner {
    fn new(cases: &[Case<'_>]) -> Self {
        let mut clients: FxHashMap<_, Owners> = FxHashMap::default();
        clients.reserve(cases.len());
        for (i, case) in cases.iter().enumerate() {
            let protocol = protocol_number(case.protocol);
            let owners = clients.entry((protocol, case.exchange.local)).or_default();
            owners.push((case.exchange.started_ns, i));
        }
        clients.values_mut().filter(|o| o.len() > 1).for_each(|owners| owners.sort_unstable());
        Self {
            clients,
            translations: FxHashMap::default(),
            openings: FxHashMap::default(),
            fragments: FxHashMap::default(),
            backends: vec![None; cases.len()],
            remotes: cases.iter().map(|c| c.exchange.remote).collect(),
        }
    }

    fn role(&mut self, story: &Story<'_>, index: usize, frame: &Frame) -> Role {
        let captured = story.captured(index);
        if story.places[captured.point].is_none() {
            return Role::Elsewhere;
        }
        let told = story.info(captured.point).addresses.tell_receiver();
        let own = story.addresses.of_point(captured.point).filter(|_| told);
        let not_ours = own.is_some_and(|own| own != frame.dst) && !frame.dst.is_group();
        if captured.direction == Direction::In && not_ours {
            return Role::Overheard;
        }
        let Some(ip) = frame.ipv4() else { return Role::Other };
        let data = story.evidence.capture.data(index);
        if canary::is_noise(data, frame) {
            return Role::Canary;
        }
        let Some((src, dst)) = frame.sockets() else { return self.of_error(frame, captured.ts_ns) };
        let Some((of, side)) = self.of_packet(story, index, frame, ip, src, dst) else { return Role::Other };
        if ip.is_fragment() {
            self.fragments.entry(Fragments::of(ip)).or_default().push((captured.ts_ns, (of, side)));
        }
        Role::Exchange(of, side)
    }

    fn of_packet(
        &mut self,
        story: &Story<'_>,
        index: usize,
        frame: &Frame,
        ip: &Ipv4,
        src: SocketAddrV4,
        dst: SocketAddrV4,
    ) -> Option<Owner> {
        let captured = story.captured(index);
        if let Some(owner) = self.of_client(ip.protocol, src, dst, captured.ts_ns) {
            let (of, side) = owner;
            if side == Side::Request {
                self.addressed(of, dst);
                let arrives = matches!(story.places[captured.point], Some(Place::Uplink(_)))
                    && captured.direction == Direction::In;
                if arrives && let Some(opening) = Opening::of(frame, ip, story.evidence.capture.data(index)) {
                    self.openings.insert(opening, of);
                }
            }
            return Some(owner);
        }
        let opening = Opening::of(frame, ip, story.evidence.capture.data(index));
        if let Some(of) = opening.and_then(|o| self.openings.get(&o).copied()) {
            self.translations.insert((ip.protocol, src, dst), of);
            self.addressed(of, dst);
            return Some((of, Side::Request));
        }
        self.of_translated(ip.protocol, src, dst)
    }

    fn addressed(&mut self, of: usize, dst: SocketAddrV4) {
        if self.backends[of].is_none() && dst != self.remotes[of] {
            self.backends[of] = Some(dst);
        }
    }

    fn of_client(&self, protocol: u8, src: SocketAddrV4, dst: SocketAddrV4, ts_ns: u64) -> Option<Owner> {
        let owned = |socket, peer| self.owner(self.clients.get(&(protocol, socket))?, peer, ts_ns);
        owned(src, dst).map(|of| (of, Side::Request)).or_else(|| owned(dst, src).map(|of| (of, Side::Reply)))
    }

    /// The owner at a time: the last that began before it; for a clock that disagrees, the first. One that asked this
    /// very peer goes before others of that time.
    fn owner(&self, owners: &Owners, peer: SocketAddrV4, ts_ns: u64) -> Option<usize> {
        if let [(_, only)] = owners[..] {
            return Some(only);
        }
        let before = &owners[..owners.partition_point(|(since, _)| *since <= ts_ns)];
        let asked = before.iter().rev().find(|(_, of)| self.remotes[*of] == peer);
        asked.or(before.last()).or(owners.first()).map(|(_, of)| *of)
    }

    fn of_translated(&self, protocol: u8, src: SocketAddrV4, dst: SocketAddrV4) -> Option<Owner> {
        let translated = |from, to| self.translations.get(&(protocol, from, to)).copied();
        translated(src, dst)
            .map(|of| (of, Side::Request))
            .or_else(|| translated(dst, src).map(|of| (of, Side::Reply)))
    }

    /// An error about a request travels back to the client, and the other way round.
    fn of_error(&self, frame: &Frame, ts_ns: u64) -> Role {
        let Some(quote) = frame.icmp().and_then(|i| i.quote.as_deref()) else { return Role::Other };
        let owner = match quote.sockets() {
            Some((src, dst)) => self
                .of_client(quote.ipv4.protocol, src, dst, ts_ns)
                .or_else(|| self.of_translated(quote.ipv4.protocol, src, dst)),
            None => self.nearest(&quote.ipv4, ts_ns),
        };
        match owner {
            Some((of, Side::Request)) => Role::Error(of, Side::Reply),
            Some((of, Side::Reply)) => Role::Error(of, Side::Request),
            None => Role::Other,
        }
    }

    fn of_fragment(&self, ip: &Ipv4, ts_ns: u64) -> Role {
        self.nearest(ip, ts_ns).map_or(Role::Other, |(of, side)| Role::Exchange(of, side))
    }

    /// Whose first fragment with this key came closest in time: keys come again after 65,536 packets.
    fn nearest(&self, ip: &Ipv4, ts_ns: u64) -> Option<Owner> {
        let known = self.fragments.get(&Fragments::of(ip))?;
        known.iter().min_by_key(|(at, _)| at.abs_diff(ts_ns)).map(|(_, owner)| *owner)
    }
}
