//! A node's datapath in a test: its maps filled from a state, its programs ready to be run on bytes.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use anyhow::Result;
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use datapath_agent::{
    AttachMode, BackendState, DatapathMode, DatapathOptions, Links, LocalPod, NodeState, Proto, ServiceState,
};
use datapath_types::Endpoint;
use labctl_tests::bpffs::BpfFs;

/// Addresses of the lab that the tests play in, those of labs/dsr.yaml.
pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 1);
/// The node that the client asks.
pub(crate) const WORKER: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 3);
/// The node with the pod.
pub(crate) const WORKER2: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 2);
/// The third node.
pub(crate) const CONTROL: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 4);
/// The pod on worker2.
pub(crate) const POD: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 108);
/// A pod on worker.
pub(crate) const LOCAL_POD: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 7);
/// ClusterIP of the service.
pub(crate) const CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 80);
/// NodePort of the service.
pub(crate) const NODE_PORT: u16 = 32000;
/// Port of the pods.
pub(crate) const POD_PORT: u16 = 8080;
/// Interface index of the uplink.
pub(crate) const UPLINK: u32 = 7;
/// Interface index of the pod's veth.
pub(crate) const POD_VETH: u32 = 9;

/// tc actions.
pub(crate) const OK: u32 = 0;
pub(crate) const SHOT: u32 = 2;
pub(crate) const REDIRECT: u32 = 7;

/// A node with its maps and programs.
pub(crate) struct Node {
    pub(crate) ebpf: aya::Ebpf,
    pub(crate) fs: BpfFs,
}

/// What came out of a program.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) action: u32,
    pub(crate) bytes: Vec<u8>,
    pub(crate) mark: u32,
}

/// A state with both protocols of the service and these backends `(pod, node)`.
pub(crate) fn state(node: Ipv4Addr, mode: DatapathMode, backends: &[(Ipv4Addr, Ipv4Addr)]) -> NodeState {
    let service = |protocol| ServiceState {
        id: 1,
        protocol,
        cluster_ip: Some((CLUSTER_IP, 80)),
        node_port: Some(NODE_PORT),
        local_only: mode == DatapathMode::Local,
        affinity_seconds: None,
        backends: backends
            .iter()
            .map(|(address, node)| BackendState {
                address: *address,
                port: POD_PORT,
                node: *node,
                terminating: false,
            })
            .collect(),
    };
    NodeState {
        node: "node".into(),
        uplink: "eth0".into(),
        node_address: node,
        nodes: vec![WORKER, WORKER2, CONTROL],
        pod_cidr: (Ipv4Addr::new(10, 0, 0, 0), 8),
        pods: backends
            .iter()
            .filter(|(pod, on)| *on == node && pod != on)
            .map(|(address, _)| LocalPod { address: *address, interface: "lxc".into() })
            .collect(),
        services: vec![service(Proto::Tcp), service(Proto::Udp)],
        options: DatapathOptions {
            mode,
            wire_cilium: false,
            strip_option: true,
            snat_ports: (61000, 65535),
            flows: 1024,
            events: false,
            attach: AttachMode::Auto,
            mutation: 0,
        },
    }
}

impl Node {
    /// Loads a node with every program.
    pub(crate) fn new(state: &NodeState) -> Result<Self> {
        Self::with_pod_mtu(state, 1500)
    }

    /// Loads a node whose pods' veths have this MTU.
    pub(crate) fn with_pod_mtu(state: &NodeState, mtu: u32) -> Result<Self> {
        let fs = BpfFs::mount()?;
        let endpoint = |ifindex, mtu| Endpoint { ifindex, mtu };
        let pods: BTreeMap<_, _> = state.pods.iter().map(|p| (p.address, endpoint(POD_VETH, mtu))).collect();
        let links = Links { uplink: endpoint(UPLINK, 1500), pods };
        let (mut ebpf, _) = datapath_agent::open(state, &links, fs.path())?;
        for name in ["from_netdev", "to_netdev", "from_pod", "to_pod"] {
            let program: &mut SchedClassifier = ebpf.program_mut(name).expect(name).try_into()?;
            program.load()?;
        }
        Ok(Self { ebpf, fs })
    }

    /// Runs one program once on a frame.
    pub(crate) fn run(&mut self, program: &str, frame: &[u8]) -> Output {
        let program: &mut SchedClassifier =
            self.ebpf.program_mut(program).expect(program).try_into().expect("classifier");
        let mut bytes = vec![0; 70_000];
        // struct __sk_buff is 192 bytes; the kernel writes the mark back at offset 8.
        let mut ctx_out = vec![0; 192];
        let result = program
            .test_run(TestRunOptions {
                data_in: Some(frame),
                data_out: Some(&mut bytes),
                ctx_out: Some(&mut ctx_out),
                ..TestRunOptions::default()
            })
            .expect("BPF_PROG_TEST_RUN");
        bytes.truncate(result.data_size_out as usize);
        let mark = u32::from_ne_bytes(ctx_out[8..12].try_into().expect("four bytes"));
        Output { action: result.return_value, bytes, mark }
    }

    /// What the node counted.
    pub(crate) fn status(&self) -> datapath_agent::DatapathStatus {
        datapath_agent::status(self.fs.path()).expect("pins are there")
    }

    /// How often this drop reason was counted.
    pub(crate) fn drops(&self, label: &str) -> u64 {
        self.status().drops.get(label).copied().unwrap_or(0)
    }
}
