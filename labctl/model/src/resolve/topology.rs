//! The segment, its MTU, the client and the nodes with their ranges of pod addresses.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::addresses::{checked_network, nth, overlap, reserved_role};
use super::{Report, given_or, names, place_of};
use crate::diagnostic::{Diagnostic, Place};
use crate::file::{Address, LabFile, Network, NodeFile};
use crate::given::Given;
use crate::plan::{ClientPlan, Mode, NodePlan, NodeRole};
use crate::{CLIENT, SWITCH};

/// Nodes of one lab at most.
const MAX_NODES: usize = 100;
/// Every IPv4 host must accept packets of this size (RFC 791 section 3.1).
const SMALLEST_MTU: u16 = 576;
/// Bytes of the DSR option.
const OPTION_LEN: u16 = 8;

/// The lab without its service.
pub(super) struct Topology {
    pub(super) network: Ipv4Net,
    pub(super) mtu: u16,
    pub(super) pod_cidr: Ipv4Net,
    pub(super) client: ClientPlan,
    /// In the order of the file, one for each node there, still without pods.
    pub(super) nodes: Vec<NodePlan>,
}

pub(super) fn resolve(file: &LabFile, report: &mut Report) -> Topology {
    let network = network_or(&file.network, Ipv4Net::new_assert(Ipv4Addr::new(172, 18, 0, 0), 16), report);
    let pod_cidr = network_or(&file.pod_cidr, Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8), report);
    if overlap(network, pod_cidr) {
        let place = place_of(file.pod_cidr.as_ref(), &file.network);
        let message = format!("the pods' range `{pod_cidr}` overlaps the segment `{network}`");
        report.push(
            Diagnostic::new(place, message)
                .help("routes could not tell pods from hosts: use separate ranges"),
        );
    }
    let client = client(file, network);
    check_node_count(file, report);
    check_names(file, report);
    check_addresses(file, network, &client, report);
    let nodes = nodes(file, report);
    check_pod_cidrs(file, network, pod_cidr, &nodes, report);
    Topology { network, mtu: mtu(file, report), pod_cidr, client, nodes }
}

fn network_or(given: &Option<Given<Network>>, default: Ipv4Net, report: &mut Report) -> Ipv4Net {
    given.as_ref().map_or(default, |given| checked_network(given, report))
}

fn mtu(file: &LabFile, report: &mut Report) -> u16 {
    let Some(given) = &file.mtu else { return 1500 };
    let mtu = **given;
    let (smallest, why) = match *file.mode {
        Mode::Dsr | Mode::Hybrid => (
            SMALLEST_MTU + OPTION_LEN,
            "every IPv4 host may send packets of 576 bytes, and the DSR option adds 8 on the way to \
             the backend",
        ),
        Mode::Snat | Mode::Local => (SMALLEST_MTU, "every IPv4 host may send packets of 576 bytes"),
    };
    let largest = u16::MAX - OPTION_LEN;
    if mtu < smallest {
        let message = format!("an MTU of {mtu} is too small, mode `{}` needs {smallest}", *file.mode);
        report.push(Diagnostic::new(given.place, message).help(why));
    } else if mtu > largest {
        let message = format!("an MTU of {mtu} is too large, at most {largest} work");
        let why = "an IPv4 packet has at most 65535 bytes, and the DSR option takes 8 of them";
        report.push(Diagnostic::new(given.place, message).help(why));
    }
    mtu
}

fn client(file: &LabFile, network: Ipv4Net) -> ClientPlan {
    let address = file.client.as_ref().map_or_else(|| nth(network, 1), |client| client.address.0);
    ClientPlan { name: CLIENT.to_owned(), address }
}

fn check_node_count(file: &LabFile, report: &mut Report) {
    let count = file.nodes.len();
    if count == 0 {
        let help = "write at least `- {name: worker, address: 172.18.0.3, podCIDR: 10.0.1.0/24}`";
        report.push(Diagnostic::new(file.nodes.place, "the lab has no nodes").help(help));
    } else if count > MAX_NODES {
        let message = format!("the lab has {count} nodes, at most {MAX_NODES} are possible");
        report.push(Diagnostic::new(file.nodes.place, message));
    }
}

