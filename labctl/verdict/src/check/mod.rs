//! The checks, one file each. A check reads the story and returns findings; it knows nothing of the others.

mod affinity;
mod backend;
mod carrier;
mod checksums;
mod client_ip;
mod conservation;
mod frontend_option;
mod handshake;
mod icmp;
mod icmp_way;
mod l2_source;
mod looping;
mod loss;
mod mtu;
mod no_resets;
mod no_strangers;
mod peer;
mod refusal;
mod reply_source;
mod request_path;
mod return_count;
mod return_path;
mod spread;
mod ttl;
mod unaltered;

use crate::proof::Findings;
use crate::story::Story;

pub(crate) type Check = fn(&Story<'_>) -> Findings;

/// Every check with its name, in the order of [`labctl_model::CHECK_NAMES`].
pub(crate) const ALL: [(&str, Check); labctl_model::CHECK_NAMES.len()] = [
    ("handshake", handshake::check),
    ("backend", backend::check),
    ("client-ip", client_ip::check),
    ("return-path", return_path::check),
    ("reply-source", reply_source::check),
    ("carrier", carrier::check),
    ("request-path", request_path::check),
    ("ttl", ttl::check),
    ("l2-source", l2_source::check),
    ("unaltered", unaltered::check),
    ("checksums", checksums::check),
    ("mtu", mtu::check),
    ("icmp", icmp::check),
    ("no-resets", no_resets::check),
    ("loop", looping::check),
    ("conservation", conservation::check),
    ("no-strangers", no_strangers::check),
    ("spread", spread::check),
    ("affinity", affinity::check),
];

#[cfg(test)]
mod tests {
    #[test]
    fn names_are_those_of_the_model() {
        assert_eq!(super::ALL.map(|(name, _)| name), labctl_model::CHECK_NAMES);
    }
}
