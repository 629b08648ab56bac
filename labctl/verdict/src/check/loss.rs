//! What excuses a lost packet: the datapath of the node that had it last dropped this very packet, and counted a drop.
//!
//! Owns: matching losses with the kernel's own record of what it dropped, one by one. Does not own: which packets are lost
//! ([`super::conservation`]). A drop by anybody else (netfilter, a route, a full queue) is named and excuses nothing. Where
//! nobody watched, the node's count alone speaks, which is no proof: some other packet may have been meant.

use std::collections::BTreeMap;

use labctl_wire::Frame;
use labctl_wire::facts::DroppedPacket;

use crate::scene::place::Place;
use crate::story::Story;

/// The kernel's reasons for packets that tc programs drop (include/net/dropreason-core.h).
const BY_PROGRAMS: [&str; 2] = ["TC_INGRESS", "TC_EGRESS"];

/// A packet that did not come to the end of its way.
pub(super) struct Loss {
    /// Where it was seen last: index into the capture's packets.
    pub(super) last: usize,
    /// The node that had it then; `None` for what was lost between hosts.
    pub(super) node: Option<usize>,
    pub(super) end: Place,
    pub(super) name: String,
}

/// Whether a loss is accounted for.
pub(super) enum Excuse {
    /// By this node.
    Counted(String),
    /// By this node's count alone, and why there is no more.
    ByCountOnly(String, String),
    /// Not at all; what is known of it.
    None(String),
}

/// What is left to excuse losses with.
pub(super) struct Excuses<'a> {
    /// Dropped packets that no loss has taken yet, by host.
    packets: BTreeMap<&'a str, Vec<&'a DroppedPacket>>,
    /// Drops that each node counted and no loss has taken yet.
    counts: BTreeMap<usize, u64>,
    /// Why the record of dropped packets may lack some.
    gap: Option<String>,
}

impl<'a> Excuses<'a> {
    pub(super) fn new(story: &Story<'a>) -> Self {
        let mut packets: BTreeMap<&str, Vec<_>> = BTreeMap::new();
        let drops = story.evidence.kernel_drops.as_ref();
        for packet in drops.into_iter().flat_map(|drops| &drops.packets) {
            packets.entry(&packet.host).or_default().push(packet);
        }
        let gap = match drops {
            Some(drops) => drops.gap(),
            None => Some("what the kernel dropped was not watched".to_owned()),
        };
        let counts = (0..story.plan.nodes.len()).map(|node| (node, accounted(story, node))).collect();
        Self { packets, counts, gap }
    }

    /// Looks for what became of a lost packet; each record excuses one.
    pub(super) fn of(&mut self, story: &Story<'_>, loss: &Loss) -> Excuse {
        let Some(node) = loss.node else { return Excuse::None("it was lost between two hosts".to_owned()) };
        let name = story.plan.nodes[node].name.clone();
        let frame = story.headers(loss.last);
        let here = self.packets.get_mut(name.as_str());
        let dropped = here.and_then(|here| {
            let index = here.iter().position(|dropped| is_of(&frame, dropped))?;
            Some(here.remove(index))
        });
        let counted = self.counts.entry(node).or_default();
        match (dropped, &self.gap) {
            (Some(dropped), _) if !BY_PROGRAMS.contains(&dropped.reason.as_str()) => {
                Excuse::None(format!("{name} dropped it: {}", dropped.reason))
            }
            (Some(_), _) if *counted > 0 => {
                *counted -= 1;
                Excuse::Counted(name)
            }
            (Some(dropped), _) => Excuse::None(format!(
                "a program on {name} dropped it and did not count it: {}",
                dropped.reason
            )),
            (None, Some(gap)) if *counted > 0 => {
                *counted -= 1;
                Excuse::ByCountOnly(name, gap.clone())
            }
            (None, _) => Excuse::None(format!("{name} had it last, and counted no drop of it")),
        }
    }
}

/// Whether this is the packet: by all that nobody rewrites, and an address that stayed.
fn is_of(frame: &Frame, dropped: &DroppedPacket) -> bool {
    let Some(ip) = frame.ipv4() else { return false };
    let seq = frame.tcp().map_or(0, |tcp| tcp.seq);
    let same = (ip.protocol, ip.id, ip.fragment_offset, seq)
        == (dropped.protocol, dropped.id, dropped.fragment_offset, dropped.seq);
    same && (ip.src == *dropped.src.ip() || ip.dst == *dropped.dst.ip())
}

/// What a node dropped of requests that should be answered, by its own count.
fn accounted(story: &Story<'_>, node: usize) -> u64 {
    let expected = datapath_types::DropReason::NoLocalBackend.label();
    let refused = story.refusals().any(|(_, case)| case.ingress == node);
    let counters = story.evidence.drops.get(&story.plan.nodes[node].name).into_iter().flatten();
    counters.filter(|(label, _)| !(refused && *label == expected)).map(|(_, count)| count).sum()
}
