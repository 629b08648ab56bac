//! What a cluster's objects become: services, backends, routes.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use datapath_agent::{AttachMode, DatapathMode, DatapathOptions, MapRoom, Proto, ServiceState};
use k8s_openapi::api::core::v1::{Node, Service};
use kube::api::DynamicObject;
use labctl_agent::{
    AgentOptions, ClusterView, Conflist, FLICKER, NetworkMode, NodeRoute, RETENTION, Retention, Services,
    cluster_node, node_routes, services, slice,
};
use serde_json::{Value, json};

fn options() -> AgentOptions {
    AgentOptions {
        node: "worker".to_owned(),
        api_server: "https://172.18.0.4:6443".to_owned(),
        datapath: DatapathOptions {
            mode: DatapathMode::Dsr,
            wire_cilium: false,
            strip_option: true,
            snat_ports: (61000, 65535),
            flows: 1024,
            events: false,
            host_clients: true,
            attach: AttachMode::Auto,
            room: MapRoom::default(),
            mutation: 0,
        },
        pod_cidr: "10.0.0.0/8".parse().unwrap(),
        network: NetworkMode::Full,
        pins: "/sys/fs/bpf/labctl".into(),
        only: Vec::new(),
    }
}

fn node(name: &str, address: &str, cidr: Option<&str>) -> Node {
    let spec = cidr.map_or(json!({}), |cidr| json!({"podCIDR": cidr, "podCIDRs": ["fd00::/64", cidr]}));
    serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": spec,
        "status": {"addresses": [
            {"type": "Hostname", "address": name},
            {"type": "InternalIP", "address": "fd00::1"},
            {"type": "InternalIP", "address": address},
        ]},
    }))
    .unwrap()
}

fn service(name: &str, spec: Value) -> Arc<Service> {
    Arc::new(
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "shop"}, "spec": spec}))
            .unwrap(),
    )
}

fn node_port() -> Value {
    json!({
        "type": "NodePort", "clusterIP": "10.96.0.80", "sessionAffinity": "None",
        "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": "web", "nodePort": 32000}],
    })
}

/// An EndpointSlice in one of its two versions.
fn endpoint_slice(version: &str, service: &str, endpoints: &Value, ports: &Value) -> DynamicObject {
    serde_json::from_value(json!({
        "apiVersion": format!("discovery.k8s.io/{version}"), "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{service}-x"), "namespace": "shop",
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": "IPv4", "endpoints": endpoints, "ports": ports,
    }))
    .unwrap()
}

fn web() -> Value {
    json!([{"name": "http", "protocol": "TCP", "port": 8080}])
}

fn view(services: Vec<Arc<Service>>, slices: &[DynamicObject]) -> ClusterView {
    let nodes = [
        node("control-plane", "172.18.0.4", Some("10.0.0.0/24")),
        node("worker", "172.18.0.3", Some("10.0.2.0/24")),
        node("worker2", "172.18.0.2", Some("10.0.1.0/24")),
    ];
    ClusterView {
        nodes: nodes.iter().filter_map(cluster_node).collect(),
        services,
        slices: slices.iter().filter_map(slice).collect(),
    }
}

fn found(spec: Value, endpoints: &Value) -> Services {
    let slices = [endpoint_slice("v1", "web", endpoints, &web())];
    services(&view(vec![service("web", spec)], &slices), &options())
}

/// The only service port.
fn only(found: &Services) -> &ServiceState {
    assert_eq!(found.states.len(), 1, "{found:?}");
    &found.states[0]
}

