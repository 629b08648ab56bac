//! What the kernel drops during a run in the namespaces of the lab's hosts.
//!
//! Owns: which hosts this kernel can tell about, and the form for the judge. Does not own: the watch itself
//! ([`datapath_agent::DropWatch`]). All hosts of a namespace lab, and the nodes and pods of a kind cluster on this machine,
//! are namespaces of this very kernel; nodes elsewhere are not, and the evidence says so.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};

use datapath_agent::{DropWatch, DropWatchError, SeenDrop};
use labctl_provider::boot_id;
use labctl_verdict::KernelDrops;
use labctl_wire::facts::{DroppedPacket, HostFacts};

/// More is no evidence but a flood; what goes beyond is counted.
const MOST: usize = 100_000;

/// A watch over a lab, or why there is none.
#[derive(Debug)]
pub(crate) struct Drops {
    /// Hosts by the inode of their namespace.
    hosts: BTreeMap<u32, String>,
    watch: Result<DropWatch, String>,
}

impl Drops {
    /// Begins to watch. Never fails: a run without is a run with less evidence.
    pub(crate) fn watch(observed: &BTreeMap<String, HostFacts>) -> Self {
        let boot = boot_id();
        let is_here = |facts: &HostFacts| facts.netns != 0 && facts.boot == boot;
        let hosts: BTreeMap<u32, String> = observed
            .iter()
            .filter(|(_, facts)| is_here(facts))
            .map(|(name, facts)| (facts.netns, name.clone()))
            .collect();
        let watch = match observed.iter().find(|(_, facts)| !is_here(facts)) {
            Some((name, _)) => Err(format!("{name} runs on another kernel")),
            None => DropWatch::open(&hosts.keys().copied().collect::<Vec<_>>())
                .map_err(|error: DropWatchError| error.to_string()),
        };
        Self { hosts, watch }
    }

    /// Ends it and gives what there was.
    pub(crate) fn finish(self) -> KernelDrops {
        let Self { hosts, watch } = self;
        let told = watch.and_then(|watch| watch.finish().map_err(|error| error.to_string()));
        match told {
            Err(why) => KernelDrops { unwatched: Some(why), ..KernelDrops::default() },
            Ok((mut seen, untold)) => {
                let beyond = seen.len().saturating_sub(MOST);
                seen.truncate(MOST);
                let packets = seen.into_iter().filter_map(|drop| packet(&hosts, drop)).collect();
                KernelDrops { packets, untold: untold + beyond as u64, unwatched: None }
            }
        }
    }
}

fn packet(hosts: &BTreeMap<u32, String>, seen: SeenDrop) -> Option<DroppedPacket> {
    let SeenDrop { record, at, reason } = seen;
    let socket = |address: u32, port: u16| {
        SocketAddrV4::new(Ipv4Addr::from(address.to_ne_bytes()), u16::from_be(port))
    };
    Some(DroppedPacket {
        time_ns: at,
        host: hosts.get(&record.netns)?.clone(),
        reason,
        protocol: record.proto,
        src: socket(record.src, record.sport),
        dst: socket(record.dst, record.dport),
        id: u16::from_be(record.ip_id),
        fragment_offset: (u16::from_be(record.fragment) & 0x1fff) * 8,
        seq: u32::from_be(record.seq),
    })
}
