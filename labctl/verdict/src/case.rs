//! What should happen to one exchange: the way of its packets, by mode, protocol and backend.
//!
//! Owns: every expectation that depends on the mode. Does not own: what did happen ([`crate::context`]).

use std::net::{Ipv4Addr, SocketAddrV4};

use labctl_model::{NodePlan, Plan, PodPlan, Protocol};
use labctl_wire::{Direction, Exchange, Side};

/// A place that a packet passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Place {
    /// The client's link.
    Client,
    /// Uplink of the node with this index in the plan.
    Uplink(usize),
    /// Host side of a pod's link, on the node with this index.
    Veth(usize),
    /// The pod with this index among [`Plan::backends`].
    Pod(usize),
}

/// A place, the direction there, and how many nodes have forwarded the packet before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Waypoint {
    pub(crate) place: Place,
    pub(crate) direction: Direction,
    pub(crate) hops: u8,
}

/// The backend that serves an exchange.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backend<'a> {
    /// Index among [`Plan::backends`].
    pub(crate) index: usize,
    /// Index of its node in the plan.
    pub(crate) node: usize,
    pub(crate) pod: &'a PodPlan,
}

/// What becomes of the client's socket on the way to the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rewrite {
    /// The backend sees the client's own.
    Never,
    /// The backend sees an address of the node that was asked.
    Always,
    /// Either will do.
    Maybe,
}

/// One exchange and what its mode makes of it.
#[derive(Clone, Debug)]
pub(crate) struct Case<'a> {
    pub(crate) exchange: &'a Exchange,
    pub(crate) protocol: Protocol,
    /// Index of the node that was asked.
    pub(crate) ingress: usize,
    /// `None` if neither packets nor the reply tell.
    pub(crate) backend: Option<Backend<'a>>,
    /// Replies go straight to the client, by the mode.
    pub(crate) direct: bool,
    /// It must not be answered.
    pub(crate) refusal: bool,
    /// The load balancer is not ours.
    pub(crate) external: bool,
}

impl<'a> Case<'a> {
    pub(crate) fn new(plan: &'a Plan, exchange: &'a Exchange, refusal: bool) -> Self {
        let protocol = if exchange.protocol == "udp" { Protocol::Udp } else { Protocol::Tcp };
        let asked = |n: &NodePlan| n.address == *exchange.remote.ip();
        let via = |n: &NodePlan| n.name == plan.traffic.via;
        let ingress = plan.nodes.iter().position(asked).or_else(|| plan.nodes.iter().position(via));
        Self {
            exchange,
            protocol,
            ingress: ingress.unwrap_or(0),
            backend: None,
            direct: plan.returns_directly(protocol),
            refusal,
            external: plan.datapath.external,
        }
    }

    /// Whether another node than the one asked runs the backend; `false` if it is not known.
    pub(crate) fn is_remote(&self) -> bool {
        self.backend.is_some_and(|b| b.node != self.ingress)
    }

    /// Whether replies must pass the node that was asked because the source of requests is rewritten. A backend on
    /// that node needs no source NAT: its replies pass it anyway.
    pub(crate) fn source_rewritten(&self) -> bool {
        !self.direct && self.is_remote()
    }

    /// What the backend may see as its peer. Other load balancers, kube-proxy among them, rewrite the source for a
    /// backend on the node that was asked too.
    pub(crate) fn rewrite(&self) -> Rewrite {
        match (self.source_rewritten(), self.external && !self.direct) {
            (true, _) => Rewrite::Always,
            (false, true) => Rewrite::Maybe,
            (false, false) => Rewrite::Never,
        }
    }

    /// Whether its requests carry the DSR option between the nodes.
    pub(crate) fn is_tagged(&self) -> bool {
        self.direct && self.is_remote()
    }

    /// The way that a packet should take, as far as it is known; pod links' host sides are left out.
    pub(crate) fn way(&self, side: Side) -> Vec<Waypoint> {
        let at = |place, direction, hops| Waypoint { place, direction, hops };
        let (asked, Some(backend)) = (Place::Uplink(self.ingress), self.backend) else {
            return Vec::new();
        };
        let (home, pod) = (Place::Uplink(backend.node), Place::Pod(backend.index));
        let has_pod = !backend.pod.host_network;
        let mut way = Vec::with_capacity(6);
        match side {
            Side::Request => {
                way.push(at(Place::Client, Direction::Out, 0));
                way.push(at(asked, Direction::In, 0));
                if self.is_remote() {
                    way.push(at(asked, Direction::Out, 1));
                    way.push(at(home, Direction::In, 1));
                }
                if has_pod {
                    way.push(at(pod, Direction::In, 1 + u8::from(self.is_remote())));
                }
            }
            Side::Reply => {
                if has_pod {
                    way.push(at(pod, Direction::Out, 0));
                }
                let mut hops = u8::from(has_pod);
                way.push(at(home, Direction::Out, hops));
                if self.source_rewritten() {
                    way.push(at(asked, Direction::In, hops));
                    hops += 1;
                    way.push(at(asked, Direction::Out, hops));
                }
                way.push(at(Place::Client, Direction::In, hops));
            }
        }
        way
    }

    /// Nodes that a packet may pass; `None` if the backend is not known.
    pub(crate) fn nodes(&self, side: Side) -> Option<Vec<usize>> {
        let backend = self.backend?;
        Some(match side {
            Side::Reply if self.direct => vec![backend.node],
            _ => vec![self.ingress, backend.node],
        })
    }

    /// How many nodes have forwarded a packet when it is seen here; `None` off its way.
    pub(crate) fn hops(&self, side: Side, place: Place, direction: Direction) -> Option<u8> {
        let backend = self.backend?;
        // The host side of a pod's link sees what the pod's side sees, the other way round.
        let (place, direction) = match (place, direction) {
            (Place::Veth(node), Direction::Out) if node == backend.node => {
                (Place::Pod(backend.index), Direction::In)
            }
            (Place::Veth(node), Direction::In) if node == backend.node => {
                (Place::Pod(backend.index), Direction::Out)
            }
            other => other,
        };
        let way = self.way(side);
        way.iter().find(|w| w.place == place && w.direction == direction).map(|w| w.hops)
    }

    /// Whether a rewritten source may have this address. The bundled datapath takes the node's; others take that
    /// of whichever of the node's interfaces the packet leaves by, such as the pods' gateway.
    pub(crate) fn is_of_ingress(&self, plan: &Plan, address: Ipv4Addr) -> bool {
        let node = &plan.nodes[self.ingress];
        let is_pod = || plan.backends().any(|(_, pod)| pod.address == address);
        address == node.address || (self.external && node.pod_cidr.contains(&address) && !is_pod())
    }

    /// The backend's own socket.
    pub(crate) fn backend_socket(&self, plan: &Plan) -> Option<SocketAddrV4> {
        Some(SocketAddrV4::new(self.backend?.pod.address, plan.service.target_port))
    }

    /// `tcp request 7`, as reports name it.
    pub(crate) fn name(&self) -> String {
        format!("{} request {}", self.protocol, self.exchange.id)
    }
}
