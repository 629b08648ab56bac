//! A lab on paper: writes the captures that a right datapath would leave behind, packet by packet, and lets a test
//! spoil any of them on the way.
//!
//! The ways are written out here a second time on purpose, independent of what the checks expect.

#[path = "../../../wire/tests/build/mod.rs"]
pub(crate) mod build;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};

use build::{ACK, DONT_FRAGMENT, FIN, PSH, Packet, SYN, Sum};
use labctl_model::{
    Affinity, ClientPlan, DatapathPlan, Mode, NodePlan, NodeRole, Plan, PodPlan, Protocol, ProviderKind,
    ServicePlan, TrafficPlan, TrafficPolicy, WireFormat,
};
use labctl_verdict::{Canaries, Evidence};
use labctl_wire::canary::Canary;
use labctl_wire::packet::Mac;
use labctl_wire::{
    CaptureFile, CapturePoint, Direction, Exchange, HostKind, Outcome, PointInfo, ServedBy, Timings,
};

pub(crate) const CLIENT: &str = "client:eth0";
pub(crate) const CONTROL: &str = "control-plane:eth0";
/// The node that the client talks to.
pub(crate) const INGRESS: &str = "worker:eth0";
pub(crate) const HOME: &str = "worker2:eth0";
pub(crate) const POD: &str = "web-1:eth0";
const RUN: &str = "run-0001";
const RESPONSE: usize = 2500;

pub(crate) fn ip(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 18, 0, last)
}

pub(crate) fn vip() -> SocketAddrV4 {
    SocketAddrV4::new(ip(3), 32_000)
}

/// The plan of the shipped labs: the backend pod on worker2, the client talks to worker.
pub(crate) fn plan(mode: Mode) -> Plan {
    let pods =
        vec![PodPlan { name: "web-1".into(), address: Ipv4Addr::new(10, 0, 1, 108), host_network: false }];
    let node = |name: &str, last, third, pods| NodePlan {
        name: name.into(),
        role: NodeRole::Worker,
        address: ip(last),
        pod_cidr: format!("10.0.{third}.0/24").parse().unwrap(),
        pod_gateway: Ipv4Addr::new(10, 0, third, 1),
        pods,
    };
    let local = mode == Mode::Local;
    Plan {
        lab: "paper".into(),
        provider: ProviderKind::Netns,
        mode,
        wire: WireFormat::Network,
        network: "172.18.0.0/16".parse().unwrap(),
        mtu: 1500,
        offloads: true,
        pod_cidr: "10.0.0.0/8".parse().unwrap(),
        client: ClientPlan { name: "client".into(), address: ip(1) },
        nodes: vec![
            node("control-plane", 4, 0, vec![]),
            // In mode local the node that is asked has the backend.
            node("worker", 3, 2, if local { pods.clone() } else { vec![] }),
            node("worker2", 2, 1, if local { vec![] } else { pods }),
        ],
        service: ServicePlan {
            name: "web".into(),
            foreign: None,
            cluster_ip: Ipv4Addr::new(10, 96, 0, 10),
            port: 80,
            node_port: 32_000,
            target_port: 8080,
            protocols: vec![Protocol::Tcp, Protocol::Udp],
            external_traffic_policy: if local { TrafficPolicy::Local } else { TrafficPolicy::Cluster },
            session_affinity: Affinity::None,
            affinity_seconds: 10_800,
        },
        traffic: TrafficPlan { via: "worker".into(), requests: 2, datagrams: 2, response_bytes: 2500 },
        datapath: DatapathPlan {
            external: false,
            strip_option: true,
            snat_port_min: 32_768,
            snat_port_max: 65_535,
            flows: 1024,
            events: false,
        },
        image: None,
        faults: Vec::new(),
        expect: BTreeMap::new(),
    }
}

