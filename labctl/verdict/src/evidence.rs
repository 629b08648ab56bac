//! What a run leaves behind for the judge.

use std::collections::BTreeMap;

use labctl_model::Plan;
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
