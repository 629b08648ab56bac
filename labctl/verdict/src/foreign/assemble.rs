//! From flows and places to the evidence of a run: a plan with the hosts that there are, and an exchange for each flow.
//!
//! Owns: nodes, backends, mode and what is not known of them. Does not own: any finding ([`super::flows`],
//! [`super::places`]).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};

use ipnet::Ipv4Net;
use labctl_model::{
    Affinity, ClientPlan, DatapathPlan, Mode, NodePlan, NodeRole, Plan, PodPlan, Protocol, ProviderKind,
    ServicePlan, TrafficPlan, TrafficPolicy, WireFormat,
};
use labctl_wire::packet::{TcpFlags, Transport};
use labctl_wire::{CaptureFile, Exchange, HostKind, Outcome, Timings};
use rustc_hash::FxHashMap;

use super::Given;
use super::flows::{Flow, Flows, Pair, pairs};
use super::places::{At, Places, saw};
use crate::evidence::{Canaries, Evidence, Origin, Vouched};
use crate::words::plural;

/// What an Ethernet carries where nobody says otherwise; only shown, never judged.
const USUAL_MTU: u16 = 1500;

/// An address that no packet has (RFC 1112 section 4), for ranges that are not known.
const NOBODY: Ipv4Addr = Ipv4Addr::new(240, 0, 0, 0);

/// Writes everything down.
pub(super) fn evidence(
    mut capture: CaptureFile,
    flows: &Flows,
    places: &Places,
    given: &Given,
    notes: &mut Vec<String>,
) -> Evidence {
    let guessed = places.direct(&mut capture);
    leave_out(&mut capture, flows);
    let exchanges = exchanges(&capture, flows, given, places);
    let hosts = Hosts::new(&capture, flows, places, given, notes);
    let mode = mode(&hosts, flows, given, notes);
    let mtu = given.mtu.or_else(|| flows.all.iter().find_map(|flow| told_mtu(&capture, flow)));
    if let (Some(mtu), None) = (mtu, given.mtu) {
        notes.push(format!("the links' MTU is {mtu} bytes, by the client's own SYN"));
    }
    name_points(&mut capture, places, &hosts);
    let mut uplinks = BTreeMap::new();
    let mut pod_links = BTreeMap::new();
    let mut vouched =
        Vouched { complete: given.complete.clone(), mtu_unknown: mtu.is_none(), ..Vouched::default() };
    for (index, info) in capture.points.iter().enumerate() {
        let point = &info.point;
        match places.points[index].at {
            At::Client | At::Uplink | At::Pod(_) => {
                uplinks.insert(point.host.clone(), point.interface.clone());
            }
            At::Link(backend) => {
                pod_links.insert(point.to_string(), hosts.pod_name(backend));
            }
            At::Side => {}
        }
        if guessed.contains(&index) {
            let why = format!(
                "{point} has neither directions nor Ethernet addresses: which way its packets went is taken from what they are"
            );
            vouched.unfit.insert(point.to_string(), why);
        }
    }
    let plan = hosts.plan(flows, mode, mtu.unwrap_or(USUAL_MTU), exchanges.len());
    let canaries = Canaries { run: String::new(), rounds: 0 };
    let mut evidence = Evidence::new(plan, capture, exchanges, canaries);
    (evidence.uplinks, evidence.pod_links, evidence.origin) = (uplinks, pod_links, Origin::Files(vouched));
    evidence
}

/// Takes away the packets of other conversations, which say nothing of the service and may use a client's port again.
fn leave_out(capture: &mut CaptureFile, flows: &Flows) {
    let ours: BTreeSet<_> = flows.all.iter().flat_map(pairs).collect();
    capture.retain(|capture, packet| {
        let frame = capture.headers(packet);
        let (Some(ip), Some((src, dst))) = (frame.ipv4(), frame.sockets()) else { return true };
        let [there, back] = [(ip.protocol, src, dst), (ip.protocol, dst, src)];
        let other = flows.others.contains(&there) || flows.others.contains(&back);
        !other || ours.contains(&there) || ours.contains(&back)
    });
}

