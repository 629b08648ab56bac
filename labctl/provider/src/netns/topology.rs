//! The plan as hosts, interfaces, veth pairs and routes: everything that `up` will make, decided beforehand.
//!
//! Owns: names, indexes, Ethernet addresses, MTUs and routes. Does not own: any I/O. Pure.
//!
//! Indexes are chosen here so that no message has to ask for one. The two ends of a pair never have the
//! same: the kernel takes a veth whose peer has its own index for a device without a lower one
//! (`dev_get_iflink`), and then delays its carrier event by up to a second (`linkwatch_urgent_event`).

use std::collections::HashSet;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use labctl_model::{Fault, NodePlan, Plan};

use super::namespace::UPLINK;
use crate::host::{Host, HostInterface, HostKind, MacAddress, Peer, Place};

/// Name of the host with the bridge.
pub(super) const SWITCH: &str = "switch";
/// Name of the bridge.
pub(super) const BRIDGE: &str = "br0";
/// The longest interface name (`IFNAMSIZ` less the final zero).
const MAX_NAME: usize = 15;
/// Above the fallback tunnel devices that some kernels put into every namespace.
const UPLINK_INDEX: u32 = 20;
const BRIDGE_INDEX: u32 = 100;
const FIRST_PORT_INDEX: u32 = 101;
const FIRST_POD_SIDE_INDEX: u32 = 1001;

/// All that a lab consists of.
pub(super) struct Topology {
    /// Switch, client, then each node followed by its pods.
    pub(super) hosts: Vec<Host>,
    /// Veth pairs.
    pub(super) pairs: Vec<Pair>,
    /// Routes of each host, in the order of `hosts`.
    pub(super) routes: Vec<Vec<Route>>,
}

/// One end of a pair: host and interface by their places in [`Topology::hosts`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    pub(super) host: usize,
    pub(super) interface: usize,
}

/// A veth pair, created by a message in the near end's namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pair {
    /// The switch's port, or the node's side of a pod's veth.
    pub(super) near: End,
    /// `eth0` of a node, the client or a pod.
    pub(super) far: End,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) destination: Ipv4Net,
    /// `None`: on the link itself.
    pub(super) gateway: Option<Ipv4Addr>,
    /// Index of the interface.
    pub(super) index: u32,
    /// Its name, for messages.
    pub(super) interface: String,
}

impl Topology {
    pub(super) fn of(plan: &Plan) -> Self {
        let mut this = Self { hosts: Vec::new(), pairs: Vec::new(), routes: Vec::new() };
        this.add_switch(plan);
        this.add_to_switch(plan, HostKind::Client, &plan.client.name, plan.client.address);
        for node in &plan.nodes {
            let at = this.add_to_switch(plan, HostKind::Node, &node.name, node.address);
            this.routes[at] = routes_to_other_nodes(plan, node);
            this.add_pods(plan, node, at);
        }
        this
    }

    /// Names of all namespaces, in the order of the hosts.
    pub(super) fn namespaces(&self) -> Vec<String> {
        self.hosts.iter().map(|h| h.namespace().to_owned()).collect()
    }

    /// A name that two hosts, or two interfaces of one host, would have.
    pub(super) fn clash(&self) -> Option<String> {
        let mut hosts = HashSet::new();
        for host in &self.hosts {
            if !hosts.insert(&host.name) {
                return Some(format!("host {}", host.name));
            }
            let mut interfaces = HashSet::new();
            if let Some(twice) = host.interfaces.iter().find(|i| !interfaces.insert(&i.name)) {
                return Some(format!("interface {} of {}", twice.name, host.name));
            }
        }
        None
    }

    pub(super) fn interface(&self, end: End) -> &HostInterface {
        &self.hosts[end.host].interfaces[end.interface]
    }

