//! The service: its frontends, protocols and policies.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use ipnet::Ipv4Net;

use super::addresses::special_use;
use super::topology::Topology;
use super::{Report, given_or, names};
use crate::diagnostic::Diagnostic;
use crate::file::{Address, LabFile, ServiceFile};
use crate::given::Given;
use crate::plan::{Affinity, Mode, Protocol, ServicePlan, TrafficPolicy};

/// Kubernetes' default range of node ports.
pub(super) const NODE_PORTS: RangeInclusive<u16> = 30000..=32767;
/// Kubernetes' default of sessionAffinityConfig.clientIP.timeoutSeconds.
const AFFINITY_SECONDS: u32 = 10_800;
/// Its largest value.
const MAX_AFFINITY_SECONDS: u32 = 86_400;

pub(super) fn resolve(file: &LabFile, topology: &Topology, report: &mut Report) -> ServicePlan {
    let mut plan = ServicePlan {
        name: "web".to_owned(),
        foreign: None,
        cluster_ip: Ipv4Addr::new(10, 96, 0, 80),
        port: 80,
        node_port: 32000,
        target_port: 8080,
        protocols: vec![Protocol::Tcp, Protocol::Udp],
        external_traffic_policy: match *file.mode {
            Mode::Local => TrafficPolicy::Local,
            Mode::Dsr | Mode::Snat | Mode::Hybrid => TrafficPolicy::Cluster,
        },
        session_affinity: Affinity::None,
        affinity_seconds: AFFINITY_SECONDS,
    };
    let Some(service) = &file.service else {
        check_cluster_ip(plan.cluster_ip, &file.nodes, topology, report);
        return plan;
    };
    if let Some(name) = &service.name {
        names::check_service(name, report);
        plan.name = name.to_string();
    }
    plan.port = port(&service.port, plan.port, report);
    plan.target_port = port(&service.target_port, plan.target_port, report);
    plan.node_port = node_port(service, plan.node_port, report);
    if let Some(protocols) = &service.protocols {
        plan.protocols = sorted_protocols(protocols, report);
    }
    if let Some(policy) = &service.external_traffic_policy {
        check_policy(file, policy, report);
        plan.external_traffic_policy = **policy;
    }
    plan.session_affinity = given_or(&service.session_affinity, plan.session_affinity);
    plan.affinity_seconds = affinity_seconds(service, report);
    match &service.cluster_ip {
        Some(given) => {
            plan.cluster_ip = given.0;
            check_cluster_ip(given.0, given, topology, report);
        }
        None => check_cluster_ip(plan.cluster_ip, service, topology, report),
    }
    plan
}

fn port(given: &Option<Given<u16>>, default: u16, report: &mut Report) -> u16 {
    if let Some(given) = given
        && **given == 0
    {
        report.push(Diagnostic::new(given.place, "a port is a number from 1 to 65535"));
    }
    given_or(given, default)
}

fn node_port(service: &ServiceFile, default: u16, report: &mut Report) -> u16 {
    let node_port = port(&service.node_port, default, report);
    let any = given_or(&service.allow_any_node_port, false);
    if let Some(given) = &service.node_port
        && node_port != 0
        && !NODE_PORTS.contains(&node_port)
        && !any
    {
        let message = format!("nodePort {node_port} is outside 30000-32767");
        let help = "that is Kubernetes' range; `allowAnyNodePort: true` takes any other";
        report.push(Diagnostic::new(given.place, message).help(help));
    }
    node_port
}

fn sorted_protocols(given: &Given<Vec<Given<Protocol>>>, report: &mut Report) -> Vec<Protocol> {
    if given.is_empty() {
        report.push(Diagnostic::new(given.place, "the service has no protocol").help("use `[tcp, udp]`"));
    }
    let mut protocols = Vec::new();
    for protocol in given.iter() {
        if protocols.contains(&**protocol) {
            let message = format!("protocol `{}` is given twice", **protocol);
            report.push(Diagnostic::new(protocol.place, message));
        } else {
            protocols.push(**protocol);
        }
    }
    protocols.sort_unstable();
    protocols
}

fn check_policy(file: &LabFile, policy: &Given<TrafficPolicy>, report: &mut Report) {
    if *file.mode == Mode::Local && **policy == TrafficPolicy::Cluster {
        let found = Diagnostic::new(policy.place, "mode `local` contradicts externalTrafficPolicy `Cluster`");
        report.push(
            found
                .related(file.mode.place, "the mode is chosen here")
                .help("leave externalTrafficPolicy out, or choose mode `dsr`, `snat` or `hybrid`"),
        );
    }
}

fn affinity_seconds(service: &ServiceFile, report: &mut Report) -> u32 {
    let Some(given) = &service.session_affinity_seconds else { return AFFINITY_SECONDS };
    if !(1..=MAX_AFFINITY_SECONDS).contains(&**given) {
        let message = format!("sessionAffinitySeconds is a number from 1 to {MAX_AFFINITY_SECONDS}");
        report.push(Diagnostic::new(given.place, message));
    }
    if given_or(&service.session_affinity, Affinity::None) == Affinity::None {
        let found = Diagnostic::new(given.place, "sessionAffinitySeconds has no effect without affinity");
        report.push(found.help("add `sessionAffinity: ClientIP`, or leave this out"));
    }
    **given
}

/// `written` is the address itself, or what stands nearest to where it could have been written.
fn check_cluster_ip<T>(address: Ipv4Addr, written: &Given<T>, topology: &Topology, report: &mut Report) {
    let host = Ipv4Net::new_assert(address, 32);
    let clash = if topology.network.contains(&address) {
        Some(format!("the segment `{}`", topology.network))
    } else if let Some(node) = topology.nodes.iter().find(|node| node.pod_cidr.contains(&address)) {
        Some(format!("the pod range `{}` of `{}`", node.pod_cidr, node.name))
    } else {
        special_use(host).map(str::to_owned)
    };
    if let Some(clash) = clash {
        let Address(address) = Address(address);
        let message = format!("clusterIP `{address}` lies in {clash}");
        let help = "no host has a cluster IP: use an address that belongs to nobody";
        report.push(Diagnostic::new(written.place, message).help(help));
    }
}
