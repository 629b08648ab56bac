//! The configuration of `kind create cluster`, from the plan. Pure.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use labctl_model::{NodeRole, Plan};

use super::names;

const TEMPLATE: &str = include_str!("../../../../assets/kind/cluster.yaml");
/// kind's own choice.
const SERVICE_SUBNET: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 12);
/// kubeadm refuses a service subnet with more than 2^20 addresses, and one this size is enough.
const OTHER_SERVICE_PREFIX: u8 = 16;

/// The whole file.
pub(super) fn render(plan: &Plan) -> String {
    let role = |node: &labctl_model::NodePlan| match node.role {
        NodeRole::ControlPlane => "  - role: control-plane",
        NodeRole::Worker => "  - role: worker",
    };
    let nodes: Vec<_> = plan.nodes.iter().map(role).collect();
    TEMPLATE
        .replace("{{cluster}}", &names::cluster(&plan.lab))
        .replace("{{pod_subnet}}", &pod_subnet(plan).to_string())
        .replace("{{service_subnet}}", &service_subnet(plan).to_string())
        .replace("{{nodes}}", &nodes.join("\n"))
}

/// The smallest network that holds every node's pods: the lab file's own may be as wide as 10.0.0.0/8, which
/// holds the services too, and Kubernetes wants the two apart.
fn pod_subnet(plan: &Plan) -> Ipv4Net {
    let cidrs: Vec<Ipv4Net> = plan.nodes.iter().map(|node| node.pod_cidr.trunc()).collect();
    let Some(first) = cidrs.first() else { return plan.pod_cidr.trunc() };
    let holds_all = |net: &Ipv4Net| cidrs.iter().all(|cidr| net.contains(cidr));
    let mut net = *first;
    while !holds_all(&net) {
        match net.supernet() {
            Some(wider) => net = wider,
            None => break,
        }
    }
    net
}

/// A network that holds the service's ClusterIP: kind's own where it does.
pub(super) fn service_subnet(plan: &Plan) -> Ipv4Net {
    let address = plan.service.cluster_ip;
    if SERVICE_SUBNET.contains(&address) {
        return SERVICE_SUBNET;
    }
    Ipv4Net::new(address, OTHER_SERVICE_PREFIX).map_or(SERVICE_SUBNET, |net| net.trunc())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        labctl_model::parse("dsr.yaml", include_str!("../../../../labs/dsr.yaml")).expect("the lab is valid")
    }

    #[test]
    fn pods_and_services_are_apart() {
        let plan = plan();
        assert_eq!(pod_subnet(&plan).to_string(), "10.0.0.0/22");
        assert_eq!(service_subnet(&plan).to_string(), "10.96.0.0/12");
    }

    #[test]
    fn other_cluster_addresses_get_a_network_of_their_own() {
        let mut plan = plan();
        plan.service.cluster_ip = "192.168.7.9".parse().expect("an address");
        assert_eq!(service_subnet(&plan).to_string(), "192.168.0.0/16");
    }

    #[test]
    fn nothing_of_the_template_stays() {
        let text = render(&plan());
        assert!(!text.contains("{{"), "{text}");
        assert!(text.contains("name: labctl-dsr\n"), "{text}");
        assert!(
            text.contains("nodes:\n  - role: control-plane\n  - role: worker\n  - role: worker\n"),
            "{text}"
        );
    }
}
