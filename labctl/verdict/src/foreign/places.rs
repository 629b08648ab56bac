//! Where each capture was taken, from which form of a request it shows, from Ethernet addresses and from TTLs.
//!
//! Owns: the place of each point, the hosts behind them, and the direction of frames in files that do not say. Does not
//! own: names ([`super::Given`]) or what should pass a place ([`crate::scene`]).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};

use labctl_wire::packet::{Mac, Network};
use labctl_wire::{CaptureFile, Direction, HostKind};

use super::flows::{Flow, Flows};
use super::{Given, InferError};

/// What a point is. Backends are named by their sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum At {
    /// The client's link.
    Client,
    /// A node's link to the others.
    Uplink,
    /// A node's side of a pod's link.
    Link(SocketAddrV4),
    /// A pod's own link.
    Pod(SocketAddrV4),
    /// Another interface of a node.
    Side,
}

/// Everything about one point.
#[derive(Clone, Debug)]
pub(super) struct Point {
    pub(super) at: At,
    /// Its own Ethernet address.
    mac: Option<Mac>,
    /// Frontends of which it saw requests as the client sends them.
    pub(super) asked: BTreeSet<SocketAddrV4>,
    /// Backends of which it saw requests as they get them.
    pub(super) served: BTreeSet<SocketAddrV4>,
}

/// All points, in the order of the capture's.
#[derive(Debug)]
pub(super) struct Places {
    pub(super) points: Vec<Point>,
    /// Ethernet addresses by the IPv4 addresses that ARP gives them.
    pub(super) neighbours: BTreeMap<Mac, Ipv4Addr>,
    client: Ipv4Addr,
}

/// What a point saw of the requests.
#[derive(Clone, Debug, Default)]
struct Seen {
    /// Source and destination of frames with requests as the client sends them, and as the backend gets them.
    outside: BTreeSet<(Mac, Mac)>,
    inside: BTreeSet<(Mac, Mac)>,
    asked: BTreeSet<SocketAddrV4>,
    served: BTreeSet<SocketAddrV4>,
    /// Both forms of one request.
    both: bool,
    outside_ttl: u8,
    inside_ttl: u8,
    /// An answer with the frontend as its source left by here, or came.
    answered: bool,
}

/// Finds out.
pub(super) fn find(
    capture: &CaptureFile,
    flows: &Flows,
    given: &Given,
    notes: &mut Vec<String>,
) -> Result<Places, InferError> {
    let seen = look(capture, flows);
    let kinds = kinds(capture, &seen, given)?;
    let at = places(capture, &seen, &kinds)?;
    let neighbours = neighbours(capture);
    let mut points = Vec::with_capacity(seen.len());
    for (index, (seen, at)) in seen.into_iter().zip(at).enumerate() {
        let mac = own_address(capture, index, at, &seen);
        points.push(Point { at, mac, asked: seen.asked, served: seen.served });
    }
    let places = Places { points, neighbours, client: flows.client };
    places.one_host_each(capture)?;
    places.say(capture, notes);
    Ok(places)
}

fn look(capture: &CaptureFile, flows: &Flows) -> Vec<Seen> {
    let mut seen = vec![Seen::default(); capture.points.len()];
    for flow in &flows.all {
        let mut forms = vec![(false, false); seen.len()];
        for sight in &flow.sights {
            let frame = capture.headers(sight.packet);
            let here = &mut seen[sight.point];
            // Link types without Ethernet addresses have zeros.
            let link = (frame.src != Mac::default()).then_some((frame.src, frame.dst));
            if sight.pair == flow.outside {
                here.outside.extend(link);
                here.asked.insert(flow.outside.1);
                here.outside_ttl = here.outside_ttl.max(sight.ttl);
                forms[sight.point].0 = true;
            } else {
                here.inside.extend(link);
                here.served.insert(sight.pair.1);
                here.inside_ttl = here.inside_ttl.max(sight.ttl);
                forms[sight.point].1 = true;
            }
        }
        for (here, forms) in seen.iter_mut().zip(forms) {
            here.both |= forms == (true, true);
        }
    }
    let frontends: BTreeSet<_> = flows.all.iter().map(|flow| flow.outside.1).collect();
    for (packet, captured) in capture.packets().iter().enumerate() {
        let source = capture.headers(packet).sockets().map(|(src, _)| src);
        seen[captured.point].answered |= source.is_some_and(|src| frontends.contains(&src));
    }
    seen
}

