//! What the IPv4 option of a packet says, held against the frontend that was asked.
//!
//! Owns: its value and byte order. Does not own: where an option must be and where not ([`super::carrier`]).

use std::net::SocketAddrV4;

use datapath_types::option::WireOrder;
use labctl_wire::packet::{DsrOption, Options};

use crate::story::Story;

/// The byte order in which a packet's options name the frontend that was asked; else what is wrong with them. A load
/// balancer that is not ours may write either order.
pub(super) fn read(
    story: &Story<'_>,
    options: &Options,
    frontend: SocketAddrV4,
) -> Result<&'static str, String> {
    if options.malformed {
        return Err("the options are malformed".to_owned());
    }
    let Some(dsr) = &options.dsr else {
        return Err("the option is missing".to_owned());
    };
    if options.dsr_count > 1 {
        return Err(format!("{} options in one packet", options.dsr_count));
    }
    let own = story.wire_order();
    let either = story.plan.datapath.external;
    let fits = [own, other(own)].into_iter().take(if either { 2 } else { 1 });
    let order = fits.into_iter().find(|order| dsr.read(*order) == frontend);
    order.map(name).ok_or_else(|| mismatch(dsr, own, frontend))
}

const fn other(order: WireOrder) -> WireOrder {
    match order {
        WireOrder::Network => WireOrder::Cilium,
        WireOrder::Cilium => WireOrder::Network,
    }
}

const fn name(order: WireOrder) -> &'static str {
    match order {
        WireOrder::Network => "network",
        WireOrder::Cilium => "Cilium's little-endian",
    }
}

fn mismatch(dsr: &DsrOption, order: WireOrder, frontend: SocketAddrV4) -> String {
    if dsr.read(other(order)) == frontend {
        return format!("the option is in {} byte order, not in the lab's", name(other(order)));
    }
    format!("the option says {}, expected {frontend}", dsr.read(order))
}
