//! Which addresses the lab's network gets.

use std::fs;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::docker::Network;

/// The subnet of the lab file if nothing on this machine has it, else who has it.
pub(super) fn is_free(wanted: Ipv4Net, networks: &[Network]) -> Result<Ipv4Net, String> {
    choose(wanted, networks, &fs::read_to_string("/proc/net/route").unwrap_or_default())
}

fn choose(wanted: Ipv4Net, networks: &[Network], table: &str) -> Result<Ipv4Net, String> {
    let wanted = wanted.trunc();
    for network in networks {
        if let Some(taken) = network.subnets.iter().find(|subnet| overlap(**subnet, wanted)) {
            return Err(format!("Docker network {} has {taken}", network.name));
        }
    }
    match routes(table).find(|route| overlap(*route, wanted)) {
        Some(route) => Err(format!("this machine has a route to {route}")),
        None => Ok(wanted),
    }
}

fn overlap(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

/// Destinations of the kernel's table, the default route left out. Addresses are hexadecimal words in the byte order of
/// the machine (`fib_route_seq_show` in the kernel).
fn routes(table: &str) -> impl Iterator<Item = Ipv4Net> {
    table.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let address = |text: &str| Some(Ipv4Addr::from(u32::from_str_radix(text, 16).ok()?.to_ne_bytes()));
        let destination = address(fields.next()?)?;
        let mask = address(fields.nth(5)?)?;
        Ipv4Net::with_netmask(destination, mask).ok().filter(|net| net.prefix_len() > 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
        eth0\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
        docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n";

    #[test]
    fn routes_are_read_without_the_default() {
        if cfg!(target_endian = "little") {
            let found: Vec<_> = routes(TABLE).map(|net| net.to_string()).collect();
            assert_eq!(found, ["172.17.0.0/16"]);
        }
    }

    #[test]
    fn networks_overlap_either_way() {
        let net = |text: &str| text.parse::<Ipv4Net>().expect("a network");
        assert!(overlap(net("172.18.0.0/16"), net("172.18.3.0/24")));
        assert!(overlap(net("172.18.3.0/24"), net("172.16.0.0/12")));
        assert!(!overlap(net("172.18.0.0/16"), net("172.19.0.0/16")));
    }

    #[test]
    fn taken_subnets_name_who_has_them() {
        let network = Network {
            name: "kind".to_owned(),
            id: String::new(),
            subnets: vec!["192.0.2.0/24".parse().expect("a network")],
            labels: Default::default(),
        };
        let wanted = "192.0.2.0/25".parse().expect("a network");
        assert_eq!(choose(wanted, &[network], ""), Err("Docker network kind has 192.0.2.0/24".to_owned()));
        assert_eq!(choose(wanted, &[], TABLE), Ok(wanted));
    }
}
