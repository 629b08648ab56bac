//! What happened, worked out once for all checks: roles of the points, exchanges of the packets, ways taken.

use std::net::{Ipv4Addr, SocketAddrV4};

use datapath_types::option::WireOrder;
use labctl_model::{Plan, ProviderKind, WireFormat};
use labctl_wire::packet::{Ipv4, Mac};
use labctl_wire::{
    CapturePoint, Captured, Direction, Exchange, HostKind, LogicalPacket, PointInfo, Side, Tag, flow, hop,
    text,
};

use crate::case::{Backend, Case, Place};
use crate::evidence::Evidence;

/// The evidence, read.
pub(crate) struct Context<'a> {
    pub(crate) evidence: &'a Evidence,
    pub(crate) plan: &'a Plan,
    /// Exchanges first, then refusals; [`Tag::exchange`] is an index into it.
    pub(crate) cases: Vec<Case<'a>>,
    /// What each capture point is in the plan; `None` for one that the plan does not know.
    pub(crate) places: Vec<Option<Place>>,
    /// Exchange of each packet; `None` also for frames that a host only overheard.
    pub(crate) tags: Vec<Option<Tag>>,
    /// Every packet's way.
    pub(crate) packets: Vec<LogicalPacket>,
    /// Ethernet address of each point.
    pub(crate) link_addresses: Vec<Option<Mac>>,
    pub(crate) overheard: Vec<bool>,
}

/// A packet of an exchange at a point.
pub(crate) struct Seen<'c, 'a> {
    pub(crate) index: usize,
    pub(crate) packet: &'a Captured,
    pub(crate) ip: &'a Ipv4,
    pub(crate) side: Side,
    pub(crate) case: &'c Case<'a>,
    pub(crate) place: Place,
}

impl Seen<'_, '_> {
    pub(crate) const fn direction(&self) -> Direction {
        self.packet.direction
    }
}

impl<'a> Context<'a> {
    pub(crate) fn new(evidence: &'a Evidence) -> Self {
        let plan = &evidence.plan;
        let capture = &evidence.capture;
        let exchanges: Vec<Exchange> = evidence.exchanges.iter().chain(&evidence.refusals).cloned().collect();
        let overheard = capture.overheard();
        let mut tags = flow::assign(capture, &exchanges);
        tags.iter_mut().zip(&overheard).filter(|(_, skip)| **skip).for_each(|(tag, _)| *tag = None);
        let packets = hop::trace(capture, &tags, &overheard);
        let expected = evidence.exchanges.iter().map(|e| Case::new(plan, e, false));
        let refused = evidence.refusals.iter().map(|e| Case::new(plan, e, true));
        let mut context = Self {
            evidence,
            plan,
            cases: expected.chain(refused).collect(),
            places: capture.points.iter().map(|p| place(evidence, &p.point)).collect(),
            tags,
            packets,
            link_addresses: capture.link_addresses(),
            overheard,
        };
        context.find_backends();
        context
    }

    /// The backend of each case: the one that a request was addressed to, else the one that says it answered. A
    /// hostNetwork backend on the node that was asked is never seen as a destination: the rewrite happens
    /// behind the capture.
    fn find_backends(&mut self) {
        let backends = backends(self.plan);
        let socket = |b: &Backend<'_>| SocketAddrV4::new(b.pod.address, self.plan.service.target_port);
        let mut found: Vec<Option<Backend<'a>>> = vec![None; self.cases.len()];
        for seen in self.seen().filter(|s| s.side == Side::Request) {
            let slot = self.tags[seen.index].map_or(0, |t| t.exchange);
            if let (None, Some((_, dst))) = (&found[slot], seen.packet.frame.sockets())
                && dst != seen.case.exchange.remote
            {
                found[slot] = backends.iter().copied().find(|b| socket(b) == dst);
            }
        }
        for (case, found) in self.cases.iter_mut().zip(found) {
            let served_by = case.exchange.served_by.as_ref();
            let reported = served_by.and_then(|s| backends.iter().copied().find(|b| b.pod.name == s.pod));
            case.backend = found.or(reported);
        }
    }

    /// Cases that should be answered.
    pub(crate) fn answered(&self) -> impl Iterator<Item = (usize, &Case<'a>)> {
        self.cases.iter().enumerate().filter(|(_, c)| !c.refusal)
    }

    /// Cases that must not be answered.
    pub(crate) fn refusals(&self) -> impl Iterator<Item = (usize, &Case<'a>)> {
        self.cases.iter().enumerate().filter(|(_, c)| c.refusal)
    }

