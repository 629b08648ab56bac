//! affinity: with sessionAffinity ClientIP all requests of a client are served by one backend, whatever protocol and
//! node they ask by.

use std::collections::{BTreeMap, BTreeSet};

use labctl_model::Affinity;

use crate::proof::{Findings, Footing};
use crate::story::Story;

pub(super) fn check(story: &Story<'_>) -> Findings {
    if story.plan.service.session_affinity != Affinity::ClientIP {
        return Findings::skip("the service has no session affinity");
    }
    let mut findings = Findings::resting(Footing::At(BTreeSet::new()));
    let mut kept: BTreeMap<_, usize> = BTreeMap::new();
    let mut requests = 0;
    let backends = story.backends();
    for (_, case) in story.answered() {
        let Some(backend) = case.backend else { continue };
        requests += 1;
        let client = *case.exchange.local.ip();
        let first = *kept.entry(client).or_insert(backend.index);
        if first != backend.index {
            let (was, is) = (&backends[first].pod.name, &backend.pod.name);
            findings
                .complaint(format!("{} of {client} was served by {is}, earlier ones by {was}", case.name()));
        }
    }
    findings.number("requests", requests);
    findings.state(requests, "request", format!("{requests} requests kept their client's backend"));
    findings
}
