//! The labs in the binary are what the documentation says, and a plan survives being stored.

use std::net::Ipv4Addr;

use labctl_model::{Mode, Plan, TrafficPolicy, builtin_lab, builtin_names, parse};

fn plan(name: &str) -> Plan {
    let text = builtin_lab(name).expect("built in");
    parse(name, text).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn all_four_are_plans_of_their_own_mode() {
    assert_eq!(builtin_names().collect::<Vec<_>>(), ["dsr", "snat", "hybrid", "local"]);
    for name in builtin_names() {
        let plan = plan(name);
        assert_eq!(plan.lab, name);
        assert_eq!(plan.mode.to_string(), name);
        assert_eq!(plan.mtu, 1500);
    }
    assert!(builtin_lab("nothing").is_none());
}

#[test]
fn the_topology_is_the_same_in_all_of_them() {
    let dsr = plan("dsr");
    for name in builtin_names() {
        let plan = plan(name);
        assert_eq!(
            (plan.network, plan.pod_cidr, plan.client),
            (dsr.network, dsr.pod_cidr, dsr.client.clone())
        );
        assert_eq!(plan.nodes, dsr.nodes);
    }
}

#[test]
fn dsr_is_the_documented_example() {
    let plan = plan("dsr");
    assert_eq!(plan.client.address, Ipv4Addr::new(172, 18, 0, 1));
    assert_eq!(plan.ingress().address, Ipv4Addr::new(172, 18, 0, 3));
    assert_eq!(plan.service.node_port, 32000);
    let [(node, pod)] = plan.backends().collect::<Vec<_>>()[..] else { panic!("one backend") };
    assert_eq!((node.name.as_str(), node.address), ("worker2", Ipv4Addr::new(172, 18, 0, 2)));
    assert_eq!((pod.name.as_str(), pod.address), ("web-1", Ipv4Addr::new(10, 0, 1, 108)));
    assert_eq!(node.pod_gateway, Ipv4Addr::new(10, 0, 1, 1));
}

#[test]
fn local_asks_the_node_that_has_the_backend() {
    let plan = plan("local");
    assert_eq!(plan.mode, Mode::Local);
    assert_eq!(plan.service.external_traffic_policy, TrafficPolicy::Local);
    assert_eq!(plan.ingress().name, "worker2");
    assert_eq!(plan.ingress().pods.len(), 1);
}

#[test]
fn each_says_first_what_it_proves_and_where_its_schema_is() {
    for name in builtin_names() {
        let lines: Vec<&str> = builtin_lab(name).expect("built in").lines().take(6).collect();
        assert!(lines[..5].iter().all(|line| line.starts_with("# ")), "{name}: {lines:#?}");
        assert!(lines.iter().any(|line| line.starts_with("# Proves")), "{name}: {lines:#?}");
        assert_eq!(lines[5], "# yaml-language-server: $schema=../assets/lab.schema.json", "{name}");
    }
}

#[test]
fn plans_survive_json() {
    let extra =
        "faults: [{name: pod-mtu, mtu: 1280, on: [worker]}, {name: drop-options}]\nexpect: {mtu: fail}\n";
    for name in builtin_names() {
        let text = format!("{}{extra}", builtin_lab(name).expect("built in"));
        let plan = parse(name, &text).unwrap_or_else(|error| panic!("{error}"));
        let stored = serde_json::to_string(&plan).expect("plain JSON");
        assert_eq!(serde_json::from_str::<Plan>(&stored).expect("its own JSON"), plan);
    }
}
