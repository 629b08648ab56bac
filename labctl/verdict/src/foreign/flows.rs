//! Who asked whom, and what became of the addresses on the way.
//!
//! Owns: flows and the frontend among them. Does not own: where a capture was taken ([`super::places`]). A request is known
//! again behind a load balancer by what none of them rewrites: the initial sequence number of TCP (RFC 9293), and a
//! datagram's identification, length and payload.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};

use labctl_model::Protocol;
use labctl_wire::packet::Options;
use labctl_wire::{CaptureFile, canary};
use rustc_hash::FxHashMap;

use super::{Given, InferError};
use crate::story::{Opening, protocol_number};
use crate::words::plural;

/// Two sockets as a packet has them: source, destination.
pub(super) type Pair = (SocketAddrV4, SocketAddrV4);

/// The packet that opens a flow, where it was captured.
#[derive(Clone, Debug)]
pub(super) struct Sight {
    /// Index into the capture's packets.
    pub(super) packet: usize,
    pub(super) point: usize,
    pub(super) pair: Pair,
    pub(super) ttl: u8,
    /// Frontends that its option may name, in either byte order.
    carried: Vec<SocketAddrV4>,
}

/// A connection, or a datagram and its answers.
#[derive(Clone, Debug)]
pub(super) struct Flow {
    pub(super) protocol: Protocol,
    /// As the client sees it.
    pub(super) outside: Pair,
    /// As the backend sees it, where that was captured.
    pub(super) inside: Option<Pair>,
    /// Everywhere its opening packet was seen.
    pub(super) sights: Vec<Sight>,
    /// When it was seen first, ns.
    pub(super) since: u64,
}

/// The flows of one client to one service.
#[derive(Debug)]
pub(super) struct Flows {
    /// In the order of time.
    pub(super) all: Vec<Flow>,
    pub(super) client: Ipv4Addr,
    /// Of the frontend that was asked most.
    pub(super) frontend: SocketAddrV4,
    /// Flows that are none of these: their packets say nothing of the service.
    pub(super) others: BTreeSet<(u8, SocketAddrV4, SocketAddrV4)>,
}

/// Finds the flows that the verdict is about.
pub(super) fn find(
    capture: &CaptureFile,
    given: &Given,
    notes: &mut Vec<String>,
) -> Result<Flows, InferError> {
    let candidates: Vec<Flow> =
        openings(capture).into_iter().filter_map(|(key, sights)| flow(capture, key, sights)).collect();
    let frontend = frontend(&candidates, given, notes)?;
    let frontends = alike(&candidates, frontend);
    let (asked, others): (Vec<_>, Vec<_>) =
        candidates.into_iter().partition(|flow| frontends.contains(&flow.outside.1));
    let client = client(&asked, given, notes)?;
    let (mut all, rest): (Vec<_>, Vec<_>) =
        asked.into_iter().partition(|flow| *flow.outside.0.ip() == client);
    if !rest.is_empty() {
        let count = plural(rest.len(), "request");
        notes.push(format!("{count} of other clients left out; --client ADDRESS chooses another"));
    }
    all.sort_by_key(|flow| flow.since);
    let asked = plural(all.len(), "request");
    notes.push(format!("{asked} from client {client} to frontend {frontend}"));
    let others = others.iter().chain(&rest).flat_map(pairs).collect();
    Ok(Flows { all, client, frontend, others })
}

/// Protocol number and sockets of every form that a flow's request has.
pub(super) fn pairs(flow: &Flow) -> impl Iterator<Item = (u8, SocketAddrV4, SocketAddrV4)> + '_ {
    let number = protocol_number(flow.protocol);
    flow.sights.iter().map(move |sight| (number, sight.pair.0, sight.pair.1))
}

/// Every packet that may open a flow, by what it is known by.
fn openings(capture: &CaptureFile) -> BTreeMap<Opening, Vec<Sight>> {
    let mut found: BTreeMap<Opening, Vec<Sight>> = BTreeMap::new();
    // Conversations of datagrams: whatever was captured first there opens one.
    let mut talks: FxHashMap<(usize, SocketAddrV4, SocketAddrV4), SocketAddrV4> = FxHashMap::default();
    for (packet, captured) in capture.packets().iter().enumerate() {
        let frame = capture.headers(packet);
        let (Some(ip), Some(pair)) = (frame.ipv4(), frame.sockets()) else { continue };
        let data = capture.data(packet);
        if canary::is_noise(data, &frame) {
            continue;
        }
        let Some(key) = Opening::of(&frame, ip, data) else { continue };
        if let Opening::Datagram { .. } = key {
            let ends = (captured.point, pair.0.min(pair.1), pair.0.max(pair.1));
            if *talks.entry(ends).or_insert(pair.0) != pair.0 {
                continue;
            }
        }
        let carried = carried(&ip.options);
        let sight = Sight { packet, point: captured.point, pair, ttl: ip.ttl, carried };
        found.entry(key).or_default().push(sight);
    }
    found
}

fn carried(options: &Options) -> Vec<SocketAddrV4> {
    options.dsr.iter().flat_map(|dsr| [dsr.network, dsr.cilium]).collect()
}