/// Moves the only backend.
pub(crate) fn place_backend(plan: &mut Plan, node: &str, host_network: bool) {
    let mut pod = plan.nodes.iter_mut().find_map(|n| n.pods.pop()).unwrap();
    let node = plan.nodes.iter_mut().find(|n| n.name == node).unwrap();
    pod.host_network = host_network;
    pod.address = if host_network { node.address } else { pod.address };
    node.pods.push(pod);
}

/// One packet at one point, before it is written down.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) point: String,
    pub(crate) direction: Direction,
    pub(crate) packet: Packet,
    /// Towards the client.
    pub(crate) reply: bool,
    pub(crate) exchange: u32,
    /// Number of the packet within its exchange, from 0, both directions.
    pub(crate) number: u32,
    pub(crate) what: What,
    /// Write it down; a test may say no.
    pub(crate) keep: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Syn,
    SynAck,
    Ack,
    Data,
    Fin,
    Datagram,
}

impl Step {
    pub(crate) fn is(&self, point: &str, direction: Direction) -> bool {
        self.point == point && self.direction == direction
    }

    /// From the backend's node's uplink on.
    pub(crate) fn left_home(&self) -> bool {
        self.reply && (self.is(HOME, Direction::Out) || [INGRESS, CLIENT].contains(&self.point.as_str()))
    }

    /// A request behind the ingress node.
    pub(crate) fn left_ingress(&self) -> bool {
        !self.reply && !self.point.starts_with("client") && !self.is(INGRESS, Direction::In)
    }
}

type Spoil<'s> = Box<dyn FnMut(&mut Step) -> Vec<Step> + 's>;

/// A run being written down.
pub(crate) struct Paper<'s> {
    pub(crate) plan: Plan,
    capture: CaptureFile,
    exchanges: Vec<Exchange>,
    refusals: Vec<Exchange>,
    spoil: Spoil<'s>,
    clock: u64,
    number: u32,
    next_id: u16,
}

impl<'s> Paper<'s> {
    pub(crate) fn new(plan: Plan) -> Self {
        let mut paper = Self {
            plan,
            capture: CaptureFile::default(),
            exchanges: Vec::new(),
            refusals: Vec::new(),
            spoil: Box::new(|_| Vec::new()),
            clock: 1_795_341_600_000_000_000,
            number: 0,
            next_id: 100,
        };
        paper.add_points();
        paper
    }

    /// Changes every step before it is written down.
    pub(crate) fn spoil(mut self, mut change: impl FnMut(&mut Step) + 's) -> Self {
        self.spoil = Box::new(move |step| {
            change(step);
            Vec::new()
        });
        self
    }

    /// Changes steps and adds more behind them.
    pub(crate) fn spoil_adding(mut self, change: impl FnMut(&mut Step) -> Vec<Step> + 's) -> Self {
        self.spoil = Box::new(change);
        self
    }

    /// The usual run: two TCP and two UDP requests between two rounds of canaries; in mode local also a request to
    /// a node without a backend.
    pub(crate) fn run(mut self) -> Evidence {
        self.canaries(1);
        for (id, port) in [(1, 43_210), (2, 43_211)] {
            self.tcp(id, port);
        }
        for (id, port) in [(3, 43_212), (4, 43_213)] {
            self.udp(id, port);
        }
        let mut drops = BTreeMap::new();
        if self.plan.mode == Mode::Local {
            self.refused(5, 43_214);
            drops.insert("worker2".to_owned(), BTreeMap::from([("no-local-backend".to_owned(), 3)]));
        }
        self.canaries(2);
        self.finish(drops)
    }

    pub(crate) fn finish(self, drops: BTreeMap<String, BTreeMap<String, u64>>) -> Evidence {
        let mut capture = self.capture;
        count(&mut capture);
        let canaries = Canaries { run: RUN.into(), rounds: 2 };
        let mut evidence = Evidence::new(self.plan, capture, self.exchanges, canaries);
        (evidence.refusals, evidence.drops) = (self.refusals, drops);
        evidence
    }

