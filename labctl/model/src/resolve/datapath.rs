//! Switches of the bundled datapath and of the kind provider.

use std::ops::RangeInclusive;

use super::service::NODE_PORTS;
use super::{Report, given_or, place_of};
use crate::diagnostic::Diagnostic;
use crate::file::LabFile;
use crate::plan::{DatapathPlan, NodePlan, ProviderKind, ServicePlan};

/// Linux' default net.ipv4.ip_local_port_range: ports of the node's own connections.
const EPHEMERAL_PORTS: RangeInclusive<u16> = 32768..=60999;
/// Ports that only privileged processes can have.
const PRIVILEGED_PORTS: RangeInclusive<u16> = 0..=1023;
/// Entries of the conntrack map.
const FLOWS: RangeInclusive<u32> = 1024..=4_194_304;

pub(super) fn resolve(
    file: &LabFile,
    service: &ServicePlan,
    nodes: &[NodePlan],
    report: &mut Report,
) -> DatapathPlan {
    let mut plan = DatapathPlan {
        external: false,
        strip_option: true,
        snat_port_min: 61000,
        snat_port_max: u16::MAX,
        flows: 65_536,
        events: false,
    };
    if let Some(datapath) = &file.datapath {
        plan.external = given_or(&datapath.external, plan.external);
        plan.strip_option = given_or(&datapath.strip_option, plan.strip_option);
        plan.flows = given_or(&datapath.flows, plan.flows);
        plan.events = given_or(&datapath.events, plan.events);
        if let Some(ports) = &datapath.snat_ports {
            (plan.snat_port_min, plan.snat_port_max) = (ports.first, ports.last);
        }
        check_flows(file, plan.flows, report);
        check_external(file, report);
    }
    check_snat_ports(file, plan.snat_port_min..=plan.snat_port_max, service, nodes, report);
    plan
}

/// Only somebody else's cluster has a load balancer already.
fn check_external(file: &LabFile, report: &mut Report) {
    let given = file.datapath.as_ref().and_then(|datapath| datapath.external.as_ref());
    let Some(given) = given.filter(|given| ***given) else { return };
    let provider = given_or(&file.provider, ProviderKind::Netns);
    if provider != ProviderKind::Cluster {
        let message = format!("provider `{provider}` has no load balancer of its own to judge");
        let help = "write `provider: cluster`, or leave this out and use `labctl up --provider cluster --datapath external`";
        report.push(Diagnostic::new(given.place, message).help(help));
    }
}

fn check_flows(file: &LabFile, flows: u32, report: &mut Report) {
    if !FLOWS.contains(&flows) {
        let given = file.datapath.as_ref().and_then(|datapath| datapath.flows.as_ref());
        let message =
            format!("{flows} flows are not possible, from {} to {} are", FLOWS.start(), FLOWS.end());
        let help = "the kernel sets the whole map's memory aside on every node";
        report.push(Diagnostic::new(place_of(given, &file.datapath), message).help(help));
    }
}

fn check_snat_ports(
    file: &LabFile,
    ports: RangeInclusive<u16>,
    service: &ServicePlan,
    nodes: &[NodePlan],
    report: &mut Report,
) {
    let given = file.datapath.as_ref().and_then(|datapath| datapath.snat_ports.as_ref());
    let (first, last) = (*ports.start(), *ports.end());
    let range = format!("{first}-{last}");
    // A default range can clash only with a port of the service.
    let place = given.map_or_else(|| node_port_place(file), |given| given.place);
    let found = |message: String| Diagnostic::new(place, message);
    if first > last {
        let found = found(format!("port range `{range}` is reversed"));
        report.push(found.help(format!("did you mean `{last}-{first}`?")));
        return;
    }
    let clashes = |other: &RangeInclusive<u16>| first <= *other.end() && *other.start() <= last;
    let usual = "use 61000-65535";
    if clashes(&PRIVILEGED_PORTS) {
        report.push(found(format!("SNAT ports `{range}` include ports below 1024")).help(usual));
    }
    if clashes(&NODE_PORTS) {
        let found = found(format!("SNAT ports `{range}` overlap the node ports 30000-32767"));
        report.push(found.help(format!("a reply would be taken for a request: {usual}")));
    } else if ports.contains(&service.node_port) {
        let found = found(format!("SNAT ports `{range}` include the nodePort {}", service.node_port));
        report.push(found.help("a reply would be taken for a request: use separate ports"));
    }
    if clashes(&EPHEMERAL_PORTS) {
        let found = found(format!("SNAT ports `{range}` overlap the node's own ports 32768-60999"));
        report.push(found.help(format!("connections of the node itself would be broken: {usual}")));
    }
    let host_backend = nodes.iter().flat_map(|node| &node.pods).any(|pod| pod.host_network);
    if host_backend && ports.contains(&service.target_port) {
        let found = found(format!("SNAT ports `{range}` include the targetPort {}", service.target_port));
        report.push(found.help("a hostNetwork backend listens there on the node's own address"));
    }
}

fn node_port_place(file: &LabFile) -> crate::diagnostic::Place {
    let given = file.service.as_ref().and_then(|service| service.node_port.as_ref());
    place_of(given, &file.service)
}

/// The node image of the kind provider.
pub(super) fn kind_image(file: &LabFile, report: &mut Report) -> Option<String> {
    let image = &file.kind.as_ref()?.image;
    if image.is_empty() || image.contains(|c: char| c.is_whitespace() || c.is_control()) {
        let found = Diagnostic::new(image.place, "this is not the name of an image");
        report.push(found.help("use a name such as `kindest/node:v1.34.0`"));
    }
    Some(image.to_string())
}
