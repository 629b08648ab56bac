//! What a backend may see as its peer, by the mode and by who rewrites sources.
//!
//! Owns: holding one peer against that. Does not own: where peers are seen ([`super::client_ip`]).

use std::net::{Ipv4Addr, SocketAddrV4};

use crate::scene::case::{Case, Rewrite};
use crate::story::Story;

/// What is wrong with the peer that a backend sees.
pub(super) fn objection(
    story: &Story<'_>,
    index: usize,
    case: &Case<'_>,
    peer: SocketAddrV4,
) -> Option<String> {
    let plan = story.plan;
    let client = case.exchange.local;
    // Source NAT may choose another port; without it the port is the client's. One connection has one.
    let rewritten = case.is_of_ingress(plan, *peer.ip());
    let node = plan.nodes[case.ingress].address;
    let (fits, expected) = match (case.rewrite(), story.translated[index]) {
        (Rewrite::Never, _) => (peer == client, client),
        (Rewrite::Always, Some(translated)) => {
            (rewritten && peer == translated, SocketAddrV4::new(node, translated.port()))
        }
        (Rewrite::Always, None) => (rewritten, SocketAddrV4::new(node, peer.port())),
        (Rewrite::Maybe, _) => (rewritten || peer == client, SocketAddrV4::new(node, peer.port())),
    };
    if fits {
        return None;
    }
    if peer.ip() == expected.ip() {
        return Some(format!("{peer} as peer, expected {expected}"));
    }
    Some(format!("{} as peer, expected {}{}", peer.ip(), expected.ip(), whose(story, case, *peer.ip())))
}

/// `: it is an address of the ingress node worker`, if so.
fn whose(story: &Story<'_>, case: &Case<'_>, address: Ipv4Addr) -> String {
    let plan = story.plan;
    if case.direct && case.is_of_ingress(plan, address) {
        return format!(": it is an address of the ingress node {}", plan.nodes[case.ingress].name);
    }
    String::new()
}
