//! Every manifest is complete, is what Kubernetes calls by that name, and says what the plan says.

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{Container, Namespace, Service, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use labctl_model::{Affinity, Plan, ProviderKind, builtin_lab, parse};
use labctl_provider::kubernetes::manifests::{self, Network, Rights};
use serde::de::DeserializeOwned;
use serde_json::Value;

const IMAGE: &str = "labctl/node-role:0123456789ab";
const API: &str = "https://172.18.0.4:6443";

fn plan(lab: &str, provider: ProviderKind) -> Plan {
    let mut plan = parse(lab, builtin_lab(lab).expect("a bundled lab")).expect("a valid lab");
    plan.provider = provider;
    plan
}

/// The documents of a manifest; none may have a gap left.
fn documents(yaml: &str) -> Vec<Value> {
    let text: Vec<_> = yaml.lines().filter(|line| !line.trim_start().starts_with('#')).collect();
    assert!(!text.concat().contains("{{"), "a gap is left in\n{yaml}");
    serde_saphyr::from_multiple(yaml).expect("YAML")
}

/// The only object of a kind, read strictly: a field that Kubernetes does not know would be dropped on the way
/// there and back.
fn only<T: DeserializeOwned + serde::Serialize>(documents: &[Value], kind: &str) -> T {
    let all = of_kind(documents, kind);
    assert_eq!(all.len(), 1, "objects of kind {kind}");
    all.into_iter().next().unwrap()
}

fn of_kind<T: DeserializeOwned + serde::Serialize>(documents: &[Value], kind: &str) -> Vec<T> {
    let read = |document: &Value| {
        let object: T = serde_json::from_value(document.clone()).expect(kind);
        let back = serde_json::to_value(&object).unwrap();
        assert_known(document, &back, kind);
        object
    };
    documents.iter().filter(|d| d["kind"] == kind).map(read).collect()
}

/// Every field that was written is one that Kubernetes' own type kept.
fn assert_known(written: &Value, kept: &Value, at: &str) {
    match (written, kept) {
        (Value::Object(written), kept) => {
            for (key, value) in written {
                let empty = value.as_array().is_some_and(Vec::is_empty);
                assert!(empty || !kept[key].is_null(), "{at}.{key} is unknown to Kubernetes");
                assert_known(value, &kept[key], &format!("{at}.{key}"));
            }
        }
        (Value::Array(written), Value::Array(kept)) => {
            for (n, (written, kept)) in written.iter().zip(kept).enumerate() {
                assert_known(written, kept, &format!("{at}[{n}]"));
            }
        }
        _ => {}
    }
}

fn arguments(container: &Container) -> Vec<&str> {
    container.command.iter().chain(&container.args).flatten().map(String::as_str).collect()
}

/// The value that follows an option.
fn option<'a>(arguments: &[&'a str], name: &str) -> &'a str {
    let at = arguments.iter().position(|a| *a == name).unwrap_or_else(|| panic!("{name} in {arguments:?}"));
    arguments[at + 1]
}

#[test]
fn the_agent_is_told_the_plan() {
    let plan = plan("dsr", ProviderKind::Kind);
    let documents = documents(&manifests::agent(&plan, IMAGE, API, Network::Full, Rights::Bpf));
    let namespace: Namespace = only(&documents, "Namespace");
    assert_eq!(namespace.metadata.name.as_deref(), Some("labctl"));
    assert_eq!(namespace.metadata.labels.unwrap()["labctl.lab"], "dsr");
    let set: DaemonSet = only(&documents, "DaemonSet");
    let pod = set.spec.unwrap().template.spec.unwrap();
    assert_eq!(pod.host_network, Some(true));
    let agent = pod.containers.iter().find(|c| c.name == "agent").expect("a container `agent`");
    assert_eq!((agent.image.as_deref(), agent.image_pull_policy.as_deref()), (Some(IMAGE), Some("Never")));
    let arguments = arguments(agent);
    for (name, value) in [
        ("--lab", "dsr"),
        ("--node-name", "$(NODE_NAME)"),
        ("--api-server", API),
        ("--mode", "dsr"),
        ("--wire", "network"),
        ("--network", "full"),
        ("--pod-cidr", "10.0.0.0/8"),
        ("--pin-dir", manifests::PIN_DIR),
    ] {
        assert_eq!(option(&arguments, name), value, "{name}");
    }
}

