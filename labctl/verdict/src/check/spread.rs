//! spread: where several backends may serve, each of them does. Judged only if there are enough requests that a fair
//! choice would leave one out less than once in a billion runs.

use std::collections::BTreeSet;

use labctl_model::{Affinity, TrafficPolicy};

use crate::proof::{Findings, Footing};
use crate::story::Story;

/// How seldom a fair choice may be called unfair.
const ALARM: f64 = 1e-9;

pub(super) fn check(story: &Story<'_>) -> Findings {
    let service = &story.plan.service;
    if service.session_affinity == Affinity::ClientIP {
        return Findings::skip("session affinity: a client keeps its backend");
    }
    if service.external_traffic_policy == TrafficPolicy::Local {
        return Findings::skip("externalTrafficPolicy Local: each node has its own backends");
    }
    let backends = story.backends();
    if backends.len() < 2 {
        return Findings::skip("one backend serves everything");
    }
    let served: BTreeSet<_> = story.answered().filter_map(|(_, c)| Some(c.backend?.index)).collect();
    let requests = story.answered().filter(|(_, c)| c.backend.is_some()).count();
    let count = backends.len() as f64;
    if count * (1.0 - 1.0 / count).powi(requests as i32) > ALARM {
        return Findings::skip("too few requests to tell whether the backends share them");
    }
    let mut findings = Findings::resting(Footing::At(BTreeSet::new()));
    for backend in backends.iter().filter(|b| !served.contains(&b.index)) {
        findings.complaint(format!("{} served none of {requests} requests", backend.pod.name));
    }
    findings.number("backends", served.len() as u64);
    let text = format!("{} backends share {requests} requests", served.len());
    findings.state(requests as u64, "request", text);
    findings
}
