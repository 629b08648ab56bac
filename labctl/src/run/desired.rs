//! Plan to node state: what each node's datapath has to be. Pure.

use datapath_agent::{
    AttachMode, BackendState, DatapathMode, DatapathOptions, LocalPod, MapRoom, NodeState, Proto,
    ServiceState,
};
use labctl_model::{Affinity, Mode, NodePlan, Plan, Protocol, TrafficPolicy, WireFormat};

/// Name of the uplink in every node.
pub(crate) const UPLINK: &str = "eth0";

/// The lab has one service, so it is number one everywhere.
const SERVICE: u32 = 1;

/// The state of one node; `interface` names the host side of a pod's veth.
pub(crate) fn node_state(plan: &Plan, node: &NodePlan, interface: impl Fn(&str) -> String) -> NodeState {
    let own_pods = node.pods.iter().filter(|pod| !pod.host_network);
    NodeState {
        node: node.name.clone(),
        uplink: UPLINK.to_owned(),
        node_address: node.address,
        nodes: plan.nodes.iter().map(|node| node.address).collect(),
        pod_cidr: (plan.pod_cidr.network(), plan.pod_cidr.prefix_len()),
        pods: own_pods
            .map(|pod| LocalPod { address: pod.address, interface: interface(&pod.name) })
            .collect(),
        services: plan.service.protocols.iter().map(|protocol| service(plan, *protocol)).collect(),
        options: options(plan),
    }
}

fn service(plan: &Plan, protocol: Protocol) -> ServiceState {
    let service = &plan.service;
    ServiceState {
        id: SERVICE,
        protocol: match protocol {
            Protocol::Tcp => Proto::Tcp,
            Protocol::Udp => Proto::Udp,
        },
        cluster_ip: Some((service.cluster_ip, service.port)),
        node_port: Some(service.node_port),
        local_only: service.external_traffic_policy == TrafficPolicy::Local,
        internal_local: false,
        affinity_seconds: match service.session_affinity {
            Affinity::ClientIP => Some(service.affinity_seconds),
            Affinity::None => None,
        },
        backends: plan
            .backends()
            .map(|(node, pod)| BackendState {
                address: pod.address,
                port: service.target_port,
                node: node.address,
                terminating: false,
                retired: false,
            })
            .collect(),
    }
}

fn options(plan: &Plan) -> DatapathOptions {
    DatapathOptions {
        mode: match plan.mode {
            Mode::Dsr => DatapathMode::Dsr,
            Mode::Snat => DatapathMode::Snat,
            Mode::Hybrid => DatapathMode::Hybrid,
            Mode::Local => DatapathMode::Local,
        },
        wire_cilium: plan.wire == WireFormat::Cilium,
        strip_option: plan.datapath.strip_option,
        snat_ports: (plan.datapath.snat_port_min, plan.datapath.snat_port_max),
        flows: plan.datapath.flows,
        events: plan.datapath.events,
        host_clients: false,
        room: MapRoom::default(),
        attach: attach_mode(),
        mutation: mutation(),
    }
}

/// A wrong behaviour on purpose, by its number: the tests of the verdict must see each check fail.
#[cfg(feature = "mutations")]
fn mutation() -> u32 {
    std::env::var("LABCTL_MUTATION").ok().and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Released builds have no switch that makes the datapath misbehave.
#[cfg(not(feature = "mutations"))]
fn mutation() -> u32 {
    0
}

/// How the programs are attached. The tests of the clsact path run on kernels that have TCX.
fn attach_mode() -> AttachMode {
    match std::env::var("LABCTL_ATTACH").as_deref() {
        Ok("clsact") => AttachMode::Clsact,
        Ok("tcx") => AttachMode::Tcx,
        _ => AttachMode::Auto,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(name: &str) -> Plan {
        labctl_model::parse(name, labctl_model::builtin_lab(name).unwrap()).unwrap()
    }

    fn state(plan: &Plan, node: &str) -> NodeState {
        node_state(plan, plan.node(node).unwrap(), |pod| format!("lxc-{pod}"))
    }

    #[test]
    fn every_node_knows_every_backend_and_only_its_own_pods() {
        let plan = plan("dsr");
        let (worker, worker2) = (state(&plan, "worker"), state(&plan, "worker2"));
        assert_eq!(worker.services, worker2.services);
        assert!(worker.pods.is_empty());
        assert_eq!(worker2.pods[0].interface, "lxc-web-1");
        assert_eq!(worker.services.len(), 2, "one per protocol");
        let backend = &worker.services[0].backends[0];
        assert_eq!((backend.address, backend.node), (worker2.pods[0].address, worker2.node_address));
        assert_eq!(worker.nodes.len(), 3);
    }

    #[test]
    fn a_host_network_backend_is_its_node_and_no_pod() {
        let mut plan = plan("dsr");
        let node = plan.nodes.iter_mut().find(|node| node.name == "worker2").unwrap();
        (node.pods[0].host_network, node.pods[0].address) = (true, node.address);
        let state = state(&plan, "worker2");
        assert!(state.pods.is_empty());
        assert_eq!(state.services[0].backends[0].address, state.node_address);
    }

    #[test]
    fn modes_carry_over() {
        assert_eq!(state(&plan("snat"), "worker").options.mode, DatapathMode::Snat);
        assert_eq!(state(&plan("hybrid"), "worker").options.mode, DatapathMode::Hybrid);
        let local = state(&plan("local"), "worker");
        assert_eq!(local.options.mode, DatapathMode::Local);
        assert!(local.services.iter().all(|service| service.local_only));
    }
}