/// An exchange for each flow, with what its packets show of its end.
fn exchanges(capture: &CaptureFile, flows: &Flows, given: &Given, places: &Places) -> Vec<Exchange> {
    let answered = answered(capture, flows);
    let at_client = (0..places.points.len()).find(|p| places.points[*p].at == At::Client);
    let whole = at_client.is_some_and(|p| given.complete.contains(&capture.points[p].point.host));
    let exchange = |(index, flow): (usize, &Flow)| Exchange {
        id: index as u32 + 1,
        protocol: flow.protocol.to_string(),
        local: flow.outside.0,
        remote: flow.outside.1,
        started_ns: flow.since,
        outcome: match (answered.contains(&index), whole) {
            (true, _) => Outcome::Answered,
            (false, true) => Outcome::TimedOut { waiting_for: "a reply".to_owned() },
            (false, false) => Outcome::Unknown,
        },
        timings: Timings::default(),
        received: 0,
        served_by: None,
    };
    flows.all.iter().enumerate().map(exchange).collect()
}

/// Flows to which an answer with payload, or the server's FIN, was seen.
fn answered(capture: &CaptureFile, flows: &Flows) -> BTreeSet<usize> {
    let mut backwards: FxHashMap<(Protocol, Pair), usize> = FxHashMap::default();
    for (index, flow) in flows.all.iter().enumerate() {
        for (client, server) in [Some(flow.outside), flow.inside].into_iter().flatten() {
            backwards.insert((flow.protocol, (server, client)), index);
        }
    }
    let mut answered = BTreeSet::new();
    for packet in 0..capture.packets().len() {
        let frame = capture.headers(packet);
        let (Some(ip), Some(pair)) = (frame.ipv4(), frame.sockets()) else { continue };
        let (protocol, speaks) = match &ip.transport {
            Transport::Tcp(tcp) => (Protocol::Tcp, tcp.payload_len > 0 || tcp.flags.has(TcpFlags::FIN)),
            _ => (Protocol::Udp, true),
        };
        if let (true, Some(flow)) = (speaks, backwards.get(&(protocol, pair))) {
            answered.insert(*flow);
        }
    }
    answered
}

/// The MTU behind the maximum segment size of a client's SYN (RFC 9293 section 3.7.1).
fn told_mtu(capture: &CaptureFile, flow: &Flow) -> Option<u16> {
    let sight = flow.sights.iter().find(|s| s.pair == flow.outside)?;
    let frame = capture.headers(sight.packet);
    let (ip, tcp) = (frame.ipv4()?, frame.tcp()?);
    let options = capture.data(sight.packet).get(frame.header_len + ip.header_len + 20..tcp.payload.start)?;
    let mut rest = options;
    loop {
        match rest {
            [0, ..] | [] => return None,
            [1, next @ ..] => rest = next,
            [2, 4, high, low, ..] => return u16::from_be_bytes([*high, *low]).checked_add(40),
            [_, length, ..] => rest = rest.get(usize::from(*length).max(2)..)?,
            [_] => return None,
        }
    }
}

/// A host with the address by which the others know it.
#[derive(Clone, Debug)]
struct Node {
    name: String,
    /// Unspecified if nothing tells.
    address: Ipv4Addr,
    /// Source addresses that it gives requests, other than its own.
    masquerade: Option<Ipv4Addr>,
}

/// The hosts behind the places.
#[derive(Debug)]
struct Hosts {
    client: String,
    nodes: Vec<Node>,
    /// Backends: socket, index of the node, name of the pod.
    backends: Vec<(SocketAddrV4, usize, String)>,
}

impl Hosts {
    fn new(
        capture: &CaptureFile,
        flows: &Flows,
        places: &Places,
        given: &Given,
        notes: &mut Vec<String>,
    ) -> Self {
        let of = |at: At| (0..places.points.len()).find(|p| places.points[*p].at == at);
        let host = |point: usize| capture.points[point].point.host.clone();
        let client = of(At::Client).map_or_else(|| "client".to_owned(), host);
        let mut hosts = Self { client, nodes: Vec::new(), backends: Vec::new() };
        for (index, point) in places.points.iter().enumerate() {
            if matches!(point.at, At::Uplink | At::Link(_) | At::Side) {
                hosts.add(host(index), None);
            }
            if point.at == At::Uplink {
                let asked = point.asked.first().map(|frontend| *frontend.ip());
                let by_arp = places.mac(index).and_then(|mac| places.neighbours.get(&mac).copied());
                hosts.add(host(index), given.nodes.get(&host(index)).copied().or(asked).or(by_arp));
            }
        }
        for frontend in flows.all.iter().map(|flow| flow.outside.1).collect::<BTreeSet<_>>() {
            hosts.asked(*frontend.ip(), flows, places, capture);
        }
        let backends: BTreeSet<_> = flows.all.iter().filter_map(|flow| Some(flow.inside?.1)).collect();
        for backend in backends {
            let node = hosts.home(backend, flows, places, capture, notes);
            let name = of(At::Pod(backend)).map_or_else(|| format!("pod-{}", backend.ip()), host);
            hosts.backends.push((backend, node, name));
        }
        for node in hosts.nodes.iter().filter(|node| node.address.is_unspecified()) {
            notes.push(format!(
                "the address of {} is not known; --node {}=ADDRESS gives it",
                node.name, node.name
            ));
        }
        hosts.masquerades(flows);
        hosts
    }

