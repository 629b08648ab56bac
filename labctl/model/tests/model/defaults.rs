//! What a plan holds where the lab file says nothing, and how addresses and names are handed out.

use std::net::Ipv4Addr;

use labctl_model::{
    Affinity, ExpectedStatus, Fault, FaultScope, NodeRole, Plan, Protocol, ProviderKind, TrafficPolicy,
    WireFormat, parse,
};

/// The shortest lab, with `more` behind it and `mode` in it.
fn lab(mode: &str, backends: &str, more: &str) -> Plan {
    let text = format!(
        "apiVersion: labctl/v1\nname: short\nmode: {mode}\nnodes:\n\
         - {{name: a, address: 172.18.0.2, podCIDR: 10.0.0.0/24}}\n\
         - {{name: b, address: 172.18.0.3, podCIDR: 10.0.1.0/24}}\n\
         - {{name: c, address: 172.18.0.4, podCIDR: 10.0.2.0/29}}\n\
         backends: {backends}\n{more}"
    );
    parse("short.yaml", &text).unwrap_or_else(|error| panic!("{error}"))
}

/// Node, pod and address of every backend.
fn pods(plan: &Plan) -> Vec<(&str, &str, String)> {
    plan.backends().map(|(n, p)| (n.name.as_str(), p.name.as_str(), p.address.to_string())).collect()
}

#[test]
fn the_shortest_lab_is_complete() {
    let plan = lab("dsr", "[{node: b}]", "");
    assert_eq!(plan.provider, ProviderKind::Netns);
    assert_eq!(plan.wire, WireFormat::Network);
    assert_eq!(
        (plan.network.to_string(), plan.pod_cidr.to_string()),
        ("172.18.0.0/16".into(), "10.0.0.0/8".into())
    );
    assert_eq!(plan.mtu, 1500);
    assert_eq!((plan.client.name.as_str(), plan.client.address), ("client", Ipv4Addr::new(172, 18, 0, 1)));
    assert_eq!(
        plan.nodes.iter().map(|n| n.role).collect::<Vec<_>>(),
        [NodeRole::ControlPlane, NodeRole::Worker, NodeRole::Worker]
    );
    let service = &plan.service;
    assert_eq!((service.name.as_str(), service.cluster_ip), ("web", Ipv4Addr::new(10, 96, 0, 80)));
    assert_eq!((service.port, service.node_port, service.target_port), (80, 32000, 8080));
    assert_eq!(service.protocols, [Protocol::Tcp, Protocol::Udp]);
    assert_eq!(service.external_traffic_policy, TrafficPolicy::Cluster);
    assert_eq!((service.session_affinity, service.affinity_seconds), (Affinity::None, 10_800));
    let traffic = &plan.traffic;
    assert_eq!((traffic.requests, traffic.datagrams, traffic.response_bytes), (8, 8, 4096));
    let datapath = &plan.datapath;
    assert!(datapath.strip_option && !datapath.events);
    assert_eq!((datapath.snat_port_min, datapath.snat_port_max, datapath.flows), (61000, 65535, 65536));
    assert_eq!((plan.image, plan.faults.len(), plan.expect.len()), (None, 0, 0));
}

#[test]
fn the_client_asks_a_worker_that_must_forward() {
    assert_eq!(lab("dsr", "[{node: b}]", "").traffic.via, "c");
    assert_eq!(lab("dsr", "[{node: b}, {node: c}]", "").traffic.via, "a");
    assert_eq!(lab("dsr", "[{node: a}, {node: b}, {node: c}]", "").traffic.via, "b");
}

#[test]
fn with_policy_local_the_client_asks_a_node_that_has_a_backend() {
    let plan = lab("local", "[{node: a}, {node: c}]", "");
    assert_eq!(
        (plan.traffic.via.as_str(), plan.service.external_traffic_policy),
        ("c", TrafficPolicy::Local)
    );
    assert_eq!(lab("dsr", "[{node: b}]", "service: {externalTrafficPolicy: Local}").traffic.via, "b");
}

#[test]
fn traffic_follows_the_protocols() {
    let plan = lab("dsr", "[{node: b}]", "service: {protocols: [udp]}");
    assert_eq!((plan.traffic.requests, plan.traffic.datagrams), (0, 8));
    let plan = lab("dsr", "[{node: b}]", "service: {protocols: [udp, tcp]}\ntraffic: {requests: 0}");
    assert_eq!((plan.traffic.requests, plan.traffic.datagrams), (0, 8));
    assert_eq!(plan.service.protocols, [Protocol::Tcp, Protocol::Udp]);
}

