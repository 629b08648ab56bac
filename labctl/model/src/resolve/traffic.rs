//! What `verify` sends, and which node it asks.

use super::{Report, place_of};
use crate::diagnostic::Diagnostic;
use crate::file::LabFile;
use crate::given::Given;
use crate::plan::{NodePlan, NodeRole, Protocol, ServicePlan, TrafficPlan, TrafficPolicy};

/// Requests and datagrams unless the file says otherwise.
const COUNT: u32 = 8;
/// Most requests, and most datagrams, of a run. Each needs a client port of its own; Linux has 28,232 of them
/// (ip_local_port_range) and keeps a closed connection's for a minute.
pub const MAX_REQUESTS: u32 = 20_000;
/// Response body unless the file says otherwise: more than two packets of 1500 bytes.
const RESPONSE_BYTES: u32 = 4096;
/// Largest response body: 1 GiB.
pub const MAX_RESPONSE_BYTES: u32 = 1 << 30;

pub(super) fn resolve(
    file: &LabFile,
    service: &ServicePlan,
    nodes: &[NodePlan],
    report: &mut Report,
) -> TrafficPlan {
    let traffic = file.traffic.as_ref();
    let requests = traffic.and_then(|traffic| traffic.requests.as_ref());
    let datagrams = traffic.and_then(|traffic| traffic.datagrams.as_ref());
    let plan = TrafficPlan {
        via: via(file, service, nodes, report),
        requests: count(requests, Protocol::Tcp, service, report),
        datagrams: count(datagrams, Protocol::Udp, service, report),
        response_bytes: response_bytes(traffic.and_then(|traffic| traffic.response_bytes.as_ref()), report),
    };
    if plan.requests == 0 && plan.datagrams == 0 && !service.protocols.is_empty() {
        let found = Diagnostic::new(place_of(requests.or(datagrams), &file.traffic), "nothing would be sent");
        report.push(found.help("a verdict needs packets: set `requests` or `datagrams`"));
    }
    plan
}

fn count(given: Option<&Given<u32>>, protocol: Protocol, service: &ServicePlan, report: &mut Report) -> u32 {
    let served = service.protocols.contains(&protocol);
    let Some(given) = given else { return if served { COUNT } else { 0 } };
    if **given > 0 && !served && !service.protocols.is_empty() {
        let (what, upper) = match protocol {
            Protocol::Tcp => ("HTTP requests need", "TCP"),
            Protocol::Udp => ("datagrams need", "UDP"),
        };
        let message = format!("{what} {upper}, and the service does not have it");
        let help = format!("add `{protocol}` to the service's protocols, or leave this out");
        report.push(Diagnostic::new(given.place, message).help(help));
    }
    if **given > MAX_REQUESTS {
        let message = format!("{} are too many, at most {MAX_REQUESTS} are possible", **given);
        report.push(Diagnostic::new(given.place, message).help("each takes a port of the client's own"));
    }
    **given
}

fn response_bytes(given: Option<&Given<u32>>, report: &mut Report) -> u32 {
    let Some(given) = given else { return RESPONSE_BYTES };
    if !(1..=MAX_RESPONSE_BYTES).contains(&**given) {
        let message = format!("a response has from 1 to {MAX_RESPONSE_BYTES} bytes");
        report.push(Diagnostic::new(given.place, message));
    }
    **given
}

fn via(file: &LabFile, service: &ServicePlan, nodes: &[NodePlan], report: &mut Report) -> String {
    let local = service.external_traffic_policy == TrafficPolicy::Local;
    let Some(given) = file.traffic.as_ref().and_then(|traffic| traffic.via.as_ref()) else {
        return default_via(nodes, local).map(|node| node.name.clone()).unwrap_or_default();
    };
    match nodes.iter().find(|node| node.name == **given) {
        None if nodes.is_empty() => {}
        None => report.push(super::backends::unknown_node(given, nodes)),
        Some(node) if local && node.pods.is_empty() => {
            let message = format!("`{}` has no backend and would answer nothing", node.name);
            let found = Diagnostic::new(given.place, message);
            report.push(match default_via(nodes, local).filter(|other| !other.pods.is_empty()) {
                Some(other) => found.help(format!(
                    "with policy Local only the asked node's own backends serve: ask `{}`",
                    other.name
                )),
                None => found.help("with policy Local only the asked node's own backends serve"),
            });
        }
        Some(_) => {}
    }
    given.to_string()
}

/// The node that shows most: with policy Local one that has a backend, else one that has none, so that
/// requests must be forwarded; a worker rather than a control plane.
fn default_via(nodes: &[NodePlan], local: bool) -> Option<&NodePlan> {
    let rank = |node: &&NodePlan| (node.pods.is_empty() == local, node.role == NodeRole::ControlPlane);
    nodes.iter().min_by_key(rank)
}