    /// The node of this name, with an address if one is known.
    fn add(&mut self, name: String, address: Option<Ipv4Addr>) -> usize {
        let index = self.nodes.iter().position(|node| node.name == name).unwrap_or_else(|| {
            self.nodes.push(Node { name, address: Ipv4Addr::UNSPECIFIED, masquerade: None });
            self.nodes.len() - 1
        });
        if let Some(address) = address {
            self.nodes[index].address = address;
        }
        index
    }

    /// The node that was asked by this address; one that nobody captured on is known by its address alone.
    fn asked(&mut self, address: Ipv4Addr, flows: &Flows, places: &Places, capture: &CaptureFile) {
        let captured = (0..places.points.len()).any(|point| {
            places.points[point].at == At::Uplink
                && flows.all.iter().any(|f| *f.outside.1.ip() == address && saw(f, point).0)
                && self.nodes.iter().any(|n| n.name == capture.points[point].point.host)
        });
        if !captured && !self.nodes.iter().any(|node| node.address == address) {
            self.add(format!("node-{address}"), Some(address));
        }
    }

    /// The node that runs a backend.
    fn home(
        &mut self,
        backend: SocketAddrV4,
        flows: &Flows,
        places: &Places,
        capture: &CaptureFile,
        notes: &mut Vec<String>,
    ) -> usize {
        let host = |point: usize| capture.points[point].point.host.clone();
        let serving = |p: &usize| places.points[*p].served.contains(&backend);
        // A node that gets these requests and was not asked for them, or that has the pod's link.
        let of_flows = || flows.all.iter().filter(|f| f.inside.is_some_and(|(_, to)| to == backend));
        let receives = |p: &usize| serving(p) && of_flows().any(|f| saw(f, *p) == (false, true));
        let mut points = 0..places.points.len();
        if let Some(point) = points.find(|p| match places.points[*p].at {
            At::Uplink => receives(p),
            At::Link(of) => of == backend,
            At::Client | At::Pod(_) | At::Side => false,
        }) {
            return self.add(host(point), None);
        }
        let asked: BTreeSet<Ipv4Addr> = of_flows().map(|f| *f.outside.1.ip()).collect();
        let passes_on = (0..places.points.len()).any(|p| places.points[p].at == At::Uplink && serving(&p));
        let own = self.nodes.iter().position(|n| asked.contains(&n.address) && !n.name.starts_with("node-"));
        if let (Some(node), false) = (own, passes_on) {
            notes.push(format!(
                "{} runs backend {} itself: no request to it left by its uplink",
                self.nodes[node].name,
                backend.ip()
            ));
            return node;
        }
        if backend.ip() != &Ipv4Addr::UNSPECIFIED
            && let Some(node) = self.nodes.iter().position(|n| n.address == *backend.ip())
        {
            return node;
        }
        notes.push(format!("nothing was captured on the node of backend {}", backend.ip()));
        self.add(format!("node-of-{}", backend.ip()), None)
    }

    /// The addresses that nodes give requests instead of the client's.
    fn masquerades(&mut self, flows: &Flows) {
        for flow in &flows.all {
            let Some((from, _)) = flow.inside else { continue };
            let asked = *flow.outside.1.ip();
            if *from.ip() == flows.client {
                continue;
            }
            if let Some(node) = self.nodes.iter_mut().find(|n| n.address == asked)
                && node.address != *from.ip()
            {
                node.masquerade = Some(*from.ip());
            }
        }
    }

    fn pod_name(&self, backend: SocketAddrV4) -> String {
        self.backends.iter().find(|(socket, ..)| *socket == backend).map_or_else(String::new, |b| b.2.clone())
    }