#[test]
fn addresses_count_up_around_explicit_ones() {
    let plan = lab("dsr", "[{node: b, replicas: 3}, {node: b, address: 10.0.1.3}, {node: a}]", "");
    assert_eq!(
        pods(&plan),
        [
            ("a", "web-5", "10.0.0.2".to_owned()),
            ("b", "web-1", "10.0.1.2".to_owned()),
            ("b", "web-2", "10.0.1.4".to_owned()),
            ("b", "web-3", "10.0.1.5".to_owned()),
            ("b", "web-4", "10.0.1.3".to_owned()),
        ]
    );
}

#[test]
fn a_range_can_be_filled_to_its_last_address() {
    // A /29 has 8 addresses: network, gateway, five pods, broadcast.
    let plan = lab("dsr", "[{node: c, replicas: 5}]", "service: {name: api}");
    assert_eq!(pods(&plan).first(), Some(&("c", "api-1", "10.0.2.2".to_owned())));
    assert_eq!(pods(&plan).last(), Some(&("c", "api-5", "10.0.2.6".to_owned())));
}

#[test]
fn a_host_network_backend_has_its_nodes_address() {
    let plan = lab("dsr", "[{node: b, hostNetwork: true}, {node: b}]", "");
    assert_eq!(pods(&plan), [("b", "web-1", "172.18.0.3".to_owned()), ("b", "web-2", "10.0.1.2".to_owned())]);
    assert!(plan.nodes[1].pods[0].host_network && !plan.nodes[1].pods[1].host_network);
}

#[test]
fn a_cluster_may_bring_its_own_load_balancer() {
    let plan = lab("snat", "[{node: b}]", "provider: cluster\ndatapath: {external: true}\n");
    assert!(plan.datapath.external);
    assert!(!lab("snat", "[{node: b}]", "").datapath.external);
}

#[test]
fn everything_that_can_be_said_is_taken() {
    let more = "provider: netns\nwire: cilium\noverlay: none\nmtu: 9000\nkind: {image: 'kindest/node:v1.34.0'}\n\
                service: {nodePort: 8443, allowAnyNodePort: true, sessionAffinity: ClientIP, sessionAffinitySeconds: 60}\n\
                traffic: {via: a, requests: 1000, datagrams: 1000, responseBytes: 10485760}\n\
                datapath: {stripOption: false, snatPorts: 62000-62999, flows: 1024, events: true}\n\
                faults: [{name: rp-filter-strict}, {name: pod-mtu, mtu: 1280, on: [c, a]}, {name: forward-drop, on: all}]\n\
                expect: {dsr-option: fail, ttl: pass}\n";
    let plan = lab("hybrid", "[{node: b}]", more);
    assert_eq!((plan.wire, plan.mtu), (WireFormat::Cilium, 9000));
    assert_eq!(plan.image.as_deref(), Some("kindest/node:v1.34.0"));
    assert_eq!((plan.service.node_port, plan.service.affinity_seconds), (8443, 60));
    assert_eq!((plan.datapath.snat_port_min, plan.datapath.snat_port_max), (62000, 62999));
    assert!(!plan.datapath.strip_option && plan.datapath.events);
    assert_eq!(plan.faults[0].fault, Fault::RpFilterStrict);
    assert_eq!(plan.faults[1].fault, Fault::PodMtu { mtu: 1280 });
    assert_eq!(plan.faults[1].on, FaultScope::Nodes(vec!["a".to_owned(), "c".to_owned()]));
    assert!(plan.faults[1].on.covers("c") && !plan.faults[1].on.covers("b"));
    assert_eq!((plan.faults[2].fault.name(), &plan.faults[2].on), ("forward-drop", &FaultScope::All));
    assert_eq!(plan.expect.get("carrier"), Some(&ExpectedStatus::Fail));
}

#[test]
fn an_empty_field_is_one_that_is_left_out() {
    assert_eq!(
        lab("dsr", "[{node: b}]", "faults:\nexpect: ~\nservice: null\n"),
        lab("dsr", "[{node: b}]", "")
    );
}

#[test]
fn yaml_1_1_words_are_text() {
    let text = "apiVersion: labctl/v1\nname: on\nmode: dsr\nbackends: [{node: no}]\n\
                nodes: [{name: no, address: 172.18.0.2, podCIDR: 10.0.0.0/24}]\nfaults: [{name: drop-invalid, on: all}]\n";
    let plan = parse("lab.yaml", text).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((plan.lab.as_str(), plan.nodes[0].name.as_str()), ("on", "no"));
}

#[test]
fn aliases_work() {
    let text = "apiVersion: labctl/v1\nname: x\nmode: dsr\nbackends: [{node: &n a}]\ntraffic: {via: *n}\n\
                nodes: [{name: a, address: 172.18.0.2, podCIDR: 10.0.0.0/24}]\n";
    assert_eq!(parse("lab.yaml", text).unwrap_or_else(|error| panic!("{error}")).traffic.via, "a");
}