    fn add_points(&mut self) {
        let mut add = |host: &str, kind, interface: &str| {
            let point = CapturePoint { host: host.into(), kind, interface: interface.into() };
            self.capture.points.push(PointInfo {
                point,
                live: false,
                received: None,
                dropped: Some(0),
                mac: None,
                addresses: labctl_wire::link::Addresses::Both,
            });
        };
        add("client", HostKind::Client, "eth0");
        for node in &self.plan.nodes {
            add(&node.name, HostKind::Node, "eth0");
            for pod in node.pods.iter().filter(|p| !p.host_network) {
                add(&node.name, HostKind::Node, "lxc1");
                add(&pod.name, HostKind::Pod, "eth0");
            }
        }
    }

    /// The backend's node, pod, and whether the node is the one asked.
    fn backend(&self) -> (NodePlan, PodPlan, bool) {
        let (node, pod) = self.plan.backends().next().map(|(n, p)| (n.clone(), p.clone())).unwrap();
        let local = node.name == "worker";
        (node, pod, local)
    }

    pub(crate) fn write(&mut self, mut step: Step) {
        let more = (self.spoil)(&mut step);
        for step in std::iter::once(step).chain(more).filter(|s| s.keep) {
            self.clock += 2_000;
            let point = self.capture.points.iter().position(|p| p.point.to_string() == step.point).unwrap();
            let bytes = step.packet.bytes();
            let len = bytes.len() as u32;
            self.capture.push(point, self.clock, step.direction, len, &bytes);
        }
    }

    /// Each node hears one from the client, each pod one from its node; the ports are closed.
    pub(crate) fn canaries(&mut self, round: u32) {
        let payload = Canary::payload(RUN, round);
        let mut hops = Vec::new();
        for node in &self.plan.nodes {
            hops.push((ip(1), node.address, CLIENT.to_owned(), format!("{}:eth0", node.name)));
            for pod in node.pods.iter().filter(|p| !p.host_network) {
                let veth = format!("{}:lxc1", node.name);
                hops.push((node.pod_gateway, pod.address, veth, format!("{}:eth0", pod.name)));
            }
        }
        for (src, dst, from, to) in hops {
            let packet = Packet::udp(SocketAddrV4::new(src, 900), SocketAddrV4::new(dst, 9), &payload);
            let packet = link(packet, mac_of(src), mac_of(dst));
            let refused = link(Packet::icmp(dst, src, 3, 3, 0, packet.clone()), mac_of(dst), mac_of(src));
            for (point, direction, packet) in [
                (&from, Direction::Out, &packet),
                (&to, Direction::In, &packet),
                (&to, Direction::Out, &refused),
                (&from, Direction::In, &refused),
            ] {
                self.clock += 1_000;
                let index = self.capture.points.iter().position(|p| p.point.to_string() == *point).unwrap();
                let bytes = packet.bytes();
                self.capture.push(index, self.clock, direction, bytes.len() as u32, &bytes);
            }
        }
    }

    fn begin(&mut self, id: u32, protocol: &str, port: u16, remote: SocketAddrV4) -> Exchange {
        self.number = 0;
        self.clock += 1_000_000;
        let (node, pod, _) = self.backend();
        let local = SocketAddrV4::new(ip(1), port);
        let direct = protocol == "tcp" && self.plan.mode != Mode::Snat
            || protocol == "udp" && matches!(self.plan.mode, Mode::Dsr | Mode::Local);
        let kept = direct || node.name == "worker";
        Exchange {
            id,
            protocol: protocol.into(),
            local,
            remote,
            started_ns: self.clock,
            outcome: Outcome::Answered,
            timings: Timings { connect_us: Some(30), first_byte_us: Some(60), total_us: Some(90) },
            received: RESPONSE as u64,
            served_by: Some(ServedBy {
                node: node.name,
                pod: pod.name,
                peer: if kept { local } else { SocketAddrV4::new(ip(3), 50_000 + port % 1000) },
                local: SocketAddrV4::new(pod.address, 8080),
            }),
        }
    }

