//! What happened, worked out once for checks, comments and explanations: whose each captured frame is, each packet's way
//! through the lab, and where it differs from what its way demands.
//!
//! Owns: correlation. Does not own: what should happen ([`crate::scene`]) or what to make of it ([`crate::check`]).

mod assign;
mod differ;
mod follow;
mod stranger;
#[cfg(test)]
mod tests;

use std::net::SocketAddrV4;

use datapath_types::option::WireOrder;
use labctl_model::{Plan, ProviderKind, WireFormat};
use labctl_wire::{Captured, Direction, Frame, PointInfo, text};

use crate::evidence::Evidence;
use crate::scene::case::{Backend, Case, Rewrite, Side, Waypoint, backends};
use crate::scene::fitness::Fitness;
use crate::scene::habit::{self, Habits};
use crate::scene::place::{Addresses, Place, places};

pub(crate) use assign::{Opening, protocol_number};
pub(crate) use differ::{Difference, Field};
pub(crate) use follow::{Kind, LogicalPacket};
pub(crate) use stranger::Stranger;

/// Whose a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// A canary, or the answer to one.
    Canary,
    /// A packet of the exchange with this index among [`Story::cases`].
    Exchange(usize, Side),
    /// An ICMP error about one.
    Error(usize, Side),
    /// The switch flooded it to a host that it is not for.
    Overheard,
    /// Captured at a point that the plan does not know: nothing is made of it.
    Elsewhere,
    /// None of the above; [`stranger`] says what is known of it.
    Other,
}

/// The evidence, read.
pub(crate) struct Story<'a> {
    pub(crate) evidence: &'a Evidence,
    pub(crate) plan: &'a Plan,
    pub(crate) habits: Habits,
    pub(crate) fitness: Fitness,
    /// Exchanges first, then refusals.
    pub(crate) cases: Vec<Case<'a>>,
    /// What each capture point is in the plan; `None` for one that the plan does not know.
    pub(crate) places: Vec<Option<Place>>,
    pub(crate) addresses: Addresses,
    /// Of each frame.
    pub(crate) roles: Vec<Role>,
    /// The way of each case, requests and replies.
    ways: Vec<[Vec<Waypoint>; 2]>,
    /// Which of them is whose.
    way_of: Vec<u32>,
    /// Every packet's way, case by case in the order of first sighting.
    pub(crate) packets: Vec<LogicalPacket>,
    /// Per case the socket that stands for the client's behind the node that was asked.
    pub(crate) translated: Vec<Option<SocketAddrV4>>,
    /// Per case the first destination of a request that is not the frontend.
    pub(crate) addressed: Vec<Option<SocketAddrV4>>,
    pub(crate) differences: Vec<Difference>,
    pub(crate) strangers: Vec<Stranger>,
    /// Frames that no role explains and that name nobody of the lab.
    pub(crate) unrelated: u32,
    /// Frames of each point that are in the file.
    pub(crate) present: Vec<u64>,
}

/// A packet of an exchange at a point.
pub(crate) struct Seen<'s, 'a> {
    pub(crate) index: usize,
    pub(crate) side: Side,
    pub(crate) case: &'s Case<'a>,
    /// Index of the case.
    pub(crate) of: usize,
    pub(crate) place: Place,
    pub(crate) direction: Direction,
    /// An ICMP error about the exchange.
    pub(crate) is_error: bool,
}

impl<'a> Story<'a> {
    pub(crate) fn new(evidence: &'a Evidence) -> Self {
        let plan = &evidence.plan;
        let habits = habit::of(evidence);
        let expected = evidence.exchanges.iter().map(|e| Case::new(plan, &habits, e, false));
        let refused = evidence.refusals.iter().map(|e| Case::new(plan, &habits, e, true));
        let cases: Vec<_> = expected.chain(refused).collect();
        let places = places(evidence);
        let addresses = Addresses::new(evidence, &places);
        let mut story = Self {
            evidence,
            plan,
            habits,
            fitness: Fitness::new(evidence),
            translated: vec![None; cases.len()],
            addressed: vec![None; cases.len()],
            way_of: vec![0; cases.len()],
            cases,
            places,
            addresses,
            roles: Vec::new(),
            ways: Vec::new(),
            packets: Vec::new(),
            differences: Vec::new(),
            strangers: Vec::new(),
            unrelated: 0,
            present: present(evidence),
        };
        assign::assign(&mut story);
        story.find_ways();
        follow::follow(&mut story);
        differ::compare(&mut story);
        stranger::look(&mut story);
        story
    }