/// Client, node or pod.
fn kinds(capture: &CaptureFile, seen: &[Seen], given: &Given) -> Result<Vec<HostKind>, InferError> {
    let name = |point: usize| capture.points[point].point.host.as_str();
    let mut kinds: Vec<Option<HostKind>> =
        (0..seen.len()).map(|point| given.roles.get(name(point)).copied()).collect();
    for (kind, seen) in kinds.iter_mut().zip(seen) {
        if seen.both || (seen.asked.is_empty() && seen.served.is_empty()) {
            kind.get_or_insert(HostKind::Node);
        }
    }
    clients(capture, seen, &mut kinds)?;
    behind(capture, seen, &mut kinds)?;
    Ok(kinds.into_iter().map(|kind| kind.unwrap_or(HostKind::Node)).collect())
}

/// Who saw requests only as the client sends them is the client, or a node that runs the backend itself.
fn clients(capture: &CaptureFile, seen: &[Seen], kinds: &mut [Option<HostKind>]) -> Result<(), InferError> {
    let host = |point: usize| capture.points[point].point.host.clone();
    let mut open: Vec<usize> =
        (0..seen.len()).filter(|p| kinds[*p].is_none() && !seen[*p].asked.is_empty()).collect();
    let known = kinds.contains(&Some(HostKind::Client));
    let named = open.iter().copied().find(|p| host(*p).contains("client"));
    let node_seen = (0..seen.len()).any(|p| kinds[p] == Some(HostKind::Node) && !seen[p].asked.is_empty());
    let farthest = open.iter().map(|p| seen[*p].outside_ttl).max();
    let by_ttl: Vec<usize> =
        open.iter().copied().filter(|p| Some(seen[*p].outside_ttl) == farthest).collect();
    let client = match (&open[..], named, &by_ttl[..]) {
        _ if known => None,
        ([], ..) => None,
        (_, Some(named), _) => Some(named),
        // The node that was asked is another one, and each packet passes two places outside.
        ([only], ..) if node_seen => Some(*only),
        ([_, _, ..], None, [only]) => Some(*only),
        ([first, ..], ..) => {
            let point = capture.points[*first].point.to_string();
            let why = "the client and a node that serves a request itself look alike".to_owned();
            return Err(InferError::Ambiguous { point, host: host(*first), why });
        }
    };
    open.retain(|p| Some(*p) != client);
    client.into_iter().for_each(|p| kinds[p] = Some(HostKind::Client));
    open.into_iter().for_each(|p| kinds[p] = Some(HostKind::Node));
    Ok(())
}

/// Who saw requests only as backends get them is the backend's node, or the pod.
fn behind(capture: &CaptureFile, seen: &[Seen], kinds: &mut [Option<HostKind>]) -> Result<(), InferError> {
    let senders = senders(seen, kinds);
    for point in (0..seen.len()).filter(|p| !seen[*p].served.is_empty()) {
        if kinds[point].is_none() && seen[point].inside.iter().any(|(src, _)| senders.contains(src)) {
            kinds[point] = Some(HostKind::Node);
        }
    }
    for point in 0..seen.len() {
        if kinds[point].is_some() {
            continue;
        }
        let here = &seen[point];
        let node_above = (0..seen.len()).any(|p| {
            kinds[p] == Some(HostKind::Node)
                && !seen[p].served.is_disjoint(&here.served)
                && seen[p].inside_ttl > here.inside_ttl
        });
        let same_host = (0..seen.len())
            .any(|p| p != point && capture.points[p].point.host == capture.points[point].point.host);
        // The other end of a link that a node has, or behind a node that sends nothing on by its uplink.
        let other_end = (0..seen.len()).any(|p| {
            kinds[p] == Some(HostKind::Node) && !seen[p].both && !seen[p].inside.is_disjoint(&here.inside)
        });
        let asked =
            || (0..seen.len()).filter(|p| kinds[*p] == Some(HostKind::Node) && !seen[*p].asked.is_empty());
        let kept_home = asked().next().is_some() && !asked().any(|p| seen[p].both);
        let inner = node_above || other_end || kept_home;
        kinds[point] = Some(match (same_host, inner, here.answered) {
            (true, ..) | (false, false, true) => HostKind::Node,
            (false, true, _) => HostKind::Pod,
            (false, false, false) => {
                let info = &capture.points[point].point;
                let why = "the backend's node and its pod look alike".to_owned();
                return Err(InferError::Ambiguous { point: info.to_string(), host: info.host.clone(), why });
            }
        });
    }
    Ok(())
}