    fn add_host(&mut self, plan: &Plan, kind: HostKind, name: &str) -> usize {
        self.hosts.push(Host {
            name: name.to_owned(),
            kind,
            place: Place::Namespace { name: format!("labctl-{}-{name}", plan.lab) },
            in_pod: None,
            interfaces: Vec::new(),
            lab: plan.lab.clone(),
        });
        self.routes.push(Vec::new());
        self.hosts.len() - 1
    }

    fn add_interface(&mut self, host: usize, interface: HostInterface) -> End {
        self.hosts[host].interfaces.push(interface);
        End { host, interface: self.hosts[host].interfaces.len() - 1 }
    }

    fn add_switch(&mut self, plan: &Plan) {
        let switch = self.add_host(plan, HostKind::Switch, SWITCH);
        self.add_interface(
            switch,
            HostInterface {
                name: BRIDGE.to_owned(),
                index: BRIDGE_INDEX,
                mac: hashed_mac(&plan.lab, SWITCH, BRIDGE),
                mtu: plan.mtu,
                address: None,
                peer: None,
                pod: None,
            },
        );
    }

    /// A host with its uplink, and the switch's port for it.
    fn add_to_switch(&mut self, plan: &Plan, kind: HostKind, name: &str, address: Ipv4Addr) -> usize {
        let host = self.add_host(plan, kind, name);
        let port = fit("p-", name);
        let ports = self.hosts[0].interfaces.len() as u32 - 1;
        let near = self.add_interface(
            0,
            HostInterface {
                mac: hashed_mac(&plan.lab, SWITCH, &port),
                name: port.clone(),
                index: FIRST_PORT_INDEX + ports,
                mtu: plan.mtu,
                address: None,
                peer: Some(Peer { host: name.to_owned(), interface: UPLINK.to_owned() }),
                pod: None,
            },
        );
        let net = on_prefix(address, plan.network.prefix_len());
        let peer = Peer { host: SWITCH.to_owned(), interface: port };
        let far = self.add_interface(host, uplink(plan, name, net, plan.mtu, peer));
        self.pairs.push(Pair { near, far });
        host
    }

    fn add_pods(&mut self, plan: &Plan, node: &NodePlan, at: usize) {
        let mtu = pod_mtu(plan, &node.name);
        for (number, pod) in node.pods.iter().filter(|p| !p.host_network).enumerate() {
            let host = self.add_host(plan, HostKind::Pod, &pod.name);
            let side = fit("lxc-", &pod.name);
            let index = FIRST_POD_SIDE_INDEX + number as u32;
            let near = self.add_interface(
                at,
                HostInterface {
                    mac: hashed_mac(&plan.lab, &node.name, &side),
                    name: side.clone(),
                    index,
                    mtu,
                    address: Some(single(node.pod_gateway)),
                    peer: Some(Peer { host: pod.name.clone(), interface: UPLINK.to_owned() }),
                    pod: Some(pod.name.clone()),
                },
            );
            self.routes[at].push(on_link(pod.address, index, &side));
            let peer = Peer { host: node.name.clone(), interface: side };
            let far = self.add_interface(host, uplink(plan, &pod.name, single(pod.address), mtu, peer));
            self.pairs.push(Pair { near, far });
            self.routes[host] = routes_of_pod(node.pod_gateway);
        }
    }
}

fn uplink(plan: &Plan, host: &str, address: Ipv4Net, mtu: u16, peer: Peer) -> HostInterface {
    HostInterface {
        name: UPLINK.to_owned(),
        index: UPLINK_INDEX,
        mac: readable_mac(&plan.lab, host, address.addr()),
        mtu,
        address: Some(address),
        peer: Some(peer),
        pod: None,
    }
}

/// As the ptp plugin of CNI does it: the gateway is on the link, all else behind it.
fn routes_of_pod(gateway: Ipv4Addr) -> Vec<Route> {
    let default = Route {
        destination: Ipv4Net::default(),
        gateway: Some(gateway),
        index: UPLINK_INDEX,
        interface: UPLINK.to_owned(),
    };
    vec![on_link(gateway, UPLINK_INDEX, UPLINK), default]
}