/// Reading what it needs, and nothing else.
#[test]
fn the_agent_may_only_read() {
    let documents = documents(&manifests::agent(
        &plan("dsr", ProviderKind::Kind),
        IMAGE,
        API,
        Network::Full,
        Rights::Bpf,
    ));
    let account: ServiceAccount = only(&documents, "ServiceAccount");
    let binding: ClusterRoleBinding = only(&documents, "ClusterRoleBinding");
    let role: ClusterRole = only(&documents, "ClusterRole");
    assert_eq!(binding.subjects.unwrap()[0].name, account.metadata.name.unwrap());
    assert_eq!(binding.role_ref.name, role.metadata.name.unwrap());
    for rule in role.rules.unwrap() {
        assert!(rule.verbs.iter().all(|v| ["get", "list", "watch"].contains(&v.as_str())), "{rule:?}");
        let resources = rule.resources.unwrap();
        let needed = ["nodes", "services", "endpointslices"];
        assert!(resources.iter().all(|r| needed.contains(&r.as_str())), "{resources:?}");
    }
}

#[test]
fn labs_of_one_cluster_share_no_name() {
    let mut plan = plan("dsr", ProviderKind::Cluster);
    plan.lab = "one".into();
    let one = documents(&manifests::agent(&plan, IMAGE, API, Network::None, Rights::Bpf));
    plan.lab = "two".into();
    let two = documents(&manifests::agent(&plan, IMAGE, API, Network::None, Rights::Bpf));
    let place =
        |d: &Value| (d["kind"].clone(), d["metadata"]["namespace"].clone(), d["metadata"]["name"].clone());
    for object in &one {
        assert!(two.iter().all(|other| place(other) != place(object)), "both have {:?}", place(object));
    }
}

#[test]
fn the_service_says_what_the_plan_says() {
    let mut plan = plan("dsr", ProviderKind::Kind);
    plan.service.session_affinity = Affinity::ClientIP;
    plan.service.affinity_seconds = 600;
    let documents = documents(&manifests::backends(&plan, IMAGE, |name| format!("labctl-dsr-{name}")));
    let service: Service = only(&documents, "Service");
    let spec = service.spec.unwrap();
    assert_eq!(spec.type_.as_deref(), Some("NodePort"));
    assert_eq!(spec.cluster_ip.as_deref(), Some("10.96.0.80"));
    assert_eq!(spec.external_traffic_policy.as_deref(), Some("Cluster"));
    assert_eq!(spec.session_affinity.as_deref(), Some("ClientIP"));
    let affinity = spec.session_affinity_config.unwrap().client_ip.unwrap();
    assert_eq!(affinity.timeout_seconds, Some(600));
    let ports: Vec<_> = spec.ports.unwrap();
    let protocols: Vec<_> = ports.iter().map(|p| p.protocol.as_deref().unwrap()).collect();
    assert_eq!(protocols, ["TCP", "UDP"], "written out, for the API server of 1.20");
    assert!(ports.iter().all(|p| p.node_port == Some(32000) && p.port == 80));
    let deployment: Deployment = only(&documents, "Deployment");
    let labels = deployment.spec.unwrap().template.metadata.unwrap().labels.unwrap();
    assert!(spec.selector.unwrap().iter().all(|(key, value)| labels.get(key) == Some(value)));
}

/// A foreign cluster may have given the lab file's address to another Service.
#[test]
fn a_foreign_cluster_chooses_the_cluster_ip() {
    let plan = plan("dsr", ProviderKind::Cluster);
    let documents = documents(&manifests::backends(&plan, IMAGE, str::to_owned));
    let service: Service = only(&documents, "Service");
    assert_eq!(service.spec.unwrap().cluster_ip, None);
    let deployment: Deployment = only(&documents, "Deployment");
    let pod = deployment.spec.unwrap().template.spec.unwrap();
    assert_eq!(pod.containers[0].image_pull_policy.as_deref(), Some("IfNotPresent"));
}

#[test]
fn each_node_has_its_backends() {
    let mut plan = plan("dsr", ProviderKind::Kind);
    let template = plan.backends().next().unwrap().1.clone();
    for (name, host_network) in [("web-2", false), ("web-3", true)] {
        let pod = labctl_model::PodPlan { name: name.into(), host_network, ..template.clone() };
        plan.nodes.last_mut().unwrap().pods.push(pod);
    }
    let documents = documents(&manifests::backends(&plan, IMAGE, |name| format!("labctl-dsr-{name}")));
    let deployments: Vec<Deployment> = of_kind(&documents, "Deployment");
    let read = |d: &Deployment| {
        let spec = d.spec.clone().unwrap();
        let pod = spec.template.spec.unwrap();
        let arguments = arguments(&pod.containers[0]).into_iter().map(str::to_owned).collect::<Vec<_>>();
        let words: Vec<_> = arguments.iter().map(String::as_str).collect();
        assert_eq!(option(&words, "--node"), "worker2");
        assert_eq!(option(&words, "--port"), "8080");
        assert_eq!(pod.automount_service_account_token, Some(false));
        (d.metadata.name.clone().unwrap(), pod.node_name.unwrap(), spec.replicas, pod.host_network)
    };
    let found: Vec<_> = deployments.iter().map(read).collect();
    let node = "labctl-dsr-worker2".to_owned();
    assert_eq!(
        found,
        [
            ("web-worker2".to_owned(), node.clone(), Some(2), Some(false)),
            ("web-worker2-host".to_owned(), node, Some(1), Some(true)),
        ]
    );
}