    pub(crate) fn tcp(&mut self, id: u32, port: u16) {
        let exchange = self.begin(id, "tcp", port, vip());
        let (client, isn, peer_isn) = (exchange.local, (u32::MAX - 20).wrapping_add(id), 9_000_000 + id);
        let up = |flags, seq: u32, ack: u32| {
            Packet::tcp(
                client,
                vip(),
                flags,
                isn.wrapping_add(seq),
                if ack == 0 { 0 } else { peer_isn + ack },
            )
        };
        let down = |flags, seq: u32, ack: u32| {
            Packet::tcp(vip(), client, flags, peer_isn + seq, isn.wrapping_add(ack))
        };
        let response = vec![b'r'; RESPONSE];
        let end = RESPONSE as u32 + 1;
        self.request(id, What::Syn, up(SYN, 0, 0), true);
        self.answer(id, What::SynAck, Packet { id: 0, ..down(SYN | ACK, 0, 1) }, true);
        self.request(id, What::Ack, up(ACK, 1, 1), true);
        self.request(id, What::Data, up(PSH | ACK, 1, 1).with_payload(&[b'g'; 100]), true);
        self.answer(id, What::Ack, down(ACK, 1, 101), true);
        // One segment of more than a packet, as a veth with offloads carries it.
        let segment = Packet { sum: Sum::Partial, ..down(PSH | ACK, 1, 101).with_payload(&response) };
        self.answer(id, What::Data, segment, true);
        self.request(id, What::Ack, up(ACK, 101, end), true);
        self.answer(id, What::Fin, down(FIN | ACK, end, 101), true);
        self.request(id, What::Fin, up(FIN | ACK, 101, end + 1), true);
        self.answer(id, What::Ack, down(ACK, end + 1, 102), true);
        self.exchanges.push(exchange);
    }

    pub(crate) fn udp(&mut self, id: u32, port: u16) {
        let exchange = self.begin(id, "udp", port, vip());
        let request = Packet::udp(exchange.local, vip(), format!("id={id}\n").as_bytes());
        self.request(id, What::Datagram, request, false);
        self.answer(id, What::Datagram, Packet::udp(vip(), exchange.local, b"served"), false);
        self.exchanges.push(exchange);
    }

    /// Three SYNs to worker2, which has no backend in mode local.
    pub(crate) fn refused(&mut self, id: u32, port: u16) {
        let remote = SocketAddrV4::new(ip(2), 32_000);
        let mut exchange = self.begin(id, "tcp", port, remote);
        exchange.outcome = Outcome::TimedOut { waiting_for: "connect".into() };
        exchange.served_by = None;
        for _ in 0..3 {
            let syn = self.numbered(Packet::tcp(exchange.local, remote, SYN, 4711, 0));
            let packet = link(syn, mac_of(ip(1)), mac_of(ip(2)));
            self.step(id, What::Syn, false, CLIENT, Direction::Out, packet.clone());
            self.step(id, What::Syn, false, HOME, Direction::In, packet);
            self.number += 1;
        }
        self.refusals.push(exchange);
    }

    fn numbered(&mut self, packet: Packet) -> Packet {
        self.next_id = self.next_id.wrapping_add(7);
        let id = if packet.id == 0 { 0 } else { self.next_id };
        Packet { id, fragment: DONT_FRAGMENT, ..packet }
    }

    fn step(
        &mut self,
        exchange: u32,
        what: What,
        reply: bool,
        point: &str,
        direction: Direction,
        packet: Packet,
    ) {
        let (point, number) = (point.to_owned(), self.number);
        self.write(Step { point, direction, packet, reply, exchange, number, what, keep: true });
    }

    fn returns_directly(&self, tcp: bool) -> bool {
        match self.plan.mode {
            Mode::Dsr | Mode::Local => true,
            Mode::Snat => false,
            Mode::Hybrid => tcp,
        }
    }

    /// Where the source is rewritten, the port that stands for the client's.
    fn snat(&self, client: SocketAddrV4) -> SocketAddrV4 {
        SocketAddrV4::new(ip(3), 50_000 + client.port() % 1000)
    }

