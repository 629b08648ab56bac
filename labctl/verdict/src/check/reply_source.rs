//! reply-source: everything that comes back to the client, RST, FIN and ICMP errors too, has the frontend as its
//! source, and no pod address ever appears on the client's link: not in a header, not in an IPv4 option, not quoted
//! inside an ICMP error. The same in every mode.

use std::net::Ipv4Addr;

use labctl_wire::{Direction, Frame};

use crate::proof::{Findings, Footing};
use crate::scene::case::Side;
use crate::scene::place::Place;
use crate::story::{Field, Role, Story};

pub(super) fn check(story: &Story<'_>) -> Findings {
    let mut findings = Findings::resting(Footing::Seen);
    let replies = story
        .seen()
        .filter(|s| (s.side, s.place, s.direction) == (Side::Reply, Place::Client, Direction::In))
        .inspect(|s| {
            if s.is_error
                && let Some(why) = wrong_error(story, s.index, *s.case.exchange.remote.ip())
            {
                findings.offence(s.index, format!("{}: {why}", s.case.name()));
            }
        })
        .count() as u64;
    for difference in &story.differences {
        if (difference.side, difference.field) != (Side::Reply, Field::Source) {
            continue;
        }
        let (found, expected) = (&difference.found, &difference.expected);
        let name = story.cases[difference.of].name();
        let why = match difference.place {
            Place::Uplink(node) if difference.shows(|address| story.is_pod(address)) => {
                let (node, address) =
                    (&story.plan.nodes[node].name, found.split(':').next().unwrap_or(found));
                format!("{node} sent a reply of {name} with pod address {address} to the client")
            }
            Place::Uplink(node) => {
                format!(
                    "{} sent a reply of {name} from {found}, expected {expected}",
                    story.plan.nodes[node].name
                )
            }
            Place::Client => format!("{name}: reply from {found}, expected {expected}"),
            place => {
                format!("{name}: reply from {found} at {}, expected {expected}", story.place_name(place))
            }
        };
        findings.offence(difference.packet, why);
    }
    let link = pod_addresses(&mut findings, story);
    findings.number("replies", replies);
    findings.number("packets_on_client_link", link);
    let text = format!(
        "{replies} of {replies} replies had the frontend as source, no pod address in {link} packets on the client's link"
    );
    findings.state(replies, "reply at the client", text);
    findings
}

/// What is wrong with the source of an ICMP error.
fn wrong_error(story: &Story<'_>, packet: usize, frontend: Ipv4Addr) -> Option<String> {
    let frame = story.headers(packet);
    let source = frame.ipv4()?.src;
    (source != frontend).then(|| format!("reply from {source}, expected {frontend}"))
}

/// Looks at every IPv4 packet on the client's link, whosever it is; returns how many.
fn pod_addresses(findings: &mut Findings, story: &Story<'_>) -> u64 {
    let mut count = 0;
    for (index, packet) in story.evidence.capture.packets().iter().enumerate() {
        let skipped = matches!(story.roles[index], Role::Canary | Role::Overheard);
        if story.places[packet.point] != Some(Place::Client) || skipped {
            continue;
        }
        let frame = story.headers(index);
        if frame.ipv4().is_none() {
            continue;
        }
        count += 1;
        if let Some(address) = named(&frame).into_iter().find(|address| story.is_pod(*address)) {
            findings.offence(index, format!("pod address {address} on the client's link"));
        }
    }
    count
}

/// Every address that a packet's headers name: its own, those in its options, those of a packet that it quotes.
fn named(frame: &Frame) -> Vec<Ipv4Addr> {
    let Some(ip) = frame.ipv4() else { return Vec::new() };
    let mut named = vec![ip.src, ip.dst];
    in_options(&mut named, &ip.options.raw);
    if let Some(quote) = frame.icmp().and_then(|icmp| icmp.quote.as_deref()) {
        named.extend([quote.ipv4.src, quote.ipv4.dst]);
        in_options(&mut named, &quote.ipv4.options.raw);
    }
    named
}

/// Addresses may stand anywhere in an option: routes, time stamps and what nobody has heard of.
fn in_options(named: &mut Vec<Ipv4Addr>, raw: &[u8]) {
    named.extend(raw.windows(4).map(|w| Ipv4Addr::new(w[0], w[1], w[2], w[3])));
}
