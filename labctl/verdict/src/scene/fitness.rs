//! Whether the hosts were what `up` made of them, and what that means for their captures.
//!
//! Owns: what is said of a run's hosts, and which capture points prove nothing because of it. Does not own: captures that lost
//! packets ([`crate::proof`]). An XDP program sees a frame before the capture does, and may drop it, change it or send it
//! back: what was not captured behind it proves nothing. A program that nobody of the lab attached is nobody's to vouch for.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use labctl_model::ProviderKind;
use labctl_wire::CapturePoint;
use labctl_wire::facts::{Hook, HostFacts, InterfaceFacts};
use labctl_wire::packet::Mac;

use crate::evidence::{Evidence, Observed};

/// What the observations say.
#[derive(Debug, Default)]
pub(crate) struct Fitness {
    /// By point (`worker:eth0`): why its capture proves nothing.
    doubts: BTreeMap<String, String>,
    /// For people, a sentence each.
    pub(crate) notes: Vec<String>,
}

impl Fitness {
    pub(crate) fn new(evidence: &Evidence) -> Self {
        let mut fitness = Self::default();
        if evidence.hosts.is_empty() {
            return fitness;
        }
        for info in &evidence.capture.points {
            match evidence.hosts.get(&info.point.host) {
                Some(host) => fitness.point(evidence, &info.point, host),
                None => fitness.doubt(&info.point, format!("{} was not observed", info.point.host)),
            }
        }
        for (name, host) in &evidence.hosts {
            fitness.beyond(evidence, name, host);
        }
        fitness.neighbours(evidence);
        fitness
    }

    /// Why a point's capture proves nothing, whatever it holds.
    pub(crate) fn doubt_about(&self, point: &CapturePoint) -> Option<&str> {
        self.doubts.get(&point.to_string()).map(String::as_str)
    }

    fn doubt(&mut self, point: &CapturePoint, why: String) {
        self.doubts.entry(point.to_string()).or_insert_with(|| why.clone());
        self.note(why);
    }

    fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// One captured interface.
    fn point(&mut self, evidence: &Evidence, point: &CapturePoint, host: &Observed) {
        let now = |facts: &HostFacts| facts.interface(&point.interface).cloned();
        let (Some(before), Some(after)) = (now(&host.before), now(&host.after)) else {
            return self.doubt(point, format!("{point} was not there during the whole run"));
        };
        if identity(&before) != identity(&after) {
            self.doubt(point, format!("{point} changed during the run"));
        }
        for program in before.programs.iter().chain(&after.programs) {
            let named = if program.name.is_empty() { String::new() } else { format!(" {}", program.name) };
            let (id, hook) = (program.id, program.hook);
            if hook == Hook::Xdp {
                let why =
                    format!("XDP program{named} {id} sees the frames of {point} before the capture does");
                self.doubt(point, why);
            } else if !evidence.plan.datapath.external && !is_own(evidence, id) {
                self.doubt(point, format!("program{named} {id} at {hook} of {point} is not labctl's"));
            }
        }
    }

    /// What a host has beside what `up` gave it, and what it has lost.
    fn beyond(&mut self, evidence: &Evidence, name: &str, host: &Observed) {
        if evidence.plan.provider == ProviderKind::Netns {
            let all = host.before.interfaces.iter().chain(&host.after.interfaces);
            for added in all.filter(|interface| !host.made.contains(&interface.name)) {
                let state = if added.up { "" } else { ", which is down" };
                self.note(format!("{name} has an interface that up did not make: {}{state}", added.name));
            }
        }
        for program in host.programs.iter().filter(|program| !program.attached) {
            self.note(format!("{} is no longer attached to {name}:{}", program.program, program.interface));
        }
    }

    /// Neighbour entries that send frames for one host to another. The frames show it too, each at its check.
    fn neighbours(&mut self, evidence: &Evidence) {
        let owners = owners(evidence);
        for (name, host) in &evidence.hosts {
            for neighbour in host.before.neighbours.iter().chain(&host.after.neighbours) {
                let Some((owner, mac)) = owners.get(&neighbour.address) else { continue };
                if neighbour.mac != *mac {
                    let (address, wrong) = (neighbour.address, neighbour.mac);
                    self.note(format!("{name} believes {address} of {owner} at {wrong}, not at {mac}"));
                }
            }
        }
    }
}

/// What makes an interface the same one.
fn identity(interface: &InterfaceFacts) -> (u32, Option<Mac>, bool, Option<u32>) {
    (interface.index, interface.mac, interface.up, interface.master)
}

fn is_own(evidence: &Evidence, id: u32) -> bool {
    evidence.hosts.values().flat_map(|host| &host.programs).any(|program| program.id == id)
}

/// Host and Ethernet address by the addresses of client and nodes on their segment.
fn owners(evidence: &Evidence) -> BTreeMap<Ipv4Addr, (&str, Mac)> {
    let plan = &evidence.plan;
    let hosts = plan.nodes.iter().map(|node| (node.name.as_str(), node.address));
    let hosts = hosts.chain([(plan.client.name.as_str(), plan.client.address)]);
    let owner = |(name, address): (&'_ str, Ipv4Addr)| {
        let (name, host) = evidence.hosts.get_key_value(name)?;
        let uplink = host.before.interface(evidence.uplink(name))?;
        Some((address, (name.as_str(), uplink.mac?)))
    };
    hosts.filter_map(owner).collect()
}
