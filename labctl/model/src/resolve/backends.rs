//! The pods that serve: which node each runs on, its name and its address.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use super::addresses::{nth, reserved_role};
use super::{Report, given_or};
use crate::diagnostic::{Diagnostic, Place, did_you_mean};
use crate::file::{Address, BackendFile, LabFile};
use crate::given::Given;
use crate::plan::{NodePlan, PodPlan, ServicePlan};

/// Pods of one lab at most: each is a namespace with a process.
const MAX_PODS: usize = 1000;

/// Fills in every node's pods. Names count up over the whole lab in the order of the file.
pub(super) fn place(file: &LabFile, service: &ServicePlan, nodes: &mut [NodePlan], report: &mut Report) {
    if file.backends.is_empty() {
        let found = Diagnostic::new(file.backends.place, "the service has no backend");
        report.push(found.help("write at least `- {node: worker}`"));
    }
    if too_many(file, report) {
        return;
    }
    // Explicit addresses first, so that no counted one takes them.
    let taken = explicit_addresses(file, nodes, report);
    let mut placer = Placer { taken, next_pod: 1, host_backends: Vec::new() };
    for backend in file.backends.iter() {
        check_combination(backend, report);
        if let Some(node) = named_node(backend, nodes, report) {
            placer.add(backend, service, &mut nodes[node], report);
        }
    }
    check_pod_names(file, nodes, report);
}

fn too_many(file: &LabFile, report: &mut Report) -> bool {
    let pods: usize = file.backends.iter().map(|backend| given_or(&backend.replicas, 1) as usize).sum();
    if pods > MAX_PODS {
        let message = format!("the lab has {pods} pods, at most {MAX_PODS} are possible");
        report.push(Diagnostic::new(file.backends.place, message).help("each one is a process"));
    }
    pods > MAX_PODS
}

fn named_node(backend: &BackendFile, nodes: &[NodePlan], report: &mut Report) -> Option<usize> {
    let index = nodes.iter().position(|node| node.name == *backend.node);
    if index.is_none() && !nodes.is_empty() {
        report.push(unknown_node(&backend.node, nodes));
    }
    index
}

/// A name that is no node's.
pub(super) fn unknown_node(name: &Given<String>, nodes: &[NodePlan]) -> Diagnostic {
    let names: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
    Diagnostic::new(name.place, format!("there is no node `{}`", **name))
        .help(did_you_mean(name, names.iter().copied()))
}

fn explicit_addresses(file: &LabFile, nodes: &[NodePlan], report: &mut Report) -> BTreeSet<Ipv4Addr> {
    let mut taken: Vec<(Ipv4Addr, Place)> = Vec::new();
    for backend in file.backends.iter() {
        let Some(given) = &backend.address else { continue };
        let Address(address) = **given;
        if let Some(node) = nodes.iter().find(|node| node.name == *backend.node) {
            check_pod_address(node, address, given.place, report);
        }
        match taken.iter().find(|(other, _)| *other == address) {
            Some((_, earlier)) => report.push(
                Diagnostic::new(given.place, format!("two pods have the address `{address}`"))
                    .related(*earlier, "the first one"),
            ),
            None => taken.push((address, given.place)),
        }
    }
    taken.into_iter().map(|(address, _)| address).collect()
}

fn check_pod_address(node: &NodePlan, address: Ipv4Addr, place: Place, report: &mut Report) {
    let (name, range) = (&node.name, node.pod_cidr);
    let message = if !range.contains(&address) {
        format!("address `{address}` is outside `{range}`, the pod range of `{name}`")
    } else if let Some(role) = reserved_role(range, address) {
        format!("`{address}` is the {role} address of `{range}`")
    } else if address == node.pod_gateway {
        format!("`{address}` is the gateway of the pods on `{name}`")
    } else {
        return;
    };
    report.push(Diagnostic::new(place, message).help(match free_range(node) {
        Some((first, last)) => format!("use one from {first} to {last}"),
        None => "the range has no room for a pod".to_owned(),
    }));
}

/// First and last address that pods of a node can have.
fn free_range(node: &NodePlan) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let first = nth(node.pod_cidr, 2);
    let last = Ipv4Addr::from_bits(node.pod_cidr.broadcast().to_bits().saturating_sub(1));
    (first <= last && node.pod_cidr.contains(&first)).then_some((first, last))
}