fn ip(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

#[test]
fn a_node_port_service_has_both_frontends_and_the_backends_of_its_port() {
    let endpoints =
        json!([{"addresses": ["10.0.1.108"], "nodeName": "worker2", "conditions": {"ready": true}}]);
    let found = found(node_port(), &endpoints);
    let state = only(&found);
    assert_eq!(state.cluster_ip, Some((ip("10.96.0.80"), 80)));
    assert_eq!(state.node_port, Some(32000));
    assert_eq!((state.local_only, state.internal_local, state.affinity_seconds), (false, false, None));
    let backend = &state.backends[0];
    assert_eq!((backend.address, backend.port, backend.node), (ip("10.0.1.108"), 8080, ip("172.18.0.2")));
    assert!(!backend.terminating && !backend.retired);
    assert!(found.left_out.is_empty());
}

#[test]
fn the_older_slices_give_the_same() {
    let new = json!([{"addresses": ["10.0.1.108"], "nodeName": "worker2", "conditions": {"ready": true}}]);
    let old = json!([{
        "addresses": ["10.0.1.108"], "conditions": {"ready": true},
        "topology": {"kubernetes.io/hostname": "worker2"},
    }]);
    let spec = || vec![service("web", node_port())];
    let both = [("v1", new), ("v1beta1", old)].map(|(version, endpoints)| {
        services(&view(spec(), &[endpoint_slice(version, "web", &endpoints, &web())]), &options())
    });
    assert_eq!(both[0], both[1]);
    assert_eq!(only(&both[0]).backends.len(), 1);
}

#[test]
fn conditions_say_who_gets_new_connections() {
    let endpoints = json!([
        {"addresses": ["10.0.1.1"], "nodeName": "worker2"},
        {"addresses": ["10.0.1.2"], "nodeName": "worker2",
            "conditions": {"ready": false, "serving": true, "terminating": true}},
        {"addresses": ["10.0.1.3"], "nodeName": "worker2",
            "conditions": {"ready": false, "serving": false, "terminating": true}},
        {"addresses": ["10.0.1.4"], "nodeName": "worker2", "conditions": {"ready": false}},
    ]);
    let found = found(node_port(), &endpoints);
    let backends = &only(&found).backends;
    let flags: Vec<(bool, bool)> = backends.iter().map(|b| (b.terminating, b.retired)).collect();
    assert_eq!(flags, [(false, false), (true, false), (false, true), (false, true)]);
}

#[test]
fn a_backend_of_datagrams_that_is_not_ready_is_known_all_the_same() {
    let spec = json!({
        "type": "ClusterIP", "clusterIP": "10.96.0.80",
        "ports": [{"name": "dns", "protocol": "UDP", "port": 53}, {"name": "dns-tcp", "protocol": "TCP", "port": 53}],
    });
    let ports = json!([{"name": "dns", "protocol": "UDP", "port": 5353}]);
    let found = |second_is_ready: bool| {
        let endpoints = json!([
            {"addresses": ["10.0.1.1"], "nodeName": "worker2"},
            {"addresses": ["10.0.1.2"], "nodeName": "worker2", "conditions": {"ready": second_is_ready}},
        ]);
        let slices = [endpoint_slice("v1", "web", &endpoints, &ports)];
        services(&view(vec![service("web", spec.clone())], &slices), &options()).states
    };
    let start = Instant::now();
    let mut retention = Retention::default();
    let mut at = |seconds: u64, second_is_ready: bool| {
        let mut states = found(second_is_ready);
        retention.retain(&mut states, start + Duration::from_secs(seconds));
        let state = states.iter().find(|state| state.protocol == Proto::Udp).unwrap();
        state.backends.iter().map(|b| (b.address, b.terminating, b.retired)).collect::<Vec<_>>()
    };
    let first = (ip("10.0.1.1"), false, false);
    let second = |terminating, retired| (ip("10.0.1.2"), terminating, retired);
    assert_eq!(at(0, false), [first, second(false, true)], "another node may hear first that it is ready");
    assert_eq!(at(1, true), [first, second(false, false)]);
    assert_eq!(at(2, false), [first, second(true, false)], "its kubelet may have started again");
    assert_eq!(at(30, false), [first, second(false, true)], "another node may not have heard yet");
}

#[test]
fn ports_find_their_backends_by_name() {
    let spec = json!({"type": "ClusterIP", "clusterIP": "10.96.0.80", "ports": [
        {"name": "http", "port": 80}, {"name": "admin", "port": 81}, {"name": "sctp", "port": 82, "protocol": "SCTP"},
    ]});
    let ports = json!([
        {"name": "admin", "protocol": "TCP", "port": 9090}, {"name": "http", "protocol": "TCP", "port": 8080},
    ]);
    let endpoints = json!([{"addresses": ["10.0.1.1"], "nodeName": "worker2"}]);
    let slices = [endpoint_slice("v1", "web", &endpoints, &ports)];
    let found = services(&view(vec![service("web", spec)], &slices), &options());
    let ports: Vec<(u16, u16)> =
        found.states.iter().map(|s| (s.cluster_ip.unwrap().1, s.backends[0].port)).collect();
    assert_eq!(ports, [(80, 8080), (81, 9090)]);
    assert_eq!(found.states[0].id, found.states[1].id, "affinity is of the service, not of a port");
    assert_eq!(found.left_out, ["port 82/SCTP of service shop/web: only TCP and UDP are served"]);
}

#[test]
fn policies_and_affinity_carry_over() {
    let mut spec = node_port();
    spec["externalTrafficPolicy"] = json!("Local");
    spec["internalTrafficPolicy"] = json!("Local");
    spec["sessionAffinity"] = json!("ClientIP");
    spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": 60}});
    let found = found(spec, &json!([]));
    let state = only(&found);
    assert_eq!((state.local_only, state.internal_local, state.affinity_seconds), (true, true, Some(60)));
}

#[test]
fn mode_local_is_local_whatever_the_service_says() {
    let mut options = options();
    options.datapath.mode = DatapathMode::Local;
    let found = services(&view(vec![service("web", node_port())], &[]), &options);
    assert!(only(&found).local_only);
}

#[test]
fn the_api_server_is_a_backend_on_its_node() {
    let endpoints = json!([{"addresses": ["172.18.0.4"], "conditions": {"ready": true}}]);
    let found = found(node_port(), &endpoints);
    let backend = &only(&found).backends[0];
    assert_eq!((backend.address, backend.node), (ip("172.18.0.4"), ip("172.18.0.4")));
}

#[test]
fn an_endpoint_outside_the_cluster_is_left_out_and_the_others_are_not() {
    let endpoints = json!([
        {"addresses": ["192.0.2.7"]},
        {"addresses": ["10.0.2.9"]},
    ]);
    let found = found(node_port(), &endpoints);
    let backends = &only(&found).backends;
    assert_eq!(
        backends.iter().map(|b| (b.address, b.node)).collect::<Vec<_>>(),
        [(ip("10.0.2.9"), ip("172.18.0.3"))]
    );
    assert_eq!(
        found.left_out,
        ["endpoint 192.0.2.7 of service shop/web: it is neither a node nor a pod of the cluster"]
    );
}

#[test]
fn an_endpoint_in_two_slices_is_one_backend_at_its_best() {
    let slices = [json!({"ready": false}), json!({"ready": true})].map(|conditions| {
        let endpoints = json!([{"addresses": ["10.0.1.1"], "nodeName": "worker2", "conditions": conditions}]);
        endpoint_slice("v1", "web", &endpoints, &web())
    });
    let found = services(&view(vec![service("web", node_port())], &slices), &options());
    let backends = &only(&found).backends;
    assert_eq!(backends.len(), 1);
    assert!(!backends[0].retired);
}

#[test]
fn services_without_a_cluster_ip_need_no_load_balancer() {
    let headless = json!({"type": "ClusterIP", "clusterIP": "None", "ports": [{"port": 80}]});
    let external = json!({"type": "ExternalName", "externalName": "example.com", "ports": [{"port": 80}]});
    let six = json!({"type": "ClusterIP", "clusterIP": "fd00::80", "ports": [{"port": 80}]});
    let dual = json!({
        "type": "ClusterIP", "clusterIP": "fd00::80", "clusterIPs": ["fd00::80", "10.96.0.81"],
        "ports": [{"port": 80}],
    });
    let all = [headless, external, six, dual].into_iter().enumerate();
    let all = all.map(|(number, spec)| service(&format!("s{number}"), spec)).collect();
    let found = services(&view(all, &[]), &options());
    assert_eq!(only(&found).cluster_ip, Some((ip("10.96.0.81"), 80)));
}

#[test]
fn the_agent_can_be_held_to_some_services() {
    let mut second = node_port();
    second["clusterIP"] = json!("10.96.0.81");
    let all = vec![service("web", node_port()), service("other", second)];
    let mut options = options();
    options.only = vec!["shop/other".parse().unwrap()];
    let found = services(&view(all, &[]), &options);
    assert_eq!(only(&found).cluster_ip.unwrap().0, ip("10.96.0.81"));
}

#[test]
fn a_backend_that_left_keeps_its_connections_for_a_while() {
    let endpoints = |names: &[&str]| {
        let list = names.iter().map(|a| json!({"addresses": [a], "nodeName": "worker2"}));
        Value::from(list.collect::<Vec<_>>())
    };
    let mut retention = Retention::default();
    let start = Instant::now();
    let mut at = |seconds: u64, names: &[&str]| {
        let mut states = found(node_port(), &endpoints(names)).states;
        retention.retain(&mut states, start + Duration::from_secs(seconds));
        states[0].backends.iter().map(|b| (b.address, b.retired)).collect::<Vec<_>>()
    };
    let (one, two) = (ip("10.0.1.1"), ip("10.0.1.2"));
    assert_eq!(at(0, &["10.0.1.1", "10.0.1.2"]), [(one, false), (two, false)]);
    assert_eq!(at(1, &["10.0.1.2"]), [(two, false), (one, true)]);
    assert_eq!(at(RETENTION.as_secs() - 1, &["10.0.1.2"]), [(two, false), (one, true)]);
    assert_eq!(at(RETENTION.as_secs(), &["10.0.1.2"]), [(two, false)]);
    assert_eq!(at(RETENTION.as_secs() + 1, &["10.0.1.1", "10.0.1.2"]), [(one, false), (two, false)]);
}

#[test]
fn a_backend_that_was_ready_a_moment_ago_serves_for_want_of_another() {
    let mut retention = Retention::default();
    let start = Instant::now();
    let mut at = |seconds: u64, ready: bool| {
        let conditions = json!({"ready": ready});
        let endpoints = json!([{"addresses": ["10.0.1.1"], "nodeName": "worker2", "conditions": conditions}]);
        let mut states = found(node_port(), &endpoints).states;
        retention.retain(&mut states, start + Duration::from_secs(seconds));
        (states[0].backends[0].terminating, states[0].backends[0].retired)
    };
    assert_eq!(at(0, false), (false, true), "it never was ready");
    assert_eq!(at(1, true), (false, false));
    assert_eq!(at(2, false), (true, false));
    assert_eq!(at(FLICKER.as_secs(), false), (true, false));
    assert_eq!(at(FLICKER.as_secs() + 1, false), (false, true));
    assert_eq!(at(FLICKER.as_secs() + 2, true), (false, false));
}

#[test]
fn other_nodes_pods_are_reached_by_way_of_their_node() {
    let mut view = view(Vec::new(), &[]);
    view.nodes.extend(cluster_node(&node("new", "172.18.0.9", None)));
    let routes = node_routes(&view, "worker");
    let route = |pods: &str, node: &str| NodeRoute { pods: pods.parse().unwrap(), node: ip(node) };
    assert_eq!(routes, [route("10.0.0.0/24", "172.18.0.4"), route("10.0.1.0/24", "172.18.0.2")]);
}

#[test]
fn a_node_without_an_internal_ipv4_address_is_no_node_yet() {
    let node: Node = serde_json::from_value(json!({
        "metadata": {"name": "young"},
        "status": {"addresses": [{"type": "Hostname", "address": "young"}]},
    }))
    .unwrap();
    assert_eq!(cluster_node(&node), None);
}

#[test]
fn the_cni_configuration_names_the_nodes_range_and_mtu() {
    let conflist = Conflist { pods: "10.0.2.0/24".parse().unwrap(), mtu: 1450, portmap: true };
    let list: Value = serde_json::from_str(&conflist.text()).unwrap();
    assert_eq!(list["plugins"][0]["type"], "ptp");
    assert_eq!(list["plugins"][0]["mtu"], 1450);
    assert_eq!(list["plugins"][0]["ipMasq"], false);
    assert_eq!(list["plugins"][0]["ipam"]["ranges"][0][0]["subnet"], "10.0.2.0/24");
    assert_eq!(list["plugins"][1]["type"], "portmap");
    let without: Value = serde_json::from_str(&Conflist { portmap: false, ..conflist }.text()).unwrap();
    assert_eq!(without["plugins"].as_array().unwrap().len(), 1);
}
