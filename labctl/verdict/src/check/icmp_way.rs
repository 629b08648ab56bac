//! The way of an ICMP error from the host that sends it to the owner of the socket that it is about.
//!
//! Owns: which errors are one and the same, and whether each place of the way saw it. Does not own: what an error says
//! ([`super::icmp`]).

use labctl_wire::Direction;
use labctl_wire::packet::Icmp;

use crate::proof::Findings;
use crate::scene::case::Side;
use crate::scene::place::{Place, Spot};
use crate::story::{Seen, Story};

/// Errors that cannot be told apart: about the same exchange, of one kind, quoting one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Likeness {
    of: usize,
    side: Side,
    kind: (u8, u8),
    quoted: (u16, u16),
}

impl Likeness {
    pub(super) fn of(seen: &Seen<'_, '_>, icmp: &Icmp) -> Self {
        let quoted = icmp.quote.as_ref().map_or((0, 0), |q| (q.ipv4.id, q.ipv4.fragment_offset));
        Self { of: seen.of, side: seen.side, kind: (icmp.kind, icmp.code), quoted }
    }
}

/// Errors enter where a host sends them, and from there pass every place up to the owner of the socket.
pub(super) fn follow(findings: &mut Findings, story: &Story<'_>, likeness: &Likeness, packets: &[usize]) {
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
