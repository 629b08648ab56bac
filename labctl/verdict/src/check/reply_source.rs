//! reply-source: everything that comes back to the client, RST, FIN and ICMP errors too, has the frontend as its
//! source, and no pod address ever appears on the client's link, be it quoted inside an ICMP error. The same in
//! every mode.

use std::net::Ipv4Addr;

use labctl_wire::{Direction, Side, canary};

use crate::case::Place;
use crate::context::{Context, Seen};
use crate::findings::Findings;

pub(super) fn check(context: &Context<'_>) -> Findings {
    let mut findings = Findings::default();
    let mut replies = 0;
    for seen in context.seen().filter(|s| s.side == Side::Reply) {
        match (seen.place, seen.direction()) {
            (Place::Client, Direction::In) => {
                replies += 1;
                if let Some(why) = wrong_source(&seen) {
                    findings.offence(seen.index, format!("{}: {why}", seen.case.name()));
                }
            }
            (Place::Uplink(node), Direction::Out) if leaks(context, &seen) => {
                let (name, source) = (&context.plan.nodes[node].name, seen.ip.src);
                findings.offence(
                    seen.index,
                    format!("{name} sent a reply with pod address {source} to the client"),
                );
            }
            _ => {}
        }
    }
    let link = pod_addresses(&mut findings, context);
    findings.require(context, Place::Client);
    if replies == 0 {
        findings.doubt("no reply reached the client");
    }
    findings.number("replies", replies);
    findings.number("packets_on_client_link", link);
    findings.claim(format!(
        "{replies} of {replies} replies had the frontend as source, no pod address in {link} packets on the client's link"
    ));
    findings
}

/// What is wrong with the source of a packet that the client received.
fn wrong_source(seen: &Seen<'_, '_>) -> Option<String> {
    let frontend = seen.case.exchange.remote;
    if let Some((source, _)) = seen.packet.frame.sockets() {
        return (source != frontend).then(|| format!("reply from {source}, expected {frontend}"));
    }
    if seen.ip.src != *frontend.ip() {
        return Some(format!("reply from {}, expected {}", seen.ip.src, frontend.ip()));
    }
    let (_, quoted) = seen.packet.frame.icmp()?.quote.as_ref()?.sockets()?;
    (quoted != frontend).then(|| format!("ICMP error quotes a packet to {quoted}, expected {frontend}"))
}

/// Whether a node sends a pod's address out towards the client.
fn leaks(context: &Context<'_>, seen: &Seen<'_, '_>) -> bool {
    seen.ip.dst == context.plan.client.address && context.is_pod(seen.ip.src)
}

/// Looks at every IPv4 packet on the client's link, whosever it is; returns how many.
fn pod_addresses(findings: &mut Findings, context: &Context<'_>) -> u32 {
    let mut count = 0;
    for (index, packet) in context.evidence.capture.packets.iter().enumerate() {
        let on_link = context.places[packet.point] == Some(Place::Client) && !context.overheard[index];
        let Some(ip) = packet.frame.ipv4() else { continue };
        if !on_link || canary::is_noise(&packet.data, &packet.frame) {
            continue;
        }
        count += 1;
        let quote = packet.frame.icmp().and_then(|i| i.quote.as_deref());
        let quoted = quote.map(|q| [q.ipv4.src, q.ipv4.dst]).into_iter().flatten();
        let is_pod = |address: &Ipv4Addr| context.is_pod(*address);
        if let Some(address) = [ip.src, ip.dst].into_iter().chain(quoted).find(is_pod) {
            findings.offence(index, format!("pod address {address} on the client's link"));
        }
    }
    count
}