fn check_names(file: &LabFile, report: &mut Report) {
    for (index, node) in file.nodes.iter().enumerate() {
        names::check("node", &node.name, report);
        let name = node.name.as_str();
        if name == CLIENT || name == SWITCH {
            let message = format!("no node can be called `{name}`");
            let found = Diagnostic::new(node.name.place, message);
            report.push(found.help(format!("every lab has a {name} of that name")));
        } else if let Some(earlier) = file.nodes[..index].iter().find(|earlier| *earlier.name == name) {
            let found = Diagnostic::new(node.name.place, format!("two nodes are called `{name}`"));
            report.push(found.related(earlier.name.place, "the first one"));
        }
    }
}

fn check_addresses(file: &LabFile, network: Ipv4Net, client: &ClientPlan, report: &mut Report) {
    let client_place = file.client.as_ref().map(|client| client.address.place);
    if let Some(place) = client_place {
        check_in_segment(client.address, place, network, report);
    }
    // Who has an address already, and where that is written.
    let mut taken: Vec<(Ipv4Addr, &str, Option<Place>)> = vec![(client.address, CLIENT, client_place)];
    for node in file.nodes.iter() {
        let Given { place, .. } = node.address;
        let Address(address) = *node.address;
        check_in_segment(address, place, network, report);
        match taken.iter().find(|(other, ..)| *other == address) {
            Some((_, owner, owner_place)) => report.push(taken_address(place, address, owner, *owner_place)),
            None => taken.push((address, node.name.as_str(), Some(place))),
        }
    }
}

fn taken_address(place: Place, address: Ipv4Addr, owner: &str, owner_place: Option<Place>) -> Diagnostic {
    let found = Diagnostic::new(place, format!("address `{address}` is taken by `{owner}`"));
    match owner_place {
        Some(place) => found.related(place, "taken here"),
        None => found.help("the client takes the segment's first address unless `client` says otherwise"),
    }
}

fn check_in_segment(address: Ipv4Addr, place: Place, network: Ipv4Net, report: &mut Report) {
    if !network.contains(&address) {
        let message = format!("address `{address}` is outside the segment `{network}`");
        let help = "client and nodes share the segment that `network` names";
        report.push(Diagnostic::new(place, message).help(help));
    } else if let Some(role) = reserved_role(network, address) {
        report.push(Diagnostic::new(place, format!("`{address}` is the {role} address of `{network}`")));
    }
}

fn nodes(file: &LabFile, report: &mut Report) -> Vec<NodePlan> {
    let has_control_plane =
        file.nodes.iter().any(|node| given_or(&node.role, NodeRole::Worker) == NodeRole::ControlPlane);
    let plan = |(index, node): (usize, &Given<NodeFile>)| {
        let stand_in = if index == 0 && !has_control_plane && node.role.is_none() {
            NodeRole::ControlPlane
        } else {
            NodeRole::Worker
        };
        let pod_cidr = checked_network(&node.pod_cidr, report);
        NodePlan {
            name: node.name.to_string(),
            role: given_or(&node.role, stand_in),
            address: node.address.0,
            pod_cidr,
            pod_gateway: nth(pod_cidr, 1),
            pods: Vec::new(),
        }
    };
    file.nodes.iter().enumerate().map(plan).collect()
}

fn check_pod_cidrs(
    file: &LabFile,
    network: Ipv4Net,
    pod_cidr: Ipv4Net,
    nodes: &[NodePlan],
    report: &mut Report,
) {
    for (index, (written, node)) in file.nodes.iter().zip(nodes).enumerate() {
        let place = written.pod_cidr.place;
        let own = node.pod_cidr;
        if overlap(own, network) {
            let message = format!("pod range `{own}` overlaps the segment `{network}`");
            report.push(Diagnostic::new(place, message).help("pods need a range of their own"));
        } else if !pod_cidr.contains(&own) {
            let message = format!("pod range `{own}` is outside `{pod_cidr}`");
            let found = Diagnostic::new(place, message);
            report.push(match &file.pod_cidr {
                Some(all) => found.related(all.place, "all pod addresses lie in here"),
                None => found.help("all pod addresses lie in `podCIDR`, by default 10.0.0.0/8"),
            });
        }
        if let Some(earlier) = nodes[..index].iter().position(|earlier| overlap(earlier.pod_cidr, own)) {
            let message = format!("pod range `{own}` overlaps the one of `{}`", nodes[earlier].name);
            let earlier_place = file.nodes[earlier].pod_cidr.place;
            report.push(Diagnostic::new(place, message).related(earlier_place, "that range"));
        }
    }
}
