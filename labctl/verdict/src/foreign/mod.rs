//! Captures that somebody else took: what they show of the network, before the judge reads them as it reads a run's.
//!
//! Owns: working out client, frontend, backends, nodes, mode and clocks from the packets alone, and saying so. Does not own:
//! reading files ([`labctl_wire`]), or any judgement. What it makes is [`Evidence`] of the same shape as a run's; its
//! [`crate::Origin`] says that nothing in it is proven whole.
//!
//! tunnels and copies taken away → openings → flows (who asked whom, and what became of it) → places (where each capture
//! was taken) → plan and exchanges → clocks. Nothing is guessed silently: each step leaves a note, and what the packets do not tell is an
//! error that names the flag which does.

mod assemble;
mod clock;
mod copies;
mod flows;
mod places;
mod tunnels;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};

use labctl_model::Mode;
use labctl_wire::packet::Network;
use labctl_wire::{CaptureFile, HostKind};

use crate::evidence::{Evidence, Origin};
use crate::words::plural;

/// What is known beforehand. Everything else is worked out from the packets.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// The client that is looked at; else the one that asks most.
    pub client: Option<Ipv4Addr>,
    /// The frontend that is looked at; else the one that is asked most.
    pub frontend: Option<SocketAddrV4>,
    /// The mode; else as the packets show it.
    pub mode: Option<Mode>,
    /// Largest packet of the links in bytes; else as the client's SYN says.
    pub mtu: Option<u16>,
    /// Addresses of nodes by name.
    pub nodes: BTreeMap<String, Ipv4Addr>,
    /// What a host is, where the packets do not tell.
    pub roles: BTreeMap<String, HostKind>,
    /// Hosts whose captures somebody says are whole.
    pub complete: BTreeSet<String>,
    /// Hosts whose files are not whole, and what is missing.
    pub shortfalls: BTreeMap<String, String>,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Inferred {
    /// For the judge.
    pub evidence: Evidence,
    /// What was worked out and from what, a sentence each, for people.
    pub notes: Vec<String>,
}

/// Why captures cannot be judged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InferError {
    /// There is nothing that a load balancer could have served.
    #[error("find a request: {seen}")]
    NoRequest {
        /// What there is instead.
        seen: String,
    },
    /// What was asked for is not there.
    #[error("find {what} in these files: {known}")]
    NotThere {
        /// `frontend 10.0.0.1:80`, `host worker3`.
        what: String,
        /// What is there.
        known: String,
    },
    /// Where a capture was taken cannot be told.
    #[error(
        "tell where {point} was captured: {why}; say it: --role {host}=client, --role {host}=node or --role {host}=pod"
    )]
    Ambiguous {
        /// `dump:eth0`.
        point: String,
        /// Its host.
        host: String,
        /// What it could be.
        why: String,
    },
    /// Two captures of one place: every packet would be there twice.
    #[error("place {first} and {second}: both were taken on {place}; give one of them")]
    SamePlace {
        /// A point.
        first: String,
        /// Another.
        second: String,
        /// Where both are.
        place: String,
    },
}

/// Works out what the captures show. Their points are named by whoever read the files: host and interface.
///
/// # Errors
/// [`InferError`].
pub fn infer(mut capture: CaptureFile, given: &Given) -> Result<Inferred, InferError> {
    let mut notes = Vec::new();
    check_names(&capture, given)?;
    copies::of_files(&capture)?;
    let unfit = unfit(&mut capture, given);
    tunnels::take_apart(&mut capture, &mut notes);
    count_ipv6(&capture, &mut notes);
    let flows = flows::find(&capture, given, &mut notes)?;
    let places = places::find(&capture, &flows, given, &mut notes)?;
    let mut evidence = assemble::evidence(capture, &flows, &places, given, &mut notes);
    if let Origin::Files(vouched) = &mut evidence.origin {
        vouched.unfit.extend(unfit);
    }
    clock::align(&mut evidence, &mut notes);
    if given.complete.is_empty() {
        notes.push("nobody vouches for any capture: what was not seen proves nothing; --complete HOST vouches for one that ran from before the first packet until after the last".to_owned());
    }
    Ok(Inferred { evidence, notes })
}

/// IPv6 over TCP and UDP; what a link says to itself is no traffic.
fn count_ipv6(capture: &CaptureFile, notes: &mut Vec<String>) {
    let carries = |packet: &usize| {
        let frame = capture.headers(*packet);
        let next = capture.data(*packet).get(frame.header_len + 6);
        frame.network == Network::Other(0x86dd)
            && next.is_some_and(|next| [datapath_types::PROTO_TCP, datapath_types::PROTO_UDP].contains(next))
    };
    let count = (0..capture.packets().len()).filter(carries).count();
    if count > 0 {
        notes.push(format!("{} of TCP and UDP over IPv6, which is not judged", plural(count, "packet")));
    }
}

/// Points that prove nothing whoever vouches for them, and why.
fn unfit(capture: &mut CaptureFile, given: &Given) -> BTreeMap<String, String> {
    let copies = copies::take_out(capture);
    let mut unfit = BTreeMap::new();
    for (index, info) in capture.points.iter().enumerate() {
        let name = info.point.to_string();
        if let Some(shortfall) = given.shortfalls.get(&info.point.host) {
            unfit.insert(name, format!("the capture on {} is not whole: {shortfall}", info.point));
        } else if let Some(count) = copies.get(&index) {
            let why = format!("the capture on {} has {} twice", info.point, plural(*count, "packet"));
            unfit.insert(name, why);
        } else if let Some(dropped @ 1..) = info.dropped {
            unfit.insert(name, format!("the capture on {} lost {}", info.point, plural(dropped, "packet")));
        }
    }
    unfit
}

/// A name that no capture has would be a typing error without consequences.
fn check_names(capture: &CaptureFile, given: &Given) -> Result<(), InferError> {
    let known: BTreeSet<&str> = capture.points.iter().map(|info| info.point.host.as_str()).collect();
    let named = given.complete.iter().chain(given.roles.keys()).chain(given.nodes.keys());
    match named.map(String::as_str).find(|name| !known.contains(name)) {
        None => Ok(()),
        Some(name) => {
            let known = format!("hosts are {}", known.into_iter().collect::<Vec<_>>().join(", "));
            Err(InferError::NotThere { what: format!("host {name}"), known })
        }
    }
}
