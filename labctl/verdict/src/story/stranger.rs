//! Frames that no exchange, canary or known housekeeping explains.
//!
//! Owns: the written list of housekeeping, and whose addresses an unexplained frame shows. Does not own: what to make of
//! it. What is known beforehand:
//!
//! - ARP between neighbours, each by its own Ethernet address: client and nodes on the segment; a pod and its node on
//!   the pod's link.
//! - IPv6 neighbour and listener discovery: link-local and multicast, of each interface that comes up.
//! - What the switch floods, as long as its sender was seen sending it.
//! - A kubelet that asks a pod of its own node whether it lives, on that pod's link (kind and cluster).

use std::net::Ipv4Addr;

use labctl_model::{NodePlan, ProviderKind};
use labctl_wire::Frame;
use labctl_wire::packet::{Arp, Mac, Network};

use super::{Role, Story};
use crate::scene::place::Place;

/// Bytes of a frame that are searched for addresses where its headers are not understood.
const SEARCHED: usize = 256;

/// A frame that should not be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stranger {
    /// Index into the capture's packets.
    pub(crate) packet: usize,
    /// What it shows: `pod address 10.0.1.108 in ARP`.
    pub(crate) shows: String,
}

/// Looks at every frame without a role.
pub(super) fn look(story: &mut Story<'_>) {
    let (mut strangers, mut unrelated) = (Vec::new(), 0);
    for (index, role) in story.roles.iter().enumerate() {
        let housekeeping = match role {
            Role::Other => is_housekeeping(story, index),
            Role::Overheard => was_sent(story, index),
            Role::Canary | Role::Exchange(..) | Role::Error(..) | Role::Elsewhere => continue,
        };
        if housekeeping {
            continue;
        }
        match shows(story, index) {
            Some(shows) => strangers.push(Stranger { packet: index, shows }),
            None => unrelated += 1,
        }
    }
    (story.strangers, story.unrelated) = (strangers, unrelated);
}

fn is_housekeeping(story: &Story<'_>, index: usize) -> bool {
    let frame = story.headers(index);
    let Some(place) = story.places[story.captured(index).point] else { return false };
    match &frame.network {
        Network::Arp(arp) => is_neighbourly(story, place, &frame, arp),
        Network::Other(0x86dd) => is_neighbour_discovery(story.evidence.capture.data(index), &frame),
        Network::Ipv4(ip) => is_probe(story, place, ip.src, ip.dst),
        Network::Other(_) | Network::Malformed(_) => false,
    }
}

/// ARP (RFC 826) of somebody who may live on this link, about somebody who may, by its own Ethernet address.
fn is_neighbourly(story: &Story<'_>, place: Place, frame: &Frame, arp: &Arp) -> bool {
    let own = frame.src == arp.sender_mac && !frame.src.is_group();
    let lives_here = |address: Ipv4Addr| match place {
        Place::Client | Place::Uplink(_) => mac_on_segment(story, address),
        Place::Veth(backend) | Place::Pod(backend) => mac_on_link(story, backend, address),
        Place::Side(_) | Place::Stray => None,
    };
    let speaks = lives_here(arp.sender).is_some_and(|mac| mac.is_none_or(|mac| mac == arp.sender_mac));
    // A probe for duplicates (RFC 5227) has no sender address yet.
    let speaks = speaks || (arp.sender.is_unspecified() && arp.operation == 1);
    own && speaks && lives_here(arp.target).is_some()
}

/// The Ethernet address of the client or a node, as far as it is known; `None` for anybody else.
fn mac_on_segment(story: &Story<'_>, address: Ipv4Addr) -> Option<Option<Mac>> {
    let plan = story.plan;
    if address == plan.client.address {
        return Some(story.addresses.of(Place::Client));
    }
    let node = plan.nodes.iter().position(|n| n.address == address)?;
    Some(story.addresses.of(Place::Uplink(node)))
}

/// The Ethernet address of a pod, or of its node on the pod's link; a node asks by any of its addresses.
fn mac_on_link(story: &Story<'_>, backend: usize, address: Ipv4Addr) -> Option<Option<Mac>> {
    let (node, pod) = story.plan.backends().nth(backend)?;
    if address == pod.address {
        return Some(story.addresses.of(Place::Pod(backend)));
    }
    is_node_on_link(node, address).then(|| story.addresses.of(Place::Veth(backend)))
}

/// Whether a node may call itself so on the link of one of its pods. CNI plugins give pods a gateway in 169.254.0.0/16.
fn is_node_on_link(node: &NodePlan, address: Ipv4Addr) -> bool {
    address == node.address || address == node.pod_gateway || address.is_link_local()
}

