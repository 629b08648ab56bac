//! The node agents of a lab, run again by hand with the state that `up` gave them.
//!
//! Owns: desired states from a lab's plan, changed by a test. Built here anew rather than taken from labctl: a
//! state is what an agent's callers promise each other, and this is one more caller.

use std::io::Write as _;
use std::net::Ipv4Addr;
use std::process::Stdio;

use datapath_agent::{
    Applied, AttachMode, BackendState, DatapathMode, DatapathOptions, LocalPod, MapRoom, NodeState, Proto,
    ServiceState,
};
use labctl_model::{Mode, NodePlan, Plan, Protocol, TrafficPolicy, WireFormat};

use crate::lab::Lab;
use crate::verdict::text;

impl Lab {
    /// The state of each node.
    pub(crate) fn node_states(&self) -> Vec<NodeState> {
        let lab = self.state();
        lab.plan().nodes.iter().map(|node| node_state(&lab, node)).collect()
    }

    /// Runs a node's agent in its namespace and waits for its end.
    pub(crate) fn run_agent(&self, state: &NodeState) -> Applied {
        let mut child = self
            .inside(&state.node, env!("CARGO_BIN_EXE_labctl"))
            .args(["node", "agent", "--lab", &self.name, "--pin-dir"])
            .arg(self.state().bpf_dir(&state.node))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the agent starts");
        let mut stdin = child.stdin.take().expect("it was piped");
        stdin.write_all(&serde_json::to_vec(state).expect("plain data")).expect("the agent reads its state");
        drop(stdin);
        let output = child.wait_with_output().expect("the agent ends");
        assert!(output.status.success(), "the agent of {} failed:\n{}", state.node, text(&output));
        serde_json::from_slice(&output.stdout).expect("what it applied")
    }
}

fn node_state(lab: &labctl_provider::Lab, node: &NodePlan) -> NodeState {
    let plan = lab.plan();
    let interface = |pod: &str| lab.pod_interface(pod).expect("a pod has a veth").1.name.clone();
    NodeState {
        node: node.name.clone(),
        uplink: "eth0".to_owned(),
        node_address: node.address,
        nodes: plan.nodes.iter().map(|node| node.address).collect(),
        pod_cidr: (plan.pod_cidr.network(), plan.pod_cidr.prefix_len()),
        pods: node
            .pods
            .iter()
            .map(|pod| LocalPod { address: pod.address, interface: interface(&pod.name) })
            .collect(),
        services: plan.service.protocols.iter().map(|protocol| service(plan, *protocol)).collect(),
        options: options(plan),
    }
}

fn service(plan: &Plan, protocol: Protocol) -> ServiceState {
    let backend = |address: Ipv4Addr, node: Ipv4Addr| BackendState {
        address,
        port: plan.service.target_port,
        node,
        terminating: false,
        retired: false,
    };
    ServiceState {
        id: 1,
        protocol: if protocol == Protocol::Tcp { Proto::Tcp } else { Proto::Udp },
        cluster_ip: Some((plan.service.cluster_ip, plan.service.port)),
        node_port: Some(plan.service.node_port),
        local_only: plan.service.external_traffic_policy == TrafficPolicy::Local,
        internal_local: false,
        affinity_seconds: None,
        backends: plan.backends().map(|(node, pod)| backend(pod.address, node.address)).collect(),
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
        attach: AttachMode::Auto,
        mutation: 0,
    }
}
