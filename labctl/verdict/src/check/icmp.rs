//! icmp: each ICMP error about an exchange has a reason, reaches the owner of the socket that it is about, quotes a
//! packet that this socket knows, and comes from an address that it may believe. The same in every mode: the client
//! knows the frontend and nothing behind it, the backend its own socket and its peer.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};

use labctl_wire::packet::{Icmp, Ipv4};
use labctl_wire::{Direction, Outcome};

use crate::proof::Findings;
use crate::scene::case::Side;
use crate::scene::place::{Place, Spot};
use crate::story::{Seen, Story};

/// Destination unreachable; fragmentation needed (RFC 792, RFC 1191).
const UNREACHABLE: u8 = 3;
const FRAGMENTATION_NEEDED: u8 = 4;

pub(super) fn check(story: &Story<'_>) -> Findings {
    let mut findings = Findings::default();
    let mut errors = 0;
    let mut ways: BTreeMap<Likeness, Vec<usize>> = BTreeMap::new();
    for seen in story.seen().filter(|s| s.is_error) {
        let frame = story.headers(seen.index);
        let (Some(ip), Some(icmp)) = (frame.ipv4(), frame.icmp()) else { continue };
        ways.entry(Likeness::of(&seen, icmp)).or_default().push(seen.index);
        if arrives(&seen) {
            errors += 1;
            judge(&mut findings, story, &seen, ip, icmp);
        }
    }
    for (likeness, packets) in ways {
        follow(&mut findings, story, &likeness, &packets);
    }
    findings.number("errors", errors);
    let text = match errors {
        0 => "no ICMP error about any request".to_owned(),
        _ => format!(
            "{errors} ICMP errors reached the sockets that they are about, and name only what those know"
        ),
    };
    // That there was none is worth as much as the captures are.
    findings.state(story.roles.len() as u64, "packet", text);
    findings
}

/// Errors that cannot be told apart: about the same exchange, of one kind, quoting one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Likeness {
    of: usize,
    side: Side,
    kind: (u8, u8),
    quoted: (u16, u16),
}

impl Likeness {
    fn of(seen: &Seen<'_, '_>, icmp: &Icmp) -> Self {
        let quoted = icmp.quote.as_ref().map_or((0, 0), |q| (q.ipv4.id, q.ipv4.fragment_offset));
        Self { of: seen.of, side: seen.side, kind: (icmp.kind, icmp.code), quoted }
    }
}

/// Errors enter where a host sends them, and from there pass every place up to the owner of the socket.
fn follow(findings: &mut Findings, story: &Story<'_>, likeness: &Likeness, packets: &[usize]) {
    let case = &story.cases[likeness.of];
    let name = case.name();
    let way = story.way(likeness.of, likeness.side);
    let count = |spot: Spot| {
        let here = |i: &&usize| {
            let captured = story.captured(**i);
            (story.places[captured.point], captured.direction) == (Some(spot.place), spot.direction)
        };
        packets.iter().filter(here).count()
    };
    // The node that was asked may object to a request, wherever the backend is.
    let asked = Spot { place: Place::Uplink(case.ingress), direction: Direction::Out };
    let by_asked = likeness.side == Side::Reply && !way.iter().any(|w| w.spot == asked);
    let mut under_way = 0;
    let mut explained = if by_asked { count(asked) } else { 0 };
    for (stage, point) in way.iter().enumerate() {
        let here = count(point.spot);
        explained += here;
        let place = story.place_name(point.spot.place);
        let is_end = stage + 1 == way.len();
        let expected = under_way + if is_end && by_asked { count(asked) } else { 0 };
        if here < expected && story.must_be_seen_at(point.spot.place) {
            let why = format!("{name}: an ICMP error never came to {place} on its way to the socket's owner");
            findings.absent(point.spot.place, packets.first().copied(), why);
        }
        if here > expected && point.spot.direction == Direction::In && story.must_be_seen_at(point.spot.place)
        {
            let before = way[stage.saturating_sub(1)].spot.place;
            let why = format!("{name}: an ICMP error came to {place}, and nobody sent it");
            findings.absent(before, packets.last().copied(), why);
        }
        under_way = if story.must_be_seen_at(point.spot.place) { here } else { under_way.max(here) };
    }
    if explained < packets.len() {
        let stray = packets.iter().find(|i| {
            let captured = story.captured(**i);
            let spot = |place| Spot { place, direction: captured.direction };
            let here = story.places[captured.point].map(spot);
            let by_asked = by_asked && Some(asked) == here;
            !by_asked && !way.iter().any(|w| Some(w.spot) == here)
        });
        if let Some(stray) = stray {
            let point = story.point_name(*stray);
            findings
                .offence(*stray, format!("{name}: an ICMP error passed {point}, which is not on its way"));
        }
    }
}

