//! icmp: each ICMP error about an exchange has a reason, reaches the owner of the socket that it is about, quotes a
//! packet that this socket knows, and comes from an address that it may believe. The same in every mode: the client
//! knows the frontend and nothing behind it, the backend its own socket and its peer.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};

use labctl_wire::packet::{Icmp, Ipv4};
use labctl_wire::{Direction, Outcome};

use super::icmp_way::{Likeness, follow};
use crate::proof::Findings;
use crate::scene::case::Side;
use crate::scene::place::Place;
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