    /// Every packet of an exchange at a point of the plan, ICMP errors included, in the order of time.
    pub(crate) fn seen(&self) -> impl Iterator<Item = Seen<'_, 'a>> {
        let packets = self.evidence.capture.packets.iter().enumerate();
        packets.filter_map(|(index, packet)| {
            let tag = self.tags[index]?;
            let place = self.places[packet.point]?;
            let ip = packet.frame.ipv4()?;
            Some(Seen { index, packet, ip, side: tag.side, case: &self.cases[tag.exchange], place })
        })
    }

    /// Packets of exchanges that should be answered.
    pub(crate) fn seen_answered(&self) -> impl Iterator<Item = Seen<'_, 'a>> {
        self.seen().filter(|s| !s.case.refusal)
    }

    /// The point at a place; of several the first.
    pub(crate) fn point(&self, place: Place) -> Option<usize> {
        self.places.iter().position(|p| *p == Some(place))
    }

    /// Where a packet was seen at a place in a direction.
    pub(crate) fn at(&self, packet: &LogicalPacket, place: Place, direction: Direction) -> Option<usize> {
        let sighted =
            packet.sightings.iter().find(|s| s.direction == direction && self.places[s.point] == Some(place));
        sighted.map(|s| s.packet)
    }

    /// What the capture says of a point.
    pub(crate) fn info(&self, point: usize) -> &'a PointInfo {
        &self.evidence.capture.points[point]
    }

    pub(crate) fn captured(&self, packet: usize) -> &'a Captured {
        &self.evidence.capture.packets[packet]
    }

    /// What users call a place: `worker:eth0`.
    pub(crate) fn place_name(&self, place: Place) -> String {
        let plan = self.plan;
        let uplink = |host: &str| format!("{host}:{}", self.evidence.uplink(host));
        match place {
            Place::Client => uplink(&plan.client.name),
            Place::Uplink(node) => uplink(&plan.nodes[node].name),
            Place::Veth(node) => format!("a pod link of {}", plan.nodes[node].name),
            Place::Pod(index) => {
                plan.backends().nth(index).map_or_else(String::new, |(_, pod)| uplink(&pod.name))
            }
        }
    }

    /// A packet as one line.
    pub(crate) fn line(&self, packet: usize) -> String {
        let captured = self.captured(packet);
        text::line(captured, &self.info(captured.point).point, Some(self.wire_order()))
    }

    /// Byte order that the option should have.
    pub(crate) const fn wire_order(&self) -> WireOrder {
        match self.plan.wire {
            WireFormat::Network => WireOrder::Network,
            WireFormat::Cilium => WireOrder::Cilium,
        }
    }

    /// Whether an address is a pod's. In somebody else's cluster the range of all pods is known node by node only:
    /// what lies between may be anything, the nodes themselves too.
    pub(crate) fn is_pod(&self, address: Ipv4Addr) -> bool {
        let plan = self.plan;
        if plan.provider != ProviderKind::Cluster {
            return plan.pod_cidr.contains(&address);
        }
        let of_backend = plan.backends().any(|(_, pod)| !pod.host_network && pod.address == address);
        of_backend || plan.nodes.iter().any(|node| node.pod_cidr.contains(&address))
    }

    /// Whether the lab switched segmentation and checksum offloads off everywhere.
    pub(crate) fn offloads_off(&self) -> bool {
        !self.plan.offloads
    }
}

/// Every backend with its indices.
fn backends(plan: &Plan) -> Vec<Backend<'_>> {
    let nodes = plan.nodes.iter().enumerate();
    let pods = nodes.flat_map(|(node, n)| n.pods.iter().map(move |pod| (node, pod)));
    pods.enumerate().map(|(index, (node, pod))| Backend { index, node, pod }).collect()
}

fn place(evidence: &Evidence, point: &CapturePoint) -> Option<Place> {
    let plan = &evidence.plan;
    let is_uplink = point.interface == evidence.uplink(&point.host);
    match point.kind {
        HostKind::Client => (is_uplink && point.host == plan.client.name).then_some(Place::Client),
        HostKind::Node => {
            let node = plan.nodes.iter().position(|n| n.name == point.host)?;
            Some(if is_uplink { Place::Uplink(node) } else { Place::Veth(node) })
        }
        HostKind::Pod => {
            let index = plan.backends().position(|(_, pod)| pod.name == point.host)?;
            Some(Place::Pod(index))
        }
    }
}
