//! The manifests of a lab: the templates of `assets/kubernetes`, filled in from the plan.
//!
//! Owns: every value that the templates leave open, and the names of what is made. Does not own: applying
//! them (`objects`). Pure.
//!
//! Values are filled in as JSON, which is YAML too: no name or number can change the shape of a document.

use labctl_model::{Affinity, NodePlan, Plan, Protocol, ProviderKind};
use serde_json::{Value, json};

/// Folder of the datapath's maps and links in a node.
pub const PIN_DIR: &str = "/sys/fs/bpf/labctl";
/// DaemonSet of the agent, and `app.kubernetes.io/name` of its pods.
pub const AGENT: &str = "labctl-agent";
/// DaemonSet that captures on the nodes of foreign clusters, and `app.kubernetes.io/name` of its pods.
pub const CAPTURE: &str = "labctl-capture";
/// Its container.
pub const CAPTURE_CONTAINER: &str = "capture";
/// Where the image has labctl.
pub const PROGRAM: &str = "/labctl";
/// Label with the lab's name on everything that labctl makes in a cluster.
pub const LAB_LABEL: &str = "labctl.lab";

/// First port that a program without rights may bind.
const FIRST_UNPRIVILEGED_PORT: u16 = 1024;
/// User of programs that need no rights: nobody.
const NOBODY: u32 = 65534;

/// What the agent does for the pods' network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// Everything: the CNI configuration and the routes between the nodes.
    Full,
    /// Nothing: the cluster has a network.
    None,
}

/// Which capabilities let the agent load its programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// BPF and PERFMON, which Linux has had since 5.8: the least that works.
    Bpf,
    /// SYS_ADMIN, which contains both: for nodes that cannot give the others. Docker before 23 makes "privileged"
    /// containers without them, and a pod has no more than its node.
    SysAdmin,
}

impl Rights {
    /// Of nodes with these bounding sets, as the kernel numbers capabilities (linux/capability.h).
    pub fn of(bounding_sets: impl IntoIterator<Item = u64>) -> Self {
        const BPF_AND_PERFMON: u64 = 1 << 39 | 1 << 38;
        let all = bounding_sets.into_iter().all(|set| set & BPF_AND_PERFMON == BPF_AND_PERFMON);
        if all { Self::Bpf } else { Self::SysAdmin }
    }

    /// With those for network devices, links and routes.
    fn capabilities(self) -> &'static [&'static str] {
        match self {
            Self::Bpf => &["BPF", "NET_ADMIN", "PERFMON"],
            Self::SysAdmin => &["NET_ADMIN", "SYS_ADMIN"],
        }
    }
}

/// Kubernetes namespace of everything that a lab has in its cluster. A kind cluster belongs to its lab; in
/// somebody else's each lab keeps to its own.
pub fn namespace(plan: &Plan) -> String {
    match plan.provider {
        ProviderKind::Kind | ProviderKind::Netns => "labctl".to_owned(),
        ProviderKind::Cluster => format!("labctl-{}", plan.lab),
    }
}

/// Label selector of the backends and of their Deployments.
pub fn backend_labels(plan: &Plan) -> String {
    format!("app.kubernetes.io/name={},{LAB_LABEL}={}", plan.service.name, plan.lab)
}

/// Label selector of the agent's pods.
pub fn agent_labels(plan: &Plan) -> String {
    format!("app.kubernetes.io/name={AGENT},{LAB_LABEL}={}", plan.lab)
}

/// Label selector of the capture pods.
pub fn capture_labels(plan: &Plan) -> String {
    format!("app.kubernetes.io/name={CAPTURE},{LAB_LABEL}={}", plan.lab)
}

/// The agent with all that it needs, its namespace first. `api_server` is the URL that nodes reach the API
/// server by without the help of any Service: a node's address.
pub fn agent(plan: &Plan, image: &str, api_server: &str, network: Network, rights: Rights) -> String {
    let args = agent_arguments(plan, api_server, network);
    let capabilities = json!(rights.capabilities());
    let values = [("image", json!(image)), ("args", json!(args)), ("capabilities", capabilities)];
    render(include_str!("../../../../assets/kubernetes/agent.yaml"), plan, &values)
}

/// The agent's objects that do not live in its namespace.
pub fn agent_roles(plan: &Plan) -> String {
    let name = format!("{}-agent", namespace(plan));
    let object = |kind| json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": {"name": name}});
    format!("{}\n---\n{}\n", object("ClusterRole"), object("ClusterRoleBinding"))
}

fn agent_arguments(plan: &Plan, api_server: &str, network: Network) -> Vec<String> {
    let datapath = &plan.datapath;
    let (network, services) = match network {
        // Whoever is the network of a cluster that has none is its kube-proxy too.
        Network::Full => ("full", None),
        // In a cluster that works, only the service under test is touched.
        Network::None => ("none", Some(service_under_test(plan))),
    };
    let pairs = [
        ("--lab", plan.lab.clone()),
        ("--api-server", api_server.to_owned()),
        ("--mode", plan.mode.to_string()),
        ("--wire", plan.wire.to_string()),
        ("--strip-option", datapath.strip_option.to_string()),
        ("--snat-ports", format!("{}-{}", datapath.snat_port_min, datapath.snat_port_max)),
        ("--flows", datapath.flows.to_string()),
        ("--events", datapath.events.to_string()),
        ("--pod-cidr", plan.pod_cidr.to_string()),
        ("--network", network.to_owned()),
        ("--pin-dir", PIN_DIR.to_owned()),
    ];
    let services = services.map(|service| ("--service", service));
    pairs.into_iter().chain(services).flat_map(|(option, value)| [option.to_owned(), value]).collect()
}