fn check_combination(backend: &BackendFile, report: &mut Report) {
    let replicas = given_or(&backend.replicas, 1);
    let host = given_or(&backend.host_network, false);
    if let Some(given) = &backend.replicas {
        if replicas == 0 {
            let found = Diagnostic::new(given.place, "a backend has at least 1 replica");
            report.push(found.help("take the entry out to have none"));
        } else if replicas > 1 && host {
            let found = Diagnostic::new(given.place, "a hostNetwork backend cannot have replicas");
            report.push(found.help("they would all listen on the same port of the node"));
        } else if replicas > 1 && backend.address.is_some() {
            let found = Diagnostic::new(given.place, "one address cannot serve several replicas");
            report.push(found.help("leave `address` out, or write one entry for each pod"));
        }
    }
    if let (Some(address), true) = (&backend.address, host) {
        let found = Diagnostic::new(address.place, "a hostNetwork backend has the address of its node");
        report.push(found.help("leave `address` out, or `hostNetwork`"));
    }
}

/// Hands out names and addresses.
struct Placer {
    taken: BTreeSet<Ipv4Addr>,
    next_pod: usize,
    /// Nodes that have a hostNetwork backend, and where that is written.
    host_backends: Vec<(Ipv4Addr, Place)>,
}

impl Placer {
    fn add(
        &mut self,
        backend: &Given<BackendFile>,
        service: &ServicePlan,
        node: &mut NodePlan,
        report: &mut Report,
    ) {
        if given_or(&backend.host_network, false) {
            self.add_host_backend(backend, service, node, report);
            return;
        }
        let replicas = given_or(&backend.replicas, 1);
        for count in 0..replicas {
            let explicit = backend.address.as_ref().map(|address| address.0);
            let Some(address) = explicit.or_else(|| self.next_address(node)) else {
                let place = backend.replicas.as_ref().map_or(backend.node.place, |given| given.place);
                report.push(no_room(node, replicas, count, place));
                return;
            };
            self.add_pod(node, service, address, false);
        }
    }

    fn add_pod(&mut self, node: &mut NodePlan, service: &ServicePlan, address: Ipv4Addr, host_network: bool) {
        let name = format!("{}-{}", service.name, self.next_pod);
        self.next_pod += 1;
        node.pods.push(PodPlan { name, address, host_network });
    }

    /// The lowest free address of the node from .2 on.
    fn next_address(&mut self, node: &NodePlan) -> Option<Ipv4Addr> {
        let (first, last) = free_range(node)?;
        let address =
            (first.to_bits()..=last.to_bits()).map(Ipv4Addr::from_bits).find(|a| !self.taken.contains(a))?;
        self.taken.insert(address);
        Some(address)
    }

    fn add_host_backend(
        &mut self,
        backend: &Given<BackendFile>,
        service: &ServicePlan,
        node: &mut NodePlan,
        report: &mut Report,
    ) {
        let place = backend.host_network.as_ref().map_or(backend.place, |given| given.place);
        if let Some((_, earlier)) = self.host_backends.iter().find(|(other, _)| *other == node.address) {
            let message =
                format!("two hostNetwork backends listen on port {} of `{}`", service.target_port, node.name);
            report.push(Diagnostic::new(place, message).related(*earlier, "the first one"));
            return;
        }
        self.host_backends.push((node.address, place));
        if service.target_port == service.node_port {
            let message = format!(
                "a hostNetwork backend cannot listen on {}, the service's nodePort",
                service.node_port
            );
            report.push(Diagnostic::new(place, message).help(
                "a packet to that port of the node is for the frontend: give `service` another targetPort",
            ));
        }
        self.add_pod(node, service, node.address, true);
    }
}

fn no_room(node: &NodePlan, replicas: u16, placed: u16, place: Place) -> Diagnostic {
    let pods = if replicas == 1 { "pod does" } else { "pods do" };
    let message =
        format!("{replicas} {pods} not fit into `{}`, the pod range of `{}`", node.pod_cidr, node.name);
    let free = if placed == 1 { "address is" } else { "addresses are" };
    let help = format!("{placed} {free} free: network, broadcast, gateway and other pods take the rest");
    Diagnostic::new(place, message).help(help)
}

/// Nodes and pods are hosts of one lab: no two can have one name.
fn check_pod_names(file: &LabFile, nodes: &[NodePlan], report: &mut Report) {
    for node in file.nodes.iter() {
        if nodes.iter().flat_map(|other| &other.pods).any(|pod| pod.name == *node.name) {
            let message = format!("node `{}` has the name of a pod", *node.name);
            let help = "pods are called after the service and a number: rename the node or the service";
            report.push(Diagnostic::new(node.name.place, message).help(help));
        }
    }
}