fn arrives(seen: &Seen<'_, '_>) -> bool {
    let end = match (seen.side, seen.case.backend) {
        (Side::Reply, _) => Place::Client,
        (Side::Request, Some(backend)) if backend.pod.host_network => Place::Uplink(backend.node),
        (Side::Request, Some(backend)) => Place::Pod(backend.index),
        (Side::Request, None) => return false,
    };
    (seen.place, seen.direction) == (end, Direction::In)
}

fn judge(findings: &mut Findings, story: &Story<'_>, seen: &Seen<'_, '_>, ip: &Ipv4, icmp: &Icmp) {
    let name = seen.case.name();
    if let Some(why) = unwarranted(story, seen, icmp) {
        findings.offence(seen.index, format!("{name}: {why}"));
    }
    let Some((src, dst)) = icmp.quote.as_ref().and_then(|q| q.sockets()) else { return };
    let (known, believed) = knows(story, seen);
    if known.is_some_and(|known| known != (src, dst)) {
        let (own, peer) = known.unwrap_or((src, dst));
        findings.offence(
            seen.index,
            format!("{name}: ICMP error quotes {src} > {dst}, and its socket knows {own} > {peer}"),
        );
    }
    if !believed.contains(&ip.src) {
        findings
            .offence(seen.index, format!("{name}: ICMP error from {}, which its socket cannot know", ip.src));
    }
}

/// The packet as the socket's owner sent it, and whom it may believe.
fn knows(story: &Story<'_>, seen: &Seen<'_, '_>) -> (Option<(SocketAddrV4, SocketAddrV4)>, Vec<Ipv4Addr>) {
    let (case, plan) = (seen.case, story.plan);
    let asked = plan.nodes[case.ingress].address;
    match seen.side {
        Side::Reply => {
            let (local, remote) = (case.exchange.local, case.exchange.remote);
            (Some((local, remote)), vec![*remote.ip()])
        }
        Side::Request => {
            let peer =
                if case.source_rewritten() { story.translated[seen.of] } else { Some(case.exchange.local) };
            let node = case.backend.map(|b| &plan.nodes[b.node]);
            let near = node.map(|n| [n.address, n.pod_gateway]).into_iter().flatten();
            let believed = peer.map(|p| *p.ip()).into_iter().chain([asked]).chain(near).collect();
            (case.backend_socket(plan).zip(peer), believed)
        }
    }
}

/// Why this error should not be: a request that is answered gets none, but for a packet that was too big.
fn unwarranted(story: &Story<'_>, seen: &Seen<'_, '_>, icmp: &Icmp) -> Option<String> {
    let (kind, code) = (icmp.kind, icmp.code);
    if (kind, code) == (UNREACHABLE, FRAGMENTATION_NEEDED) {
        let quoted = icmp.quote.as_ref()?;
        let (length, mtu) = (quoted.ipv4.total_len, icmp.mtu.unwrap_or(0));
        if !quoted.ipv4.dont_fragment {
            return Some(format!("told to fragment a packet of {length} bytes that may be fragmented"));
        }
        return (length <= mtu).then(|| format!("told that {length} bytes are too big for {mtu}"));
    }
    let answered = seen.case.exchange.outcome == Outcome::Answered && !seen.case.refusal;
    // The backend hears of a client that has gone; nothing is wrong with that.
    let about_request = seen.side == Side::Reply;
    (answered && about_request).then(|| {
        let text = story.line(seen.index);
        let what = text
            .split_once("icmp ")
            .map_or("an error", |(_, what)| what.split(" about").next().unwrap_or(what));
        format!("it was answered, and the client is told \"{what}\"")
    })
}
