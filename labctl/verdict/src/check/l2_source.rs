//! l2-source: every frame has the Ethernet address of the interface that it leaves: replies reach the client from the
//! backend's node in dsr and local, from the ingress node where the source is rewritten. With any other, switches learn
//! the frontend at the wrong port.

use std::collections::BTreeSet;

use labctl_wire::Direction;

use crate::proof::{Findings, Footing};
use crate::scene::case::Side;
use crate::scene::place::Place;
use crate::story::{Field, Story};

pub(super) fn check(story: &Story<'_>) -> Findings {
    let mut findings = Findings::resting(Footing::Seen);
    for difference in story.differences.iter().filter(|d| d.field == Field::LinkSource) {
        let what = match difference.side {
            Side::Request => "request frame",
            Side::Reply => "reply frame",
        };
        let (name, place) = (story.cases[difference.of].name(), story.place_name(difference.place));
        let (found, expected) = (&difference.found, &difference.expected);
        findings.offence(
            difference.packet,
            format!("{name}: {what} from {found} at {place}, expected {expected}"),
        );
    }
    let arrives = |s: &&crate::story::Seen<'_, '_>| {
        (s.place, s.direction, s.side, s.is_error) == (Place::Client, Direction::In, Side::Reply, false)
    };
    let frames = story.seen().filter(|s| !s.case.refusal && arrives(&s)).count() as u64;
    for place in senders(story) {
        if story.addresses.of(place).is_none() {
            findings.doubt(format!("the Ethernet address of {} is not known", story.place_name(place)));
        }
    }
    findings.number("frames", frames);
    let text = format!(
        "{frames} of {frames} reply frames came from the Ethernet address of the node that sent them"
    );
    findings.state(frames, "reply at the client", text);
    findings
}

/// Uplinks that replies leave by for the client.
fn senders(story: &Story<'_>) -> BTreeSet<Place> {
    let last = |(of, _)| Some(story.way(of, Side::Reply).last()?.link.0);
    story.answered().filter_map(last).collect()
}
