//! dsr-option: between the ingress node and another backend node each TCP SYN and each UDP request carries the
//! option, nothing else does; its value is the frontend in the byte order of the lab; the pod gets it only if
//! the lab does not strip it. Where the source is rewritten, and for a backend on the ingress node, there is no
//! option anywhere. Other load balancers have other ways to say it, or none.

use std::net::SocketAddrV4;

use datapath_types::option::WireOrder;
use labctl_wire::packet::{DsrOption, Options, Transport};
use labctl_wire::{Direction, Side};

use crate::case::Place;
use crate::context::{Context, Seen};
use crate::findings::Findings;

pub(super) fn check(context: &Context<'_>) -> Findings {
    if context.plan.datapath.external {
        return Findings::skip(
            "the option is the bundled datapath's; this load balancer is the cluster's own",
        );
    }
    let mut findings = Findings::default();
    let (mut tagged, mut plain) = (0, 0);
    for seen in context.seen_answered() {
        let options = &seen.ip.options;
        if !is_due(context, &seen) {
            plain += 1;
            if let Some(why) = unexpected(context, &seen, options) {
                findings.offence(seen.index, why);
            }
            continue;
        }
        tagged += 1;
        if let Some(why) = wrong_value(context, options, seen.case.exchange.remote) {
            findings.offence(seen.index, format!("{}: {why}", seen.case.name()));
        }
    }
    let due = require(&mut findings, context);
    if due > 0 && tagged == 0 {
        findings.doubt("no request was seen between ingress node and backend node");
    }
    if tagged + plain == 0 {
        findings.doubt("no packet was seen");
    }
    findings.number("with_option", tagged);
    findings.number("without_option", plain);
    let frontend = context.answered().next().map(|(_, c)| c.exchange.remote);
    findings.claim(match (due, frontend) {
        (1.., Some(frontend)) => {
            format!("{tagged} packets that need the option carry {frontend}, none of {plain} others has one")
        }
        _ => format!("none of {plain} packets carries the option, which this traffic does not need"),
    });
    findings
}

/// Demands proof wherever an option would be seen; returns how many requests need one.
fn require(findings: &mut Findings, context: &Context<'_>) -> u32 {
    let mut due = 0;
    for (_, case) in context.answered() {
        due += u32::from(case.is_tagged());
        for waypoint in case.way(Side::Request) {
            findings.require(context, waypoint.place);
        }
        if case.backend.is_none() {
            findings.doubt(format!("the backend of {} is not known", case.name()));
        }
    }
    due
}

/// Whether this packet must carry the option here.
fn is_due(context: &Context<'_>, seen: &Seen<'_, '_>) -> bool {
    let opens = match &seen.ip.transport {
        Transport::Tcp(tcp) => tcp.flags.is_syn(),
        Transport::Udp(_) => true,
        // The option is of the kind that is copied into fragments; a node may have fragmented after tagging.
        Transport::LaterFragment => seen.ip.options.dsr.is_some(),
        _ => false,
    };
    let Some(backend) = seen.case.backend else { return false };
    let between_nodes = match (seen.place, seen.direction()) {
        (Place::Uplink(node), Direction::Out) => node == seen.case.ingress,
        (Place::Uplink(node), Direction::In) => node == backend.node,
        (Place::Pod(index), Direction::In) => index == backend.index && !context.plan.datapath.strip_option,
        (Place::Veth(node), Direction::Out) => node == backend.node && !context.plan.datapath.strip_option,
        _ => false,
    };
    seen.case.is_tagged() && seen.side == Side::Request && opens && between_nodes
}

fn unexpected(context: &Context<'_>, seen: &Seen<'_, '_>, options: &Options) -> Option<String> {
    if options.dsr_count == 0 {
        return None;
    }
    let name = seen.case.name();
    let place = context.place_name(seen.place);
    Some(match (seen.place, seen.side) {
        (Place::Pod(_) | Place::Veth(_), Side::Request) => {
            format!("{name}: the option was not stripped before {place}")
        }
        _ => format!("{name}: a packet that must have no option has one at {place}"),
    })
}

fn wrong_value(context: &Context<'_>, options: &Options, frontend: SocketAddrV4) -> Option<String> {
    if options.malformed {
        return Some("the options are malformed".to_owned());
    }
    let Some(dsr) = &options.dsr else {
        return Some("the option is missing".to_owned());
    };
    if options.dsr_count > 1 {
        return Some(format!("{} options in one packet", options.dsr_count));
    }
    let order = context.wire_order();
    let value = dsr.read(order);
    (value != frontend).then(|| mismatch(dsr, order, frontend))
}

fn mismatch(dsr: &DsrOption, order: WireOrder, frontend: SocketAddrV4) -> String {
    let (other, name) = match order {
        WireOrder::Network => (WireOrder::Cilium, "Cilium's little-endian"),
        WireOrder::Cilium => (WireOrder::Network, "network"),
    };
    if dsr.read(other) == frontend {
        return format!("the option is in {name} byte order, not in the lab's");
    }
    format!("the option says {}, expected {frontend}", dsr.read(order))
}