    /// Ways are the same for all exchanges of a protocol that ask one node and are served by one backend.
    fn find_ways(&mut self) {
        type Likeness = (usize, Option<usize>, bool);
        let mut known: Vec<Likeness> = Vec::new();
        for (index, case) in self.cases.iter().enumerate() {
            let likeness = (case.ingress, case.backend.map(|b| b.index), case.direct);
            let found = known.iter().position(|k| *k == likeness);
            self.way_of[index] = found.unwrap_or_else(|| {
                known.push(likeness);
                self.ways.push([case.way(Side::Request), case.way(Side::Reply)]);
                known.len() - 1
            }) as u32;
        }
    }

    /// The way of a case's packets.
    pub(crate) fn way(&self, case: usize, side: Side) -> &[Waypoint] {
        let [request, reply] = &self.ways[self.way_of[case] as usize];
        match side {
            Side::Request => request,
            Side::Reply => reply,
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
        self.roles.iter().enumerate().filter_map(|(index, role)| {
            let (of, side, is_error) = match *role {
                Role::Exchange(of, side) => (of, side, false),
                Role::Error(of, side) => (of, side, true),
                Role::Canary | Role::Overheard | Role::Elsewhere | Role::Other => return None,
            };
            let captured = self.captured(index);
            let place = self.places[captured.point]?;
            let case = &self.cases[of];
            Some(Seen { index, side, case, of, place, direction: captured.direction, is_error })
        })
    }

    /// Whether a packet must be seen at a place of its way: other load balancers may have other ways to a pod than by the
    /// node's side of its link.
    pub(crate) fn must_be_seen_at(&self, place: Place) -> bool {
        !matches!(place, Place::Veth(_)) || (self.habits.owns_pod_links && self.is_captured(place))
    }

    /// The first sighting of a packet, in the order of its way, that is earlier than the one before.
    pub(crate) fn out_of_order(&self, packet: &LogicalPacket) -> Option<usize> {
        if self.evidence.origin.files().is_some_and(|vouched| vouched.unordered.is_some()) {
            return None;
        }
        let on_way = packet.sightings.iter().filter(|s| s.stage.is_some());
        let mut latest: Option<(usize, u64)> = None;
        for sighting in on_way {
            let at = self.captured(sighting.packet).ts_ns;
            match latest {
                // Pieces of one packet come one after the other at the same stage.
                Some((stage, before)) if Some(stage) != sighting.stage && at < before => {
                    return Some(sighting.packet);
                }
                _ => {}
            }
            if latest.is_none_or(|(stage, _)| Some(stage) != sighting.stage) {
                latest = Some((sighting.stage.unwrap_or(0), at));
            }
        }
        None
    }

    /// Whether somebody else took the captures.
    pub(crate) const fn is_foreign(&self) -> bool {
        self.evidence.origin.files().is_some()
    }

    /// Says why the order of packets is not known, if it is not.
    pub(crate) fn doubt_order(&self, findings: &mut crate::proof::Findings) {
        if let Some(why) = self.evidence.origin.files().and_then(|vouched| vouched.unordered.as_ref()) {
            findings.doubt(why.clone());
        }
    }

    /// Whether a case's packets may get another IP identification on their way: only whoever gives them another source may.
    pub(crate) fn may_change_id(&self, case: usize) -> bool {
        self.habits.may_change_id && self.cases[case].rewrite() != Rewrite::Never
    }

    /// Whether somebody captured at a place.
    pub(crate) fn is_captured(&self, place: Place) -> bool {
        self.places.contains(&Some(place))
    }

    /// Where a packet was seen at a place in a direction, on its way or beside it.
    pub(crate) fn seen_at(
        &self,
        packet: &LogicalPacket,
        place: Place,
        direction: Direction,
    ) -> Option<usize> {
        let is_there = |index: &usize| {
            let captured = self.captured(*index);
            captured.direction == direction && self.places[captured.point] == Some(place)
        };
        packet.sightings.iter().map(|s| s.packet).find(is_there)
    }

    /// Where a packet was seen to reset its connection.
    pub(crate) fn reset(&self, packet: &LogicalPacket) -> Option<usize> {
        packet.sightings.iter().find(|s| s.resets).map(|s| s.packet)
    }

    /// Where the client's link saw a packet: sent by the client, or received by it.
    pub(crate) fn at_client(&self, packet: &LogicalPacket) -> Option<usize> {
        let direction = match packet.side {
            Side::Request => Direction::Out,
            Side::Reply => Direction::In,
        };
        self.seen_at(packet, Place::Client, direction)
    }

    /// What the capture says of a point.
    pub(crate) fn info(&self, point: usize) -> &'a PointInfo {
        &self.evidence.capture.points[point]
    }