/// Ethernet addresses by which nodes that were asked send requests on.
fn senders(seen: &[Seen], kinds: &[Option<HostKind>]) -> BTreeSet<Mac> {
    let mut senders = BTreeSet::new();
    for (seen, kind) in seen.iter().zip(kinds) {
        senders.extend(seen.outside.iter().map(|(_, dst)| *dst));
        if *kind == Some(HostKind::Node) && seen.both {
            senders.extend(seen.inside.iter().map(|(src, _)| *src));
        }
    }
    senders.remove(&Mac::default());
    senders
}

/// The place of each point on its host.
fn places(capture: &CaptureFile, seen: &[Seen], kinds: &[HostKind]) -> Result<Vec<At>, InferError> {
    let mut at = Vec::with_capacity(seen.len());
    for (point, kind) in kinds.iter().enumerate() {
        let backend = seen[point].served.first().copied();
        at.push(match (kind, backend) {
            (HostKind::Client, _) => At::Client,
            (HostKind::Pod, Some(backend)) => At::Pod(backend),
            (HostKind::Pod, None) => At::Side,
            (HostKind::Node, _) if uplink(capture, seen, kinds, point) == point => At::Uplink,
            (HostKind::Node, Some(backend)) => At::Link(backend),
            (HostKind::Node, None) => At::Side,
        });
    }
    twice(capture, &at)?;
    Ok(at)
}

/// The interface of a point's host that requests come by: as the client sends them, else with the highest TTL.
fn uplink(capture: &CaptureFile, seen: &[Seen], kinds: &[HostKind], point: usize) -> usize {
    let host = &capture.points[point].point.host;
    let of_host =
        (0..seen.len()).filter(|p| kinds[*p] == HostKind::Node && capture.points[*p].point.host == *host);
    let rank = |p: &usize| (!seen[*p].asked.is_empty(), seen[*p].inside_ttl, std::cmp::Reverse(*p));
    of_host.max_by_key(rank).unwrap_or(point)
}

/// Two points at one place.
fn twice(capture: &CaptureFile, at: &[At]) -> Result<(), InferError> {
    let name = |point: usize| capture.points[point].point.to_string();
    for second in 0..at.len() {
        let same = |first: &usize| match at[second] {
            At::Client | At::Pod(_) => at[*first] == at[second],
            // A host's name tells its nodes apart.
            At::Uplink | At::Link(_) | At::Side => name(*first) == name(second),
        };
        if let Some(first) = (0..second).find(same) {
            let place = match at[second] {
                At::Client => "the client's link".to_owned(),
                At::Pod(backend) => format!("the link of pod {}", backend.ip()),
                At::Uplink | At::Link(_) | At::Side => name(second),
            };
            return Err(InferError::SamePlace { first: name(first), second: name(second), place });
        }
    }
    Ok(())
}

/// A point's Ethernet address: as the capture says, else the end of the link that this place is.
fn own_address(capture: &CaptureFile, point: usize, at: At, seen: &Seen) -> Option<Mac> {
    let src = |links: &BTreeSet<(Mac, Mac)>| links.first().map(|(src, _)| *src);
    let dst = |links: &BTreeSet<(Mac, Mac)>| links.first().map(|(_, dst)| *dst);
    let worked_out = match at {
        At::Client => src(&seen.outside),
        At::Uplink if !seen.outside.is_empty() => dst(&seen.outside),
        At::Uplink | At::Pod(_) => dst(&seen.inside),
        At::Link(_) => src(&seen.inside),
        At::Side => None,
    };
    let worked_out = worked_out.filter(|mac| *mac != Mac::default());
    capture.points[point].mac.or(worked_out).or_else(|| common_address(capture, point))
}

/// The one address that every frame to a single host has, as source or destination.
fn common_address(capture: &CaptureFile, point: usize) -> Option<Mac> {
    let mut common: Option<BTreeSet<Mac>> = None;
    for (packet, _) in capture.packets().iter().enumerate().filter(|(_, p)| p.point == point) {
        let frame = capture.headers(packet);
        if frame.dst.is_group() || frame.dst == Mac::default() {
            continue;
        }
        let ends = BTreeSet::from([frame.src, frame.dst]);
        common = Some(common.map_or(ends.clone(), |known| &known & &ends));
    }
    let common = common?;
    if common.len() == 1 { common.first().copied() } else { None }
}

