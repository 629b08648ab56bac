//! Places of the lab, and what each capture point is among them.
//!
//! Owns: the mapping. Does not own: what should pass a place ([`super::case`]).

use labctl_wire::packet::Mac;
use labctl_wire::{CapturePoint, Direction, HostKind, canary};

use crate::evidence::Evidence;

/// A place that a packet passes. Indices are into the plan: nodes, and backends as [`labctl_model::Plan::backends`]
/// lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Place {
    /// The client's link.
    Client,
    /// Uplink of a node.
    Uplink(usize),
    /// Host side of a backend's link.
    Veth(usize),
    /// The backend's own side of it.
    Pod(usize),
    /// Another interface of a node: a link to somebody else's pod, or one that nobody knows.
    Side(usize),
    /// Another interface of the client or of a backend's pod.
    Stray,
}

impl Place {
    /// Whether a frame here is on the segment that client and nodes share.
    pub(crate) const fn on_segment(self) -> bool {
        matches!(self, Self::Client | Self::Uplink(_))
    }
}

/// A place and a direction there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Spot {
    pub(crate) place: Place,
    pub(crate) direction: Direction,
}

/// What each capture point is; `None` for a host that the plan does not know.
pub(crate) fn places(evidence: &Evidence) -> Vec<Option<Place>> {
    let mut places: Vec<_> = evidence.capture.points.iter().map(|p| place(evidence, &p.point)).collect();
    name_pod_links(evidence, &mut places);
    places
}

fn place(evidence: &Evidence, point: &CapturePoint) -> Option<Place> {
    let plan = &evidence.plan;
    let is_uplink = point.interface == evidence.uplink(&point.host);
    match point.kind {
        HostKind::Client => {
            let known = point.host == plan.client.name;
            known.then_some(if is_uplink { Place::Client } else { Place::Stray })
        }
        HostKind::Node => {
            let node = plan.nodes.iter().position(|n| n.name == point.host)?;
            let pod = evidence.pod_links.get(&point.to_string());
            let link = pod.and_then(|name| plan.backends().position(|(_, pod)| pod.name == *name));
            Some(match (is_uplink, link) {
                (true, _) => Place::Uplink(node),
                (false, Some(backend)) => Place::Veth(backend),
                (false, None) => Place::Side(node),
            })
        }
        HostKind::Pod => {
            let index = plan.backends().position(|(_, pod)| pod.name == point.host)?;
            Some(if is_uplink { Place::Pod(index) } else { Place::Stray })
        }
    }
}

/// A node's interface is a backend's link if a canary to that backend's address left by it.
fn name_pod_links(evidence: &Evidence, places: &mut [Option<Place>]) {
    let plan = &evidence.plan;
    if !places.iter().any(|p| matches!(p, Some(Place::Side(_)))) {
        return;
    }
    for (i, packet) in evidence.capture.packets().iter().enumerate() {
        let Some(Place::Side(node)) = places[packet.point] else { continue };
        if packet.direction != Direction::Out {
            continue;
        }
        let frame = evidence.capture.headers(i);
        let Some(ip) = frame.ipv4() else { continue };
        if !canary::is_noise(evidence.capture.data(i), &frame) {
            continue;
        }
        let own = |(n, pod): &(&labctl_model::NodePlan, &labctl_model::PodPlan)| {
            n.name == plan.nodes[node].name && !pod.host_network && pod.address == ip.dst
        };
        if let Some(backend) = plan.backends().position(|b| own(&b)) {
            places[packet.point] = Some(Place::Veth(backend));
        }
    }
}

/// The Ethernet address at each place, as far as one is known.
#[derive(Debug)]
pub(crate) struct Addresses {
    of_points: Vec<Option<Mac>>,
    places: Vec<Option<Place>>,
}

impl Addresses {
    pub(crate) fn new(evidence: &Evidence, places: &[Option<Place>]) -> Self {
        Self { of_points: evidence.capture.link_addresses(), places: places.to_vec() }
    }

    /// Of a capture point.
    pub(crate) fn of_point(&self, point: usize) -> Option<Mac> {
        self.of_points[point]
    }

    /// Of a place; of several points there the first's.
    pub(crate) fn of(&self, place: Place) -> Option<Mac> {
        let point = self.places.iter().position(|p| *p == Some(place))?;
        self.of_points[point]
    }
}
