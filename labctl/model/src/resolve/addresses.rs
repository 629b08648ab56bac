//! Arithmetic on IPv4 networks that the sections share: which addresses a host can have, which ranges no
//! lab can use.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::Report;
use crate::diagnostic::Diagnostic;
use crate::file::Network;
use crate::given::Given;

/// Longest prefix that leaves a network two host addresses.
pub(super) const LONGEST_PREFIX: u8 = 30;

/// The address `offset` places after the network's own.
pub(super) fn nth(network: Ipv4Net, offset: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(network.network().to_bits().saturating_add(offset))
}

/// Whether two networks share an address.
pub(super) fn overlap(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

/// What an address of the network is used for, if no host can have it.
pub(super) fn reserved_role(network: Ipv4Net, address: Ipv4Addr) -> Option<&'static str> {
    if address == network.network() {
        Some("network")
    } else if address == network.broadcast() {
        Some("broadcast")
    } else {
        None
    }
}

/// The network that was written; reports host bits, ranges that no lab can use and networks without room.
pub(super) fn checked_network(given: &Given<Network>, report: &mut Report) -> Ipv4Net {
    let written = given.0;
    let network = written.trunc();
    if written != network {
        let message = format!("`{written}` has host bits set");
        report.push(Diagnostic::new(given.place, message).help(format!("did you mean `{network}`?")));
    }
    if network.prefix_len() > LONGEST_PREFIX {
        let message = format!("`{network}` has no room for hosts");
        report.push(Diagnostic::new(given.place, message).help("use a prefix of /30 or shorter"));
    }
    if let Some(use_) = special_use(network) {
        let message = format!("`{network}` overlaps {use_}");
        report.push(Diagnostic::new(given.place, message).help("use a private range such as 10.0.0.0/8"));
    }
    network
}

/// What a range is set aside for, if packets of the lab could not use it (RFC 6890).
pub(super) fn special_use(network: Ipv4Net) -> Option<&'static str> {
    const RANGES: [(Ipv4Addr, u8, &str); 4] = [
        (Ipv4Addr::new(0, 0, 0, 0), 8, "0.0.0.0/8, which is no address of a host"),
        (Ipv4Addr::new(127, 0, 0, 0), 8, "127.0.0.0/8, the loopback range"),
        (Ipv4Addr::new(169, 254, 0, 0), 16, "169.254.0.0/16, the link-local range"),
        (Ipv4Addr::new(224, 0, 0, 0), 3, "224.0.0.0/3, the multicast and reserved ranges"),
    ];
    RANGES.into_iter().find_map(|(address, prefix, use_)| {
        let range = Ipv4Net::new_assert(address, prefix);
        overlap(range, network).then_some(use_)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Ipv4Net {
        text.parse().expect("a network")
    }

    #[test]
    fn overlap_is_symmetric() {
        for (a, b, expected) in [
            ("10.0.0.0/8", "10.1.2.0/24", true),
            ("10.0.0.0/24", "10.0.1.0/24", false),
            ("10.0.0.0/24", "10.0.0.0/24", true),
            ("0.0.0.0/0", "255.255.255.255/32", true),
        ] {
            assert_eq!(overlap(net(a), net(b)), expected, "{a} {b}");
            assert_eq!(overlap(net(b), net(a)), expected, "{b} {a}");
        }
    }

    #[test]
    fn arithmetic_does_not_overflow() {
        assert_eq!(nth(net("255.255.255.252/30"), u32::MAX), Ipv4Addr::BROADCAST);
        assert_eq!(reserved_role(net("255.255.255.252/30"), Ipv4Addr::BROADCAST), Some("broadcast"));
    }
}