    fn request(&mut self, id: u32, what: What, packet: Packet, tcp: bool) {
        let (node, pod, local) = self.backend();
        let direct = self.returns_directly(tcp);
        let mut packet = link(self.numbered(packet), mac_of(ip(1)), mac_of(ip(3)));
        self.step(id, what, false, CLIENT, Direction::Out, packet.clone());
        self.step(id, what, false, INGRESS, Direction::In, packet.clone());
        packet.dst = SocketAddrV4::new(pod.address, 8080);
        if !local {
            packet.ttl -= 1;
            packet = link(packet, mac_of(ip(3)), mac_of(ip(2)));
            if !direct {
                packet.src = self.snat(packet.src);
            } else if matches!(what, What::Syn | What::Datagram) {
                packet.options = option(&self.plan);
            }
            self.step(id, what, false, INGRESS, Direction::Out, packet.clone());
            self.step(id, what, false, HOME, Direction::In, packet.clone());
        }
        if !pod.host_network {
            packet.ttl -= 1;
            packet = link(packet, mac_of(node.pod_gateway), mac_of(pod.address));
            if self.plan.datapath.strip_option {
                packet.options.clear();
            }
            let veth = format!("{}:lxc1", node.name);
            self.step(id, what, false, &veth, Direction::Out, packet.clone());
            self.step(id, what, false, POD, Direction::In, packet);
        }
        self.number += 1;
    }

    /// `packet` as the client shall see it; what the backend sends is worked out from it.
    fn answer(&mut self, id: u32, what: What, packet: Packet, tcp: bool) {
        let (node, pod, local) = self.backend();
        let through = !self.returns_directly(tcp) && !local;
        let (frontend, client) = (packet.src, packet.dst);
        let mut packet = self.numbered(packet);
        packet.src = SocketAddrV4::new(pod.address, 8080);
        if through {
            packet.dst = self.snat(client);
        }
        let home = format!("{}:eth0", node.name);
        if !pod.host_network {
            packet = link(packet, mac_of(pod.address), mac_of(node.pod_gateway));
            let veth = format!("{}:lxc1", node.name);
            self.step(id, what, true, POD, Direction::Out, packet.clone());
            self.step(id, what, true, &veth, Direction::In, packet.clone());
            packet.ttl -= 1;
        }
        if through {
            packet = link(packet, mac_of(node.address), mac_of(ip(3)));
            self.step(id, what, true, &home, Direction::Out, packet.clone());
            self.step(id, what, true, INGRESS, Direction::In, packet.clone());
            packet.ttl -= 1;
        }
        (packet.src, packet.dst) = (frontend, client);
        let sender = if through { ip(3) } else { node.address };
        packet = link(packet, mac_of(sender), mac_of(ip(1)));
        let last = if through { INGRESS } else { &home };
        self.step(id, what, true, last, Direction::Out, packet.clone());
        self.step(id, what, true, CLIENT, Direction::In, packet);
        self.number += 1;
    }
}

/// Lets every point say that it received what it has.
pub(crate) fn count(capture: &mut CaptureFile) {
    for point in 0..capture.points.len() {
        let received = capture.packets().iter().filter(|p| p.point == point).count();
        capture.points[point].received = Some(received as u64);
    }
}

pub(crate) fn option(plan: &Plan) -> Vec<u8> {
    match plan.wire {
        WireFormat::Network => vec![0x9a, 8, 0x7d, 0, 172, 18, 0, 3],
        WireFormat::Cilium => vec![0x9a, 8, 0, 0x7d, 3, 0, 18, 172],
    }
}

pub(crate) fn link(packet: Packet, mac_src: Mac, mac_dst: Mac) -> Packet {
    Packet { mac_src, mac_dst, ..packet }
}

/// An Ethernet address that follows from the IPv4 address.
pub(crate) fn mac_of(address: Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    Mac([2, a, b, c, d, 0])
}
