//! The checks, one file each. A check reads the context and returns findings; it knows nothing of the others.

mod checksums;
mod client_ip;
mod conservation;
mod dsr_option;
mod handshake;
mod l2_source;
mod mtu;
mod no_resets;
mod reply_source;
mod request_path;
mod return_path;
mod ttl;

use crate::context::Context;
use crate::findings::Findings;

type Check = fn(&Context<'_>) -> Findings;

/// Every check with its name, in the order of [`labctl_model::CHECK_NAMES`].
pub(crate) const ALL: [(&str, Check); labctl_model::CHECK_NAMES.len()] = [
    ("handshake", handshake::check),
    ("client-ip", client_ip::check),
    ("return-path", return_path::check),
    ("reply-source", reply_source::check),
    ("dsr-option", dsr_option::check),
    ("request-path", request_path::check),
    ("ttl", ttl::check),
    ("l2-source", l2_source::check),
    ("checksums", checksums::check),
    ("mtu", mtu::check),
    ("no-resets", no_resets::check),
    ("conservation", conservation::check),
];

#[cfg(test)]
mod tests {
    #[test]
    fn names_are_those_of_the_model() {
        assert_eq!(super::ALL.map(|(name, _)| name), labctl_model::CHECK_NAMES);
    }
}