fn neighbours(capture: &CaptureFile) -> BTreeMap<Mac, Ipv4Addr> {
    let mut known = BTreeMap::new();
    for packet in 0..capture.packets().len() {
        if let Network::Arp(arp) = capture.headers(packet).network
            && !arp.sender.is_unspecified()
        {
            known.entry(arp.sender_mac).or_insert(arp.sender);
        }
    }
    known
}

impl Places {
    /// Two hosts do not share an Ethernet address.
    fn one_host_each(&self, capture: &CaptureFile) -> Result<(), InferError> {
        let uplink = |point: &usize| matches!(self.points[*point].at, At::Client | At::Uplink);
        for second in (0..self.points.len()).filter(uplink) {
            let same = |first: &usize| {
                let macs = (self.points[*first].mac, self.points[second].mac);
                uplink(first) && macs.0.is_some() && macs.0 == macs.1
            };
            if let Some(first) = (0..second).find(same) {
                let name = |point: usize| capture.points[point].point.to_string();
                let mac = self.points[first].mac.map(|mac| mac.to_string()).unwrap_or_default();
                let place = format!("the interface with address {mac}");
                return Err(InferError::SamePlace { first: name(first), second: name(second), place });
            }
        }
        Ok(())
    }

    /// A point's Ethernet address.
    pub(super) fn mac(&self, point: usize) -> Option<Mac> {
        self.points[point].mac
    }

    /// Gives each frame its direction, where the file does not say: from Ethernet addresses, else, where links have none,
    /// from what the packet is. Returns the points where that last resort was taken.
    pub(super) fn direct(&self, capture: &mut CaptureFile) -> BTreeSet<usize> {
        let mut guessed = BTreeSet::new();
        for packet in 0..capture.packets().len() {
            let captured = capture.packets()[packet];
            if captured.direction != Direction::Unknown {
                continue;
            }
            let frame = capture.headers(packet);
            let direction = match self.points[captured.point].mac {
                Some(own) if frame.src == own => Direction::Out,
                Some(_) => Direction::In,
                None => {
                    guessed.insert(captured.point);
                    self.by_content(captured.point, frame.sockets())
                }
            };
            capture.packets_mut()[packet].direction = direction;
        }
        for (info, point) in capture.points.iter_mut().zip(&self.points) {
            info.mac = info.mac.or(point.mac);
        }
        guessed
    }

    fn by_content(&self, point: usize, sockets: Option<(SocketAddrV4, SocketAddrV4)>) -> Direction {
        let Some((src, dst)) = sockets else { return Direction::Unknown };
        let point = &self.points[point];
        let (leaves, arrives) = match point.at {
            At::Client => (*src.ip() == self.client, *dst.ip() == self.client),
            At::Pod(backend) => (src == backend, dst == backend),
            At::Link(backend) => (dst == backend, src == backend),
            At::Uplink | At::Side => {
                let asked = |socket| point.asked.contains(&socket);
                // Whoever was asked sends on what its backends get.
                let on = point.served.contains(&dst) && !point.asked.is_empty();
                let home = point.served.contains(&dst) && point.asked.is_empty();
                let back = point.served.contains(&src);
                let answer = !asked(src) && *dst.ip() == self.client;
                (
                    on || asked(src) || (back && point.asked.is_empty()) || answer,
                    asked(dst) || home || (back && !point.asked.is_empty()),
                )
            }
        };
        match (leaves, arrives) {
            (true, false) => Direction::Out,
            (false, true) => Direction::In,
            _ => Direction::Unknown,
        }
    }

    fn say(&self, capture: &CaptureFile, notes: &mut Vec<String>) {
        for (info, point) in capture.points.iter().zip(&self.points) {
            let what = match point.at {
                At::Client => "the client's link".to_owned(),
                At::Pod(backend) => format!("the link of pod {}", backend.ip()),
                At::Link(backend) => format!("its node's side of the link of pod {}", backend.ip()),
                At::Side => "an interface that no request passes".to_owned(),
                At::Uplink => match (point.asked.is_empty(), point.served.is_empty()) {
                    (false, _) => "the node that was asked".to_owned(),
                    (true, false) => "the backend's node".to_owned(),
                    (true, true) => "a node that no request passes".to_owned(),
                },
            };
            notes.push(format!("{} is {what}", info.point));
        }
    }
}

/// The forms of a flow's request that a point saw.
pub(super) fn saw(flow: &Flow, point: usize) -> (bool, bool) {
    let of_point = || flow.sights.iter().filter(|s| s.point == point);
    (of_point().any(|s| s.pair == flow.outside), of_point().any(|s| s.pair != flow.outside))
}