    fn plan(&self, flows: &Flows, mode: Mode, mtu: u16, requests: usize) -> Plan {
        let host = |address: Ipv4Addr| Ipv4Net::from(address);
        let node = |(index, node): (usize, &Node)| NodePlan {
            name: node.name.clone(),
            role: NodeRole::Worker,
            address: node.address,
            pod_cidr: host(node.masquerade.unwrap_or(NOBODY)),
            pod_gateway: node.masquerade.unwrap_or(node.address),
            pods: self
                .backends
                .iter()
                .filter(|(_, of, _)| *of == index)
                .map(|(socket, _, name)| PodPlan {
                    name: name.clone(),
                    address: *socket.ip(),
                    host_network: *socket.ip() == node.address,
                })
                .collect(),
        };
        let asked = self.nodes.iter().find(|n| n.address == *flows.frontend.ip());
        let protocols: BTreeSet<_> = flows.all.iter().map(|flow| flow.protocol).collect();
        let target = self.backends.first().map_or(flows.frontend.port(), |(socket, ..)| socket.port());
        Plan {
            lab: "files".to_owned(),
            provider: ProviderKind::Cluster,
            mode,
            wire: WireFormat::Cilium,
            network: host(flows.client),
            mtu,
            offloads: true,
            pod_cidr: host(NOBODY),
            client: ClientPlan { name: self.client.clone(), address: flows.client },
            nodes: self.nodes.iter().enumerate().map(node).collect(),
            service: ServicePlan {
                name: flows.frontend.to_string(),
                foreign: Some(String::new()),
                cluster_ip: Ipv4Addr::UNSPECIFIED,
                port: flows.frontend.port(),
                node_port: flows.frontend.port(),
                target_port: target,
                protocols: protocols.into_iter().collect(),
                // Whether other nodes refuse is a question that these files were not asked.
                external_traffic_policy: TrafficPolicy::Cluster,
                session_affinity: Affinity::None,
                affinity_seconds: 0,
            },
            traffic: TrafficPlan {
                via: asked.or(self.nodes.first()).map_or_else(String::new, |n| n.name.clone()),
                requests: requests as u32,
                datagrams: 0,
                response_bytes: 0,
            },
            datapath: DatapathPlan {
                external: true,
                strip_option: false,
                snat_port_min: 1,
                snat_port_max: u16::MAX,
                flows: 0,
                events: false,
            },
            image: None,
            faults: Vec::new(),
            expect: BTreeMap::new(),
        }
    }
}

/// What the points' hosts are called by the plan.
fn name_points(capture: &mut CaptureFile, places: &Places, hosts: &Hosts) {
    for (info, point) in capture.points.iter_mut().zip(&places.points) {
        match point.at {
            At::Client => info.point.kind = HostKind::Client,
            At::Pod(backend) => {
                info.point.kind = HostKind::Pod;
                info.point.host = hosts.pod_name(backend);
            }
            At::Uplink | At::Link(_) | At::Side => info.point.kind = HostKind::Node,
        }
    }
}

/// The mode, by whose address backends see.
fn mode(hosts: &Hosts, flows: &Flows, given: &Given, notes: &mut Vec<String>) -> Mode {
    let counts = |protocol: Protocol| {
        let known = flows.all.iter().filter(|f| f.protocol == protocol).filter_map(|f| Some((f, f.inside?)));
        let (kept, rewritten): (Vec<_>, Vec<_>) = known.partition(|(f, inside)| f.outside.0 == inside.0);
        (kept.len(), rewritten.len())
    };
    let (tcp, udp) = (counts(Protocol::Tcp), counts(Protocol::Udp));
    let at_home = !hosts.backends.is_empty()
        && hosts.backends.iter().all(|(_, node, _)| {
            flows.all.iter().any(|flow| hosts.nodes[*node].address == *flow.outside.1.ip())
        });
    let (mode, why) = match (tcp, udp) {
        ((0, 0), (0, 0)) => (
            Mode::Snat,
            "no request was seen behind the load balancer: what it does with addresses is not known"
                .to_owned(),
        ),
        ((1.., 0), (0, 1..)) => {
            (Mode::Hybrid, "backends see the client's socket in TCP, and another in UDP".to_owned())
        }
        ((kept, 0), (also, 0)) if at_home => {
            let count = plural(kept + also, "request");
            (
                Mode::Local,
                format!("the client's socket is kept in {count} to a backend on the node that was asked"),
            )
        }
        ((kept, 0), (also, 0)) => {
            let count = plural(kept + also, "request");
            (
                Mode::Dsr,
                format!(
                    "a backend on another node than the one asked sees the client's own socket in {count}"
                ),
            )
        }
        ((_, a), (_, b)) => {
            let count = plural(a + b, "request");
            (Mode::Snat, format!("the client's socket is replaced in {count}"))
        }
    };
    match given.mode {
        Some(given) if given != mode => {
            notes.push(format!("judged as {given}, as was said; the packets look like {mode}: {why}"));
            given
        }
        Some(given) => given,
        None => {
            notes.push(format!("judged as {mode}: {why}"));
            mode
        }
    }
}
