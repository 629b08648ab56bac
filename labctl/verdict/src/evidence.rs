//! What a run leaves behind for the judge.

use std::collections::{BTreeMap, BTreeSet};

use labctl_model::Plan;
use labctl_wire::facts::{DroppedPacket, HostFacts};
use labctl_wire::{CaptureFile, Exchange, canary};
use serde::{Deserialize, Serialize};

/// Which canaries were sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Canaries {
    /// Name of the run in their payload; no white space.
    pub run: String,
    /// Rounds, at least two for a useful verdict: one after the captures said ready and before the traffic, one
    /// after the traffic and before the captures stop. In each round every point is sent at least one canary
    /// that it must see.
    pub rounds: u32,
}

/// Who took the captures, and so what they prove.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// labctl itself, with canaries and the kernel's counters.
    #[default]
    Run,
    /// Somebody else: what was not seen proves nothing, but where somebody vouches for a capture.
    Files(Vouched),
}

/// What is said of captures that somebody else took.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vouched {
    /// Hosts whose captures are said to be whole, from before the first packet until after the last.
    pub complete: BTreeSet<String>,
    /// Points (`worker:eth0`) whose captures prove nothing even so, and why.
    pub unfit: BTreeMap<String, String>,
    /// Why the order of packets at different hosts is not known.
    pub unordered: Option<String>,
    /// Nobody says how large the links' packets may be.
    pub mtu_unknown: bool,
}

impl Origin {
    /// What is said of foreign captures.
    pub(crate) const fn files(&self) -> Option<&Vouched> {
        match self {
            Self::Run => None,
            Self::Files(vouched) => Some(vouched),
        }
    }
}

/// What a host of a run was, before its traffic and after it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    /// Names of the interfaces that `up` made there, or found there when it was asked about a cluster.
    pub made: BTreeSet<String>,
    /// Before the traffic.
    pub before: HostFacts,
    /// After it.
    pub after: HostFacts,
    /// labctl's own programs there, as its pins say, after the traffic.
    pub programs: Vec<OwnProgram>,
}

/// What the kernels of the hosts dropped during the run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelDrops {
    /// Each packet, in the order of time.
    pub packets: Vec<DroppedPacket>,
    /// Packets that found no room in the record.
    pub untold: u64,
    /// Why nobody watched, or not every host.
    pub unwatched: Option<String>,
}

impl KernelDrops {
    /// Why a drop that is not among these may have happened all the same.
    pub(crate) fn gap(&self) -> Option<String> {
        match (&self.unwatched, self.untold) {
            (Some(why), _) => Some(format!("what the kernel dropped was not watched: {why}")),
            (None, 1..) => Some(format!("{} dropped packets found no room in the record", self.untold)),
            (None, 0) => None,
        }
    }
}

/// A program that labctl attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnProgram {
    /// Its name.
    pub program: String,
    /// Where it was attached.
    pub interface: String,
    /// The kernel's number of it.
    pub id: u32,
    /// Whether it still is.
    pub attached: bool,
}

/// Everything that the judge may know of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Evidence {
    /// The lab.
    pub plan: Plan,
    /// Packets of all points, their liveness already proven by [`Evidence::new`]. They lie beside the rest of the
    /// evidence, in a file of their own.
    #[serde(skip)]
    pub capture: CaptureFile,
    /// Requests that should be answered.
    pub exchanges: Vec<Exchange>,
    /// Requests to nodes without a backend under externalTrafficPolicy Local; they must time out.
    pub refusals: Vec<Exchange>,
    /// Per node and drop reason label ([`datapath_types::DropReason::label`]): packets dropped during the run.
    /// A node that is absent did not tell.
    pub drops: BTreeMap<String, BTreeMap<String, u64>>,
    /// Uplink of each host that does not call it `eth0`.
    pub uplinks: BTreeMap<String, String>,
    /// Which canaries were sent.
    pub canaries: Canaries,
    /// Who took the captures.
    #[serde(default, skip_serializing_if = "is_run")]
    pub origin: Origin,
    /// Each host as it was observed; empty in runs of versions that did not observe any.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub hosts: BTreeMap<String, Observed>,
    /// What the hosts' kernels dropped; absent in runs of versions that did not watch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_drops: Option<KernelDrops>,
    /// Points (`worker2:lxc1a2b`) that are a node's side of a pod's link, and the pod, where no canary tells.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pod_links: BTreeMap<String, String>,
}

fn is_run(origin: &Origin) -> bool {
    *origin == Origin::Run
}

impl Evidence {
    /// Evidence of a run without refusals and drop counters; set these fields when there are some. Marks each
    /// capture point live that saw every round of canaries.
    pub fn new(plan: Plan, capture: CaptureFile, exchanges: Vec<Exchange>, canaries: Canaries) -> Self {
        let mut evidence = Self {
            plan,
            capture,
            exchanges,
            refusals: Vec::new(),
            drops: BTreeMap::new(),
            uplinks: BTreeMap::new(),
            canaries,
            origin: Origin::Run,
            hosts: BTreeMap::new(),
            kernel_drops: None,
            pod_links: BTreeMap::new(),
        };
        evidence.prove_live();
        evidence
    }

    /// Marks each capture point live that saw every round of canaries, and no other.
    pub fn prove_live(&mut self) {
        canary::prove_live(&mut self.capture, &self.canaries.run, self.canaries.rounds);
    }

    /// The uplink's name on a host.
    pub fn uplink(&self, host: &str) -> &str {
        self.uplinks.get(host).map_or("eth0", String::as_str)
    }
}
