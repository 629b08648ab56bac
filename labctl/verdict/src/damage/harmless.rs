//! Damages that need not turn the verdict: what they touch is no evidence for any statement.

use super::Target;
use super::apply::{Damage, Touched};
use crate::story::Role;

/// What need not be noticed, and why.
pub const HARMLESS: [(&str, &str); 5] = [
    (
        "a canary among others",
        "a place is proven by one canary of each round; the rest of what it holds is no evidence",
    ),
    ("the answer to a canary", "that its port is closed is no statement of any check"),
    (
        "housekeeping",
        "ARP between neighbours and IPv6 discovery are no statement, as long as they show nobody else",
    ),
    ("a duration", "how long a request took is shown and not judged"),
    ("the number of a request", "it names the request in reports and orders nothing"),
];

/// The number of the reason in [`HARMLESS`], if this damage has one.
pub(super) fn reason(target: &Target<'_>, damage: &Damage) -> Option<usize> {
    match damage.touched {
        Touched::Packet(packet) => match target.roles[packet] {
            Role::Canary if target.is_canary(packet) => Some(0),
            Role::Canary => Some(1),
            Role::Other | Role::Overheard => Some(2),
            Role::Exchange(..) | Role::Error(..) | Role::Elsewhere => None,
        },
        Touched::Duration => Some(3),
        Touched::Number => Some(4),
        Touched::Rest => None,
    }
}

impl Target<'_> {
    /// Whether a packet is a canary itself and not what it provoked.
    fn is_canary(&self, packet: usize) -> bool {
        let capture = &self.evidence.capture;
        labctl_wire::canary::Canary::of(capture.data(packet), &capture.headers(packet)).is_some()
    }
}
