//! The node's own network: which interface has its address, which veth leads to which pod, and the routes to the
//! other nodes' pods.
//!
//! Owns: reading routes and addresses, writing routes of our own protocol number, the stream of changes. Does not
//! own: which routes there should be (`routes`).

use std::ffi::{CStr, CString};
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use datapath_agent::LocalPod;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use ipnet::Ipv4Net;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType,
};
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder, new_connection, new_multicast_connection};

use crate::routes::NodeRoute;

/// Marks our routes, so that we never touch another's. No other program is known to use it
/// (etc/iproute2/rt_protos of iproute2).
const PROTOCOL: RouteProtocol = RouteProtocol::Other(76);

/// The kernel did not answer, or refused.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No socket.
    #[error("open a netlink socket")]
    Open(#[source] io::Error),
    /// A dump failed.
    #[error("list the node's {what}")]
    List {
        /// `routes` or `addresses`.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: rtnetlink::Error,
    },
    /// No interface has the node's address.
    #[error("find the interface with this node's address {address}; does the agent run with hostNetwork?")]
    Uplink {
        /// InternalIP of the Node object.
        address: Ipv4Addr,
    },
    /// A route cannot be changed.
    #[error("{action} the route to {} by way of {}; are the nodes in one network?", route.pods, route.node)]
    Route {
        /// `add` or `remove`.
        action: &'static str,
        /// The route.
        route: NodeRoute,
        /// What the kernel said.
        #[source]
        source: rtnetlink::Error,
    },
}

/// The kernel's network configuration of this namespace.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    handle: Handle,
}

impl Network {
    /// Needs a tokio runtime around it.
    ///
    /// # Errors
    /// [`NetlinkError::Open`].
    pub(crate) fn open() -> Result<Self, NetlinkError> {
        let (connection, handle, _) = new_connection().map_err(NetlinkError::Open)?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// The interface that has the node's address.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub(crate) async fn uplink(&self, address: Ipv4Addr) -> Result<String, NetlinkError> {
        let fail = |source| NetlinkError::List { what: "addresses", source };
        let mut all = self.handle.address().get().execute();
        let mut found = None;
        while let Some(message) = all.try_next().await.map_err(fail)? {
            let is_it = |attribute: &AddressAttribute| match attribute {
                AddressAttribute::Local(local) => *local == IpAddr::V4(address),
                _ => false,
            };
            if message.attributes.iter().any(is_it) {
                found = interface_name(message.header.index);
            }
        }
        found.ok_or(NetlinkError::Uplink { address })
    }

    /// The pods of this node: each has a route of its own by its veth, as the ptp plugin and its like make them.
    ///
    /// # Errors
    /// [`NetlinkError::List`].
    pub(crate) async fn pods(&self, range: Ipv4Net, uplink: &str) -> Result<Vec<LocalPod>, NetlinkError> {
        let mut pods: Vec<LocalPod> = self
            .routes()
            .await?
            .iter()
            .filter_map(|route| {
                let (destination, interface) = direct_route(route)?;
                let address = destination.addr();
                let is_pod = destination.prefix_len() == 32 && range.contains(&address);
                let interface = interface_name(interface).filter(|name| is_pod && name != uplink)?;
                Some(LocalPod { address, interface })
            })
            .collect();
        pods.sort_by_key(|pod| pod.address);
        pods.dedup_by_key(|pod| pod.address);
        Ok(pods)
    }

    /// Makes our routes those that are wanted; gives what could not be done, the rest is done all the same.
    ///
    /// # Errors
    /// [`NetlinkError::List`].
    pub(crate) async fn set_routes(&self, wanted: &[NodeRoute]) -> Result<Vec<NetlinkError>, NetlinkError> {
        let mut failed = Vec::new();
        let ours: Vec<(NodeRoute, RouteMessage)> = self
            .routes()
            .await?
            .into_iter()
            .filter(|route| route.header.protocol == PROTOCOL)
            .filter_map(|route| Some((node_route(&route)?, route)))
            .collect();
        for route in wanted.iter().filter(|route| ours.iter().all(|(there, _)| there != *route)) {
            let message = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(route.pods.addr(), route.pods.prefix_len())
                .gateway(route.node)
                .protocol(PROTOCOL)
                .build();
            let added = self.handle.route().add(message).replace().execute().await;
            failed.extend(added.err().map(|source| NetlinkError::Route {
                action: "add",
                route: *route,
                source,
            }));
        }
        // The kernel replaced the route of a node with a new address; what else is left is of a node that left.
        let is_wanted = |there: &NodeRoute| wanted.iter().any(|route| route.pods == there.pods);
        for (route, message) in ours.into_iter().filter(|(there, _)| !is_wanted(there)) {
            let removed = self.handle.route().del(message).execute().await;
            failed.extend(removed.err().map(|source| NetlinkError::Route {
                action: "remove",
                route,
                source,
            }));
        }
        Ok(failed)
    }

    /// IPv4 routes of the main table.
    async fn routes(&self) -> Result<Vec<RouteMessage>, NetlinkError> {
        let fail = |source| NetlinkError::List { what: "routes", source };
        let filter = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let all: Vec<RouteMessage> =
            self.handle.route().get(filter).execute().try_collect().await.map_err(fail)?;
        let is_main = |route: &RouteMessage| {
            let header = &route.header;
            header.address_family == AddressFamily::Inet
                && header.table == RouteHeader::RT_TABLE_MAIN
                && header.kind == RouteType::Unicast
        };
        Ok(all.into_iter().filter(is_main).collect())
    }
}

/// One item for each change of links, addresses or routes. Routes alone would not do: the kernel says nothing
/// about those that go with their interface.
///
/// # Errors
/// [`NetlinkError::Open`].
pub(crate) fn changes() -> Result<impl Stream<Item = ()> + Unpin, NetlinkError> {
    let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv4Route];
    let (connection, _, messages) = new_multicast_connection(&groups).map_err(NetlinkError::Open)?;
    tokio::spawn(connection);
    Ok(messages.map(|_| ()))
}

/// Destination and interface of a route without a gateway.
fn direct_route(route: &RouteMessage) -> Option<(Ipv4Net, u32)> {
    if gateway(route).is_some() {
        return None;
    }
    let interface = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })?;
    Some((destination(route)?, interface))
}

fn node_route(route: &RouteMessage) -> Option<NodeRoute> {
    Some(NodeRoute { pods: destination(route)?, node: gateway(route)? })
}

fn destination(route: &RouteMessage) -> Option<Ipv4Net> {
    let address = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(*address),
        _ => None,
    })?;
    Ipv4Net::new(address, route.header.destination_prefix_length).ok()
}

fn gateway(route: &RouteMessage) -> Option<Ipv4Addr> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(address)) => Some(*address),
        _ => None,
    })
}

/// `None` if the interface is gone again.
fn interface_name(index: u32) -> Option<String> {
    let mut buffer = [0u8; libc::IF_NAMESIZE];
    // SAFETY: the buffer has the IF_NAMESIZE bytes that the function may write.
    let name = unsafe { libc::if_indextoname(index, buffer.as_mut_ptr().cast()) };
    if name.is_null() {
        return None;
    }
    let name = CStr::from_bytes_until_nul(&buffer).ok()?;
    CString::from(name).into_string().ok()
}