fn routes_to_other_nodes(plan: &Plan, node: &NodePlan) -> Vec<Route> {
    let others = plan.nodes.iter().filter(|other| other.name != node.name);
    others
        .map(|other| Route {
            destination: other.pod_cidr.trunc(),
            gateway: Some(other.address),
            index: UPLINK_INDEX,
            interface: UPLINK.to_owned(),
        })
        .collect()
}

fn on_link(address: Ipv4Addr, index: u32, interface: &str) -> Route {
    Route { destination: single(address), gateway: None, index, interface: interface.to_owned() }
}

fn single(address: Ipv4Addr) -> Ipv4Net {
    on_prefix(address, 32)
}

fn on_prefix(address: Ipv4Addr, prefix: u8) -> Ipv4Net {
    Ipv4Net::new(address, prefix).expect("the prefix length is that of another network, or 32")
}

/// MTU of the veth pairs between a node and its pods.
fn pod_mtu(plan: &Plan, node: &str) -> u16 {
    let faults = plan.faults.iter().filter(|f| f.on.covers(node));
    faults
        .filter_map(|f| match f.fault {
            Fault::PodMtu { mtu } => Some(mtu),
            _ => None,
        })
        .min()
        .unwrap_or(plan.mtu)
}

/// `prefix` and `name`, shortened with a hash of the whole name if that is too long for an interface.
fn fit(prefix: &str, name: &str) -> String {
    if prefix.len() + name.len() <= MAX_NAME {
        return format!("{prefix}{name}");
    }
    let hash = fnv1a(&[name]) & 0xf_ffff;
    let head: String = name.chars().take(MAX_NAME - prefix.len() - 5).collect();
    format!("{prefix}{head}{hash:05x}")
}

/// `02:<lab and host>:<IPv4 address>`, so that a capture can be read without a table.
fn readable_mac(lab: &str, host: &str, address: Ipv4Addr) -> MacAddress {
    let [a, b, c, d] = address.octets();
    MacAddress([0x02, fnv1a(&[lab, host, UPLINK]) as u8, a, b, c, d])
}

/// `06:` and a hash: locally administered, unicast, and never one of [`readable_mac`]'s.
fn hashed_mac(lab: &str, host: &str, interface: &str) -> MacAddress {
    let [.., b, c, d, e, f] = fnv1a(&[lab, host, interface]).to_be_bytes();
    MacAddress([0x06, b, c, d, e, f])
}

/// FNV-1a over the parts with a zero byte after each: stable over releases, unlike the standard hasher.
fn fnv1a(parts: &[&str]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_stay_and_long_ones_stay_distinct() {
        assert_eq!(fit("p-", "worker"), "p-worker");
        assert_eq!(fit("p-", "control-plane"), "p-control-plane");
        let (a, b) = (fit("lxc-", "frontend-of-the-shop-1"), fit("lxc-", "frontend-of-the-shop-2"));
        assert_eq!((a.len(), b.len()), (MAX_NAME, MAX_NAME));
        assert!(a.starts_with("lxc-fronte"), "{a}");
        assert_ne!(a, b);
    }

    #[test]
    fn addresses_are_local_unicast_and_stable() {
        let readable = readable_mac("dsr", "worker", Ipv4Addr::new(172, 18, 0, 3));
        assert!(readable.to_string().ends_with(":ac:12:00:03"));
        for mac in [readable, hashed_mac("dsr", SWITCH, "p-worker")] {
            assert_eq!(mac.0[0] & 0b11, 0b10, "{mac} is not locally administered unicast");
        }
        assert_eq!(hashed_mac("dsr", SWITCH, "p-worker"), hashed_mac("dsr", SWITCH, "p-worker"));
        assert_ne!(hashed_mac("dsr", SWITCH, "p-worker"), hashed_mac("dsr2", SWITCH, "p-worker"));
    }
}