/// ICMPv6 (RFC 4861, 2710, 3810) from nobody or a link-local address, to a link-local or multicast one.
fn is_neighbour_discovery(data: &[u8], frame: &Frame) -> bool {
    let header = data.get(frame.header_len..).and_then(|d| d.first_chunk::<40>());
    let Some(header) = header else { return false };
    let (next, src, dst) = (header[6], &header[8..24], &header[24..40]);
    let local = |address: &[u8]| address[0] == 0xfe && address[1] & 0xc0 == 0x80;
    // Listener reports stand behind a hop-by-hop header.
    matches!(next, 58 | 0) && (local(src) || src.iter().all(|b| *b == 0)) && (local(dst) || dst[0] == 0xff)
}

/// Traffic between a pod and its own node on the pod's link, in a cluster, where kubelets ask.
fn is_probe(story: &Story<'_>, place: Place, src: Ipv4Addr, dst: Ipv4Addr) -> bool {
    let (Place::Veth(backend) | Place::Pod(backend)) = place else { return false };
    if story.plan.provider == ProviderKind::Netns {
        return false;
    }
    let Some((node, pod)) = story.plan.backends().nth(backend) else { return false };
    let is_node = |address| is_node_on_link(node, address);
    (is_node(src) && dst == pod.address) || (src == pod.address && is_node(dst))
}

/// Whether somebody was seen sending this very frame.
fn was_sent(story: &Story<'_>, index: usize) -> bool {
    let capture = &story.evidence.capture;
    let (data, at) = (capture.data(index), story.captured(index).ts_ns);
    let packets = capture.packets();
    // What is flooded was sent just before: look back from here.
    let before = packets.partition_point(|p| p.ts_ns <= at);
    packets[..before].iter().enumerate().rev().any(|(i, p)| {
        p.direction == labctl_wire::Direction::Out
            && p.original_len == story.captured(index).original_len
            && capture.data(i) == data
    })
}

/// Whose address a frame shows, and where; `None` if nobody's of the lab.
fn shows(story: &Story<'_>, index: usize) -> Option<String> {
    let frame = story.headers(index);
    let on_client_link = story.places[story.captured(index).point] == Some(Place::Client);
    let told = |address: Ipv4Addr, place: &str| {
        let whose = whose(story, address, on_client_link)?;
        Some(format!("{whose} {address} in {place}"))
    };
    match &frame.network {
        Network::Ipv4(ip) => {
            let socket = frame.sockets().filter(|(a, b)| is_frontend(story, *a) || is_frontend(story, *b));
            let in_header = [ip.src, ip.dst].into_iter().find_map(|a| told(a, "the IPv4 header"));
            let in_options = || ip.options.raw.windows(4).find_map(|w| told(quad(w), "an IPv4 option"));
            let frontend = || socket.map(|(a, b)| format!("a frontend in {a} > {b}"));
            let known = frame.tcp().is_some() || frame.udp().is_some_and(|u| !is_tunnel(u.dst_port));
            let inside = || {
                let data = story.evidence.capture.data(index);
                let at = (frame.header_len + ip.header_len).min(data.len());
                if known {
                    None
                } else {
                    searched(&data[at..]).find_map(|a| told(a, "what the packet carries"))
                }
            };
            in_header.or_else(in_options).or_else(frontend).or_else(inside)
        }
        Network::Arp(arp) => [arp.sender, arp.target].into_iter().find_map(|a| told(a, "ARP")),
        Network::Other(_) | Network::Malformed(_) => {
            searched(story.evidence.capture.data(index)).find_map(|a| told(a, "a frame that is not IPv4"))
        }
    }
}

fn searched(data: &[u8]) -> impl Iterator<Item = Ipv4Addr> {
    data[..data.len().min(SEARCHED)].windows(4).map(quad)
}

fn quad(bytes: &[u8]) -> Ipv4Addr {
    Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3])
}

/// Ports of VXLAN (RFC 7348; Linux's own before it), Geneve (RFC 8926) and GUE, whose payload is a packet.
const fn is_tunnel(port: u16) -> bool {
    matches!(port, 4789 | 8472 | 6081 | 6080)
}

fn is_frontend(story: &Story<'_>, socket: std::net::SocketAddrV4) -> bool {
    if story.habits.has_other_traffic {
        return false;
    }
    let plan = story.plan;
    let node_port =
        socket.port() == plan.service.node_port && plan.nodes.iter().any(|n| n.address == *socket.ip());
    node_port || (*socket.ip() == plan.service.cluster_ip && socket.port() == plan.service.port)
}

fn whose(story: &Story<'_>, address: Ipv4Addr, on_client_link: bool) -> Option<&'static str> {
    // Pods of somebody else's Service have other things to do than to answer us.
    let idle = story.plan.service.foreign.is_none();
    if (idle && story.is_backend(address)) || (on_client_link && story.is_pod(address)) {
        Some("pod address")
    } else if !story.habits.has_other_traffic && address == story.plan.client.address {
        Some("the client's address")
    } else {
        None
    }
}
