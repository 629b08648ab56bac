//! What should happen to one exchange: the way of its packets, by mode, protocol and backend.
//!
//! Owns: every expectation that depends on the mode. Does not own: what did happen ([`crate::story`]).

use std::net::{Ipv4Addr, SocketAddrV4};

use labctl_model::{NodePlan, Plan, PodPlan, Protocol};
use labctl_wire::{Direction, Exchange};

use super::habit::Habits;
use super::place::{Place, Spot};

/// Which way a packet travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Side {
    /// From the client towards the backend.
    Request,
    /// From the backend, or from a node on its behalf, towards the client.
    Reply,
}

/// Whose sockets stand in a packet's addresses, read as a request; replies have them the other way round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sockets {
    /// The client's and the frontend's.
    Outside,
    /// The client's and the backend's.
    Inside,
    /// One of the node that was asked, and the backend's.
    Translated,
}

/// A spot on a packet's way and what the packet must be like there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Waypoint {
    pub(crate) spot: Spot,
    /// Nodes that have forwarded it before.
    pub(crate) hops: u8,
    /// Of these, nodes that were asked: some load balancers forward there without taking from the TTL.
    pub(crate) asked: u8,
    pub(crate) sockets: Sockets,
    /// A packet that opens a flow carries the frontend.
    pub(crate) carrier: bool,
    /// Where the frame comes from and where it goes to on this link.
    pub(crate) link: (Place, Place),
}

/// The backend that serves an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// [`Habits::may_masquerade_at_home`].
    masquerades: bool,
    /// [`Habits::must_strip_option`].
    strips: bool,
}

impl<'a> Case<'a> {
    pub(crate) fn new(plan: &'a Plan, habits: &Habits, exchange: &'a Exchange, refusal: bool) -> Self {
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
            masquerades: habits.may_masquerade_at_home,
            strips: habits.must_strip_option,
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
        match (self.source_rewritten(), self.masquerades && !self.direct) {
            (true, _) => Rewrite::Always,
            (false, true) => Rewrite::Maybe,
            (false, false) => Rewrite::Never,
        }
    }

    /// Whether its requests must carry the frontend between the nodes.
    pub(crate) fn is_carried(&self) -> bool {
        self.direct && self.is_remote()
    }

    /// The way that a packet should take, as far as it is known.
    pub(crate) fn way(&self, side: Side) -> Vec<Waypoint> {
        match (side, self.backend) {
            (Side::Request, Some(backend)) => self.way_in(backend),
            (Side::Reply, Some(backend)) => self.way_out(backend),
            // Nobody serves it: it comes as far as the node that was asked.
            (Side::Request, None) => self.to_ingress().to_vec(),
            (Side::Reply, None) => Vec::new(),
        }
    }

    fn to_ingress(&self) -> [Waypoint; 2] {
        let asked = Place::Uplink(self.ingress);
        let at = |place, direction| Waypoint {
            spot: Spot { place, direction },
            hops: 0,
            asked: 0,
            sockets: Sockets::Outside,
            carrier: false,
            link: (Place::Client, asked),
        };
        [at(Place::Client, Direction::Out), at(asked, Direction::In)]
    }

    fn way_in(&self, backend: Backend<'_>) -> Vec<Waypoint> {
        let (asked, home) = (Place::Uplink(self.ingress), Place::Uplink(backend.node));
        let mut way = Vec::with_capacity(6);
        way.extend(self.to_ingress());
        let inside = if self.source_rewritten() { Sockets::Translated } else { Sockets::Inside };
        let mut last = Waypoint { sockets: inside, ..way[1] };
        if self.is_remote() {
            last = Waypoint { hops: 1, asked: 1, carrier: self.is_carried(), link: (asked, home), ..last };
            way.push(Waypoint { spot: spot(asked, Direction::Out), ..last });
            way.push(Waypoint { spot: spot(home, Direction::In), ..last });
        }
        if !backend.pod.host_network {
            let (veth, pod) = (Place::Veth(backend.index), Place::Pod(backend.index));
            last.hops += 1;
            last.asked += u8::from(!self.is_remote());
            (last.link, last.carrier) = ((veth, pod), last.carrier && !self.strips);
            way.push(Waypoint { spot: spot(veth, Direction::Out), ..last });
            way.push(Waypoint { spot: spot(pod, Direction::In), ..last });
        }
        way
    }

    fn way_out(&self, backend: Backend<'_>) -> Vec<Waypoint> {
        let (asked, home) = (Place::Uplink(self.ingress), Place::Uplink(backend.node));
        let rewritten = self.source_rewritten();
        let inside = if rewritten { Sockets::Translated } else { Sockets::Inside };
        let mut way = Vec::with_capacity(6);
        let mut last = Waypoint {
            spot: spot(home, Direction::Out),
            hops: 0,
            asked: 0,
            sockets: inside,
            carrier: false,
            link: (home, Place::Client),
        };
        if !backend.pod.host_network {
            let (veth, pod) = (Place::Veth(backend.index), Place::Pod(backend.index));
            let link = (pod, veth);
            way.push(Waypoint { spot: spot(pod, Direction::Out), link, ..last });
            way.push(Waypoint { spot: spot(veth, Direction::In), link, ..last });
            last.hops += 1;
            last.asked += u8::from(!self.is_remote());
        }
        if rewritten {
            last.link = (home, asked);
            way.push(Waypoint { spot: spot(home, Direction::Out), ..last });
            way.push(Waypoint { spot: spot(asked, Direction::In), ..last });
            last.hops += 1;
            last.asked += 1;
        }
        let leaves = if rewritten { asked } else { home };
        last = Waypoint { sockets: Sockets::Outside, link: (leaves, Place::Client), ..last };
        way.push(Waypoint { spot: spot(leaves, Direction::Out), ..last });
        way.push(Waypoint { spot: spot(Place::Client, Direction::In), ..last });
        way
    }

    /// Whether a rewritten source may have this address. The bundled datapath takes the node's; others take that
    /// of whichever of the node's interfaces the packet leaves by, such as the pods' gateway.
    pub(crate) fn is_of_ingress(&self, plan: &Plan, address: Ipv4Addr) -> bool {
        let node = &plan.nodes[self.ingress];
        let is_pod = || plan.backends().any(|(_, pod)| pod.address == address);
        address == node.address || (self.masquerades && node.pod_cidr.contains(&address) && !is_pod())
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

const fn spot(place: Place, direction: Direction) -> Spot {
    Spot { place, direction }
}

/// Every backend with its indices.
pub(crate) fn backends(plan: &Plan) -> Vec<Backend<'_>> {
    let nodes = plan.nodes.iter().enumerate();
    let pods = nodes.flat_map(|(node, n)| n.pods.iter().map(move |pod| (node, pod)));
    pods.enumerate().map(|(index, (node, pod))| Backend { index, node, pod }).collect()
}