/// Backends have no rights, but the one that a low port takes.
#[test]
fn backends_have_the_rights_that_their_port_takes() {
    let mut plan = plan("dsr", ProviderKind::Kind);
    for (port, user, added) in [(8080, 65534, vec![]), (80, 0, vec!["NET_BIND_SERVICE".to_owned()])] {
        plan.service.target_port = port;
        let documents = documents(&manifests::backends(&plan, IMAGE, str::to_owned));
        let deployment: Deployment = only(&documents, "Deployment");
        let pod = deployment.spec.unwrap().template.spec.unwrap();
        let context = pod.containers[0].security_context.clone().unwrap();
        assert_eq!(context.run_as_user, Some(user));
        let capabilities = context.capabilities.unwrap();
        assert_eq!(capabilities.drop, Some(vec!["ALL".to_owned()]));
        assert_eq!(capabilities.add.unwrap_or_default(), added);
    }
}

#[test]
fn capture_pods_see_only_what_is_ours() {
    let ours = vec!["/run/netns", "/sys/fs/bpf", "/etc/cni/net.d"];
    for (external, folders) in [(true, vec!["/run/netns"]), (false, ours)] {
        let mut plan = plan("snat", ProviderKind::Cluster);
        plan.datapath.external = external;
        let documents = documents(&manifests::capture(&plan, IMAGE));
        let namespace: Namespace = only(&documents, "Namespace");
        assert_eq!(namespace.metadata.name.as_deref(), Some("labctl-snat"));
        let set: DaemonSet = only(&documents, "DaemonSet");
        let pod = set.spec.unwrap().template.spec.unwrap();
        let container = &pod.containers[0];
        assert_eq!(container.name, manifests::CAPTURE_CONTAINER);
        let mounts = container.volume_mounts.clone().unwrap();
        let paths: Vec<_> = mounts.iter().map(|m| m.mount_path.as_str()).collect();
        assert_eq!(paths, folders);
        let context = container.security_context.clone().unwrap();
        assert_eq!(context.privileged, None);
    }
}

/// In a cluster that works, all its other Services stay whose they are.
#[test]
fn an_agent_in_a_working_cluster_serves_the_service_under_test_alone() {
    let mut plan = plan("dsr", ProviderKind::Cluster);
    let services = |plan: &Plan, network| {
        let documents = documents(&manifests::agent(plan, IMAGE, API, network, Rights::Bpf));
        let set: DaemonSet = only(&documents, "DaemonSet");
        let pod = set.spec.unwrap().template.spec.unwrap();
        let agent = pod.containers.iter().find(|c| c.name == "agent").unwrap();
        let words: Vec<_> = arguments(agent).into_iter().map(str::to_owned).collect();
        words.windows(2).filter(|pair| pair[0] == "--service").map(|pair| pair[1].clone()).collect::<Vec<_>>()
    };
    assert_eq!(services(&plan, Network::None), ["labctl-dsr/web"]);
    assert_eq!(services(&plan, Network::Full), [""; 0]);
    plan.service.foreign = Some("shop".into());
    assert_eq!(services(&plan, Network::None), ["shop/web"]);
}

/// A pod has no capability that its node lacks.
#[test]
fn the_agent_asks_for_what_its_nodes_have() {
    let everything = 0x1ff_ffff_ffff;
    let of_docker_20 = 0x3f_ffff_ffff;
    assert_eq!(Rights::of([everything, everything]), Rights::Bpf);
    assert_eq!(Rights::of([everything, of_docker_20]), Rights::SysAdmin);
    for (rights, expected) in
        [(Rights::Bpf, &["BPF", "NET_ADMIN", "PERFMON"][..]), (Rights::SysAdmin, &["NET_ADMIN", "SYS_ADMIN"])]
    {
        let plan = plan("dsr", ProviderKind::Kind);
        let documents = documents(&manifests::agent(&plan, IMAGE, API, Network::Full, rights));
        let set: DaemonSet = only(&documents, "DaemonSet");
        let pod = set.spec.unwrap().template.spec.unwrap();
        let security = pod.containers[0].security_context.clone().unwrap();
        assert_eq!(security.privileged, None);
        assert_eq!(security.capabilities.unwrap().add.unwrap(), expected);
    }
}
