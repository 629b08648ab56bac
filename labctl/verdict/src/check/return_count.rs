//! How many replies took which way, as a sentence.
//!
//! Does not own: the way ([`super::return_path`]).

use crate::story::Story;

/// The nodes that replies pass where the source is rewritten.
pub(super) fn nodes_passed(story: &Story<'_>) -> String {
    let cases = story.answered().filter(|(_, c)| c.source_rewritten());
    let asked: std::collections::BTreeSet<_> = cases.map(|(_, c)| c.ingress).collect();
    match (asked.first(), asked.len()) {
        (Some(only), 1) => story.plan.nodes[*only].name.clone(),
        _ => "the node that was asked".to_owned(),
    }
}

#[derive(Default)]
pub(super) struct Counts {
    pub(super) replies: u64,
    pub(super) direct: u64,
    pub(super) through_ingress: u64,
}

impl Counts {
    pub(super) fn sentence(&self, ingress: &str) -> String {
        let Self { replies, direct, through_ingress } = self;
        match (direct, through_ingress) {
            (_, 0) => format!(
                "{direct} of {replies} replies left the backend's node straight for the client, 0 passed any other node"
            ),
            (0, _) => format!("{through_ingress} of {replies} replies passed {ingress} on their way back"),
            _ => format!(
                "{direct} replies went straight to the client, {through_ingress} through {ingress}, as their protocol's mode says"
            ),
        }
    }
}