/// `namespace/name` of the Service that the lab asks.
pub fn service_under_test(plan: &Plan) -> String {
    let namespace = plan.service.foreign.clone().unwrap_or_else(|| namespace(plan));
    format!("{namespace}/{}", plan.service.name)
}

/// The Service and a Deployment per node and kind of backend. `node_name` tells the cluster's name of a node
/// of the plan.
pub fn backends(plan: &Plan, image: &str, node_name: impl Fn(&str) -> String) -> String {
    let mut text = service(plan);
    for node in &plan.nodes {
        for host_network in [false, true] {
            let replicas = node.pods.iter().filter(|pod| pod.host_network == host_network).count();
            if replicas > 0 {
                text.push_str("---\n");
                text.push_str(&deployment(plan, image, node, &node_name(&node.name), host_network, replicas));
            }
        }
    }
    text
}

fn service(plan: &Plan) -> String {
    let service = &plan.service;
    let port = |protocol: &Protocol| {
        json!({
            "name": protocol.to_string(),
            "protocol": kubernetes_protocol(*protocol),
            "port": service.port,
            "targetPort": service.target_port,
            "nodePort": service.node_port,
        })
    };
    let mut spec = json!({
        "type": "NodePort",
        "selector": {"app.kubernetes.io/name": service.name, LAB_LABEL: plan.lab},
        "ports": service.protocols.iter().map(port).collect::<Vec<_>>(),
        "externalTrafficPolicy": service.external_traffic_policy.to_string(),
        "sessionAffinity": service.session_affinity.to_string(),
    });
    if service.session_affinity == Affinity::ClientIP {
        spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": service.affinity_seconds}});
    }
    // Somebody else's cluster has Service addresses of its own, and so may have given this one away.
    // A kind cluster is made with a range that holds it.
    if plan.provider == ProviderKind::Kind {
        spec["clusterIP"] = json!(service.cluster_ip);
    }
    let values = [("service", json!(service.name)), ("spec", spec)];
    render(include_str!("../../../../assets/kubernetes/service.yaml"), plan, &values)
}

fn deployment(
    plan: &Plan,
    image: &str,
    node: &NodePlan,
    node_name: &str,
    host_network: bool,
    replicas: usize,
) -> String {
    let port = plan.service.target_port;
    // A pod reports the plan's name of its node: evidence speaks of nodes by it.
    // Shorter than the pod's grace period; until the last agent knows that a backend leaves, requests come.
    let args = ["--node", &node.name, "--port", &port.to_string(), "--linger", "25"];
    let privileged = port < FIRST_UNPRIVILEGED_PORT;
    let ports: Vec<_> = plan
        .service
        .protocols
        .iter()
        .map(|protocol| {
            json!({
                "name": protocol.to_string(),
                "protocol": kubernetes_protocol(*protocol),
                "containerPort": port,
            })
        })
        .collect();
    let values = [
        ("name", json!(deployment_name(plan, &node.name, host_network))),
        ("service", json!(plan.service.name)),
        ("replicas", json!(replicas)),
        ("node_name", json!(node_name)),
        ("host_network", json!(host_network)),
        ("image", json!(image)),
        ("args", json!(args)),
        ("ports", json!(ports)),
        ("target_port", json!(port)),
        ("user", json!(if privileged { 0 } else { NOBODY })),
        ("capabilities", if privileged { json!(["NET_BIND_SERVICE"]) } else { json!([]) }),
    ];
    render(include_str!("../../../../assets/kubernetes/backend.yaml"), plan, &values)
}

/// Name of the Deployment of a node's backends: `web-worker2`, `web-worker2-host`.
pub fn deployment_name(plan: &Plan, node: &str, host_network: bool) -> String {
    let suffix = if host_network { "-host" } else { "" };
    format!("{}-{node}{suffix}", plan.service.name)
}

/// The capture pods of a foreign cluster, their namespace first. Where the datapath is ours they also see its
/// pins and the network plugins' configuration: what the agent made there goes with the lab.
pub fn capture(plan: &Plan, image: &str) -> String {
    let mut folders = vec![("netns", "/run/netns")];
    if !plan.datapath.external {
        folders.extend([("bpffs", "/sys/fs/bpf"), ("cni-conf", "/etc/cni/net.d")]);
    }
    let mount = |(name, path): &(&str, &str)| json!({"name": name, "mountPath": path, "mountPropagation": "HostToContainer"});
    let volume = |(name, path): &(&str, &str)| json!({"name": name, "hostPath": {"path": path, "type": "DirectoryOrCreate"}});
    let values = [
        ("image", json!(image)),
        ("mounts", folders.iter().map(mount).collect()),
        ("volumes", folders.iter().map(volume).collect()),
    ];
    render(include_str!("../../../../assets/kubernetes/capture.yaml"), plan, &values)
}

const fn kubernetes_protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
    }
}

/// Fills in the values, and those that every template has.
fn render(template: &str, plan: &Plan, values: &[(&str, Value)]) -> String {
    // Only a kind lab has put its image on the nodes for sure.
    let pull = if plan.provider == ProviderKind::Kind { "Never" } else { "IfNotPresent" };
    let namespace = namespace(plan);
    let always = [("lab", json!(plan.lab)), ("namespace", json!(namespace)), ("pull", json!(pull))];
    // A name inside another, `{{namespace}}-agent`, is filled in without quotes.
    let template = template.replace("{{namespace}}-agent", &format!("{namespace}-agent"));
    let filled = always
        .iter()
        .chain(values)
        .fold(template, |text, (name, value)| text.replace(&format!("{{{{{name}}}}}"), &value.to_string()));
    debug_assert!(without_comments(&filled).all(|line| !line.contains("{{")), "{filled}");
    filled
}

fn without_comments(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.trim_start().starts_with('#'))
}
