//! backend: who says that it answered is the pod that the request was sent to, on the node where the plan has it. The
//! same in every mode.

use std::collections::BTreeSet;
use std::net::SocketAddrV4;

use crate::proof::{Findings, Footing};
use crate::scene::case::Case;
use crate::story::Story;

pub(super) fn check(story: &Story<'_>) -> Findings {
    if !story.answered().any(|(_, c)| c.exchange.served_by.is_some()) {
        return Findings::skip("no backend says who it is");
    }
    let mut findings = Findings::resting(Footing::At(BTreeSet::new()));
    let mut agreed = 0;
    for (index, case) in story.answered() {
        let Some(told) = &case.exchange.served_by else {
            findings.doubt(format!("no backend says that it answered {}", case.name()));
            continue;
        };
        match objection(story, case, story.addressed[index]) {
            Some(why) => findings.complaint(format!("{}: {why}", case.name())),
            None => agreed += 1,
        }
        if told.node.is_empty() {
            findings.doubt(format!("the backend of {} does not say where it is", case.name()));
        }
    }
    findings.number("agreed", agreed);
    findings.state(
        agreed,
        "reply of a backend",
        format!("{agreed} of {agreed} replies came from the pod that their request was sent to"),
    );
    findings
}

fn objection(story: &Story<'_>, case: &Case<'_>, addressed: Option<SocketAddrV4>) -> Option<String> {
    let told = case.exchange.served_by.as_ref()?;
    let Some((node, pod)) = story.plan.backends().find(|(_, pod)| pod.name == told.pod) else {
        return Some(format!("\"{}\" says that it answered, which is no backend of the lab", told.pod));
    };
    if node.name != told.node {
        return Some(format!("{} says that it is on {}, it is on {}", told.pod, told.node, node.name));
    }
    let own = SocketAddrV4::new(pod.address, story.plan.service.target_port);
    if told.local != own {
        return Some(format!("{} says that it answered from {}, its socket is {own}", told.pod, told.local));
    }
    let addressed = addressed.filter(|addressed| *addressed != own)?;
    Some(format!("{} says that it answered, and the request was sent to {addressed}", told.pod))
}