/// What became of one opening packet; `None` for an answer that was taken for one, or for one that changed more than once.
fn flow(capture: &CaptureFile, key: Opening, mut sights: Vec<Sight>) -> Option<Flow> {
    let since = sights.iter().map(|s| capture.packets()[s.packet].ts_ns).min()?;
    let versions: BTreeSet<Pair> = sights.iter().map(|s| s.pair).collect();
    let versions: Vec<Pair> = versions.into_iter().collect();
    let (outside, inside) = match versions[..] {
        [only] => (only, None),
        // An answer: the load balancer gives it another source.
        [a, b] if a.1 == b.1 => return None,
        [a, b] if is_outside(capture, a, b, &sights) => (a, Some(b)),
        [a, b] => (b, Some(a)),
        _ => return None,
    };
    sights.sort_by_key(|s| s.packet);
    Some(Flow { protocol: key.protocol(), outside, inside, sights, since })
}

/// Whether of two forms of one packet this is the one that the client sent, by the best witness that there is.
fn is_outside(capture: &CaptureFile, a: Pair, b: Pair, sights: &[Sight]) -> bool {
    let of = |pair: Pair| sights.iter().filter(move |s| s.pair == pair);
    // What a carrier names is the frontend, and who carries it is behind.
    let names = |inner: Pair, outer: Pair| of(inner).any(|s| s.carried.contains(&outer.1));
    if names(b, a) != names(a, b) {
        return names(b, a);
    }
    // One host saw both, by one clock.
    for first in of(a) {
        if let Some(second) = of(b).find(|s| s.point == first.point) {
            let at = |s: &Sight| (capture.packets()[s.packet].ts_ns, s.packet);
            return at(first) < at(second);
        }
    }
    let most = |pair| of(pair).map(|s| s.ttl).max();
    match most(a).cmp(&most(b)) {
        std::cmp::Ordering::Equal => {
            let earliest = |pair| of(pair).map(|s| capture.packets()[s.packet].ts_ns).min();
            earliest(a) < earliest(b)
        }
        order => order.is_gt(),
    }
}

/// The frontend that is asked most; one behind which addresses change goes first.
fn frontend(candidates: &[Flow], given: &Given, notes: &mut Vec<String>) -> Result<SocketAddrV4, InferError> {
    let mut asked: BTreeMap<SocketAddrV4, (usize, usize)> = BTreeMap::new();
    for flow in candidates {
        let (changed, all) = asked.entry(flow.outside.1).or_default();
        *changed += usize::from(flow.inside.is_some());
        *all += 1;
    }
    if let Some(frontend) = given.frontend {
        if asked.contains_key(&frontend) {
            return Ok(frontend);
        }
        let known = if asked.is_empty() {
            "no request at all".to_owned()
        } else {
            format!("asked are {}", list(asked.keys()))
        };
        return Err(InferError::NotThere { what: format!("a request to {frontend}"), known });
    }
    let best = asked.iter().max_by_key(|(socket, counts)| (**counts, std::cmp::Reverse(**socket)));
    let Some((frontend, (changed, _))) = best else {
        let seen = "the files have no TCP SYN and no UDP datagram over IPv4".to_owned();
        return Err(InferError::NoRequest { seen });
    };
    if *changed == 0 {
        notes.push(format!(
            "no request was seen before and behind a load balancer: {frontend} is only the socket that is asked most"
        ));
    }
    let rest: Vec<_> =
        asked.iter().filter(|(s, (changed, _))| *changed > 0 && s.port() != frontend.port()).collect();
    if !rest.is_empty() {
        let rest = list(rest.iter().map(|(socket, _)| *socket));
        notes.push(format!("other frontends left out: {rest}; --frontend ADDRESS:PORT chooses another"));
    }
    Ok(*frontend)
}

/// A few of them, for people.
fn list<'s>(sockets: impl Iterator<Item = &'s SocketAddrV4>) -> String {
    const SHOWN: usize = 5;
    let all: Vec<String> = sockets.map(ToString::to_string).collect();
    let more = if all.len() > SHOWN { format!(" and {} more", all.len() - SHOWN) } else { String::new() };
    format!("{}{more}", all[..all.len().min(SHOWN)].join(", "))
}

/// A NodePort is asked at several nodes: frontends with the same port and the same backends are one service.
fn alike(candidates: &[Flow], frontend: SocketAddrV4) -> BTreeSet<SocketAddrV4> {
    let behind = |of: SocketAddrV4| -> BTreeSet<SocketAddrV4> {
        let of = candidates.iter().filter(|flow| flow.outside.1 == of);
        of.filter_map(|flow| Some(flow.inside?.1)).collect()
    };
    let backends = behind(frontend);
    let same = candidates.iter().map(|flow| flow.outside.1);
    let same = same.filter(|s| s.port() == frontend.port() && !behind(*s).is_disjoint(&backends));
    same.chain([frontend]).collect()
}

fn client(asked: &[Flow], given: &Given, notes: &mut Vec<String>) -> Result<Ipv4Addr, InferError> {
    let mut count: BTreeMap<Ipv4Addr, usize> = BTreeMap::new();
    asked.iter().for_each(|flow| *count.entry(*flow.outside.0.ip()).or_default() += 1);
    let known =
        || format!("clients are {}", count.keys().map(ToString::to_string).collect::<Vec<_>>().join(", "));
    match given.client {
        Some(client) if count.contains_key(&client) => Ok(client),
        Some(client) => Err(InferError::NotThere { what: format!("a request of {client}"), known: known() }),
        None => {
            let most = count.iter().max_by_key(|(address, count)| (**count, std::cmp::Reverse(**address)));
            if count.len() > 1 {
                notes.push(known());
            }
            // There is one: the frontend was found among these very flows.
            Ok(most.map_or(Ipv4Addr::UNSPECIFIED, |(address, _)| *address))
        }
    }
}