    pub(crate) fn captured(&self, packet: usize) -> &'a Captured {
        &self.evidence.capture.packets()[packet]
    }

    /// A packet's headers.
    pub(crate) fn headers(&self, packet: usize) -> Frame {
        self.evidence.capture.headers(packet)
    }

    /// What users call a place: `worker:eth0`.
    pub(crate) fn place_name(&self, place: Place) -> String {
        let plan = self.plan;
        let uplink = |host: &str| match self.evidence.uplink(host) {
            "" => host.to_owned(),
            interface => format!("{host}:{interface}"),
        };
        match place {
            Place::Client => uplink(&plan.client.name),
            Place::Uplink(node) => uplink(&plan.nodes[node].name),
            Place::Side(node) => format!("another interface of {}", plan.nodes[node].name),
            Place::Stray => "another interface".to_owned(),
            Place::Veth(index) => plan
                .backends()
                .nth(index)
                .map_or_else(String::new, |(node, pod)| format!("the link of {} on {}", pod.name, node.name)),
            Place::Pod(index) => {
                plan.backends().nth(index).map_or_else(String::new, |(_, pod)| uplink(&pod.name))
            }
        }
    }

    /// The point where a packet was captured, as users call it.
    pub(crate) fn point_name(&self, packet: usize) -> String {
        self.info(self.captured(packet).point).point.to_string()
    }

    /// A packet as one line. A carried frontend is read in the byte order that names one of the lab's.
    pub(crate) fn line(&self, packet: usize) -> String {
        let (captured, frame) = (self.captured(packet), self.evidence.capture.frame(packet));
        let dsr = frame.ipv4().and_then(|ip| ip.options.dsr);
        let order = dsr.map_or(self.wire_order(), |dsr| self.order_of(&dsr));
        let Captured { ts_ns, direction, point, .. } = *captured;
        text::line(ts_ns, direction, &frame, &self.info(point).point, Some(order))
    }

    /// The byte order in which an option names a frontend that was asked; the lab's own if neither or both do.
    fn order_of(&self, dsr: &labctl_wire::packet::DsrOption) -> WireOrder {
        let own = self.wire_order();
        let names = |order| self.cases.iter().any(|c| c.exchange.remote == dsr.read(order));
        match [WireOrder::Network, WireOrder::Cilium].into_iter().find(|o| *o != own) {
            Some(other) if !names(own) && names(other) => other,
            _ => own,
        }
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
    pub(crate) fn is_pod(&self, address: std::net::Ipv4Addr) -> bool {
        let plan = self.plan;
        if plan.provider != ProviderKind::Cluster {
            return plan.pod_cidr.contains(&address);
        }
        self.is_backend(address) || plan.nodes.iter().any(|node| node.pod_cidr.contains(&address))
    }

    /// Whether an address is that of a backend with a network of its own.
    pub(crate) fn is_backend(&self, address: std::net::Ipv4Addr) -> bool {
        self.plan.backends().any(|(_, pod)| !pod.host_network && pod.address == address)
    }

    /// Whether the lab switched segmentation and checksum offloads off everywhere.
    pub(crate) fn offloads_off(&self) -> bool {
        !self.plan.offloads
    }

    /// Every backend with its indices.
    pub(crate) fn backends(&self) -> Vec<Backend<'a>> {
        backends(self.plan)
    }
}

fn present(evidence: &Evidence) -> Vec<u64> {
    let mut present = vec![0; evidence.capture.points.len()];
    evidence.capture.packets().iter().for_each(|p| present[p.point] += 1);
    present
}
