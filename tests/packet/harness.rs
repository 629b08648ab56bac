//! A node's datapath in a test: its maps filled from a state, its programs ready to be run on bytes.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use anyhow::Result;
use aya::maps::{HashMap, Map, MapData, PerCpuArray, RingBuf};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use datapath_agent::{
    AttachMode, BackendState, DatapathMode, DatapathOptions, FlowRecord, Links, LocalPod, MapRoom, NodeState,
    Proto, ServiceState,
};
use datapath_types::{
    Counter, DropReason, Endpoint, Event, Flow, FlowKey, FlowKind, Frontend, MARK_DONE, NodeEntry, SocketKey,
};
use labctl_tests::bpffs::BpfFs;

use crate::check::assert_frame;
use crate::frame::{Frame, NEIGHBOUR, at};

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

/// Every program of the object.
pub(crate) const PROGRAMS: [&str; 4] = ["from_netdev", "to_netdev", "from_pod", "to_pod"];

/// The client's socket in most tests.
pub(crate) fn client() -> SocketAddrV4 {
    at(CLIENT, 43210)
}

/// The frontend that the client asks.
pub(crate) fn vip() -> SocketAddrV4 {
    at(WORKER, NODE_PORT)
}

/// The remote pod's socket.
pub(crate) fn pod() -> SocketAddrV4 {
    at(POD, POD_PORT)
}

/// The option that names [`vip`], in network order.
pub(crate) const OPTION: [u8; 8] = [0x9a, 8, 0x7d, 0x00, 172, 18, 0, 3];

/// A client's TCP packet to the frontend.
pub(crate) fn request(flags: u8) -> Frame {
    Frame::tcp(client(), vip(), flags)
}

/// A client's datagram to the frontend.
pub(crate) fn datagram() -> Frame {
    Frame::udp(client(), vip())
}

/// The pod's TCP packet to the client.
pub(crate) fn response(flags: u8) -> Frame {
    Frame::tcp(pod(), client(), flags)
}

/// What of `struct __sk_buff` a test sets besides the frame.
#[derive(Clone, Copy, Default)]
pub(crate) struct Context {
    pub(crate) mark: u32,
    pub(crate) gso_segs: u32,
    pub(crate) gso_size: u32,
    /// Interface that the packet came in by.
    pub(crate) arrived_on: u32,
}

impl Context {
    /// The bytes of `struct __sk_buff` (include/uapi/linux/bpf.h), 192 of them.
    fn bytes(self) -> Vec<u8> {
        let mut bytes = vec![0; 192];
        for (offset, value) in
            [(8, self.mark), (36, self.arrived_on), (164, self.gso_segs), (176, self.gso_size)]
        {
            bytes[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
        }
        bytes
    }
}

/// A node with its maps and programs.
pub(crate) struct Node {
    pub(crate) ebpf: aya::Ebpf,
    pub(crate) fs: BpfFs,
    /// How long the kernel took to load each program.
    pub(crate) loading: BTreeMap<&'static str, Duration>,
    links: Links,
    drops: PerCpuArray<MapData, u64>,
    counters: PerCpuArray<MapData, u64>,
}

/// What came out of a program.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) action: u32,
    pub(crate) bytes: Vec<u8>,
    pub(crate) mark: u32,
}

impl Output {
    /// Fails unless the packet was sent on as exactly these bytes, with the mark that keeps the egress
    /// programs from touching it again.
    #[track_caller]
    pub(crate) fn assert_sent(&self, want: &[u8]) {
        assert_eq!(self.action, REDIRECT, "the packet is not redirected");
        assert_eq!(self.mark, MARK_DONE, "the redirected packet is not marked as done");
        assert_frame(&self.bytes, want);
    }

    /// Fails unless the packet goes on to the stack, or out, as exactly these bytes.
    #[track_caller]
    pub(crate) fn assert_passed(&self, want: &[u8]) {
        assert_eq!(self.action, OK, "the packet does not pass");
        assert_eq!(self.mark, 0, "a packet that only passes is marked as done");
        assert_frame(&self.bytes, want);
    }
}

/// A state with both protocols of the service and these backends `(pod, node)`.
pub(crate) fn state(node: Ipv4Addr, mode: DatapathMode, backends: &[(Ipv4Addr, Ipv4Addr)]) -> NodeState {
    let service = |protocol| ServiceState {
        id: 1,
        protocol,
        cluster_ip: Some((CLUSTER_IP, 80)),
        node_port: Some(NODE_PORT),
        local_only: mode == DatapathMode::Local,
        internal_local: false,
        affinity_seconds: None,
        backends: backends
            .iter()
            .map(|(address, node)| BackendState {
                address: *address,
                port: POD_PORT,
                node: *node,
                terminating: false,
                retired: false,
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
            host_clients: false,
            room: MapRoom::default(),
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
        let mut loading = BTreeMap::new();
        for name in PROGRAMS {
            let program: &mut SchedClassifier = ebpf.program_mut(name).expect(name).try_into()?;
            let started = Instant::now();
            program.load()?;
            loading.insert(name, started.elapsed());
        }
        meet_neighbours(&fs)?;
        let slots = |map| PerCpuArray::try_from(Map::PerCpuArray(pin(&fs, map)));
        let (drops, counters) = (slots("DROPS")?, slots("COUNTERS")?);
        Ok(Self { ebpf, fs, loading, links, drops, counters })
    }

    /// The node of most tests: loads the state of `node` in `mode` with the one pod on worker2.
    pub(crate) fn of(node: Ipv4Addr, mode: DatapathMode) -> Self {
        Self::new(&state(node, mode, &[(POD, WORKER2)])).expect("the node loads")
    }

    /// Brings the pinned maps to another state, as a newly started agent does; the programs stay.
    pub(crate) fn sync(&self, state: &NodeState) {
        let _ = datapath_agent::open(state, &self.links, self.fs.path()).expect("the pins are reused");
    }

    /// The Maglev table of each frontend, by address, port and protocol in packet order.
    pub(crate) fn tables(&self) -> BTreeMap<(u32, u16, u8), u32> {
        let map: HashMap<_, SocketKey, Frontend> =
            HashMap::try_from(Map::HashMap(pin(&self.fs, "FRONTENDS"))).expect("a hash map");
        let pairs = map.iter().map(|pair| pair.expect("the map can be read"));
        pairs.map(|(key, frontend)| ((key.addr, key.port, key.proto), frontend.table)).collect()
    }

    /// Runs one program once on a frame.
    #[track_caller]
    pub(crate) fn run(&mut self, program: &str, frame: &[u8]) -> Output {
        self.run_with(program, frame, Context::default())
    }

    /// Runs one program once on a frame with more of the socket buffer set.
    #[track_caller]
    pub(crate) fn run_with(&mut self, program: &str, frame: &[u8], context: Context) -> Output {
        let program: &mut SchedClassifier =
            self.ebpf.program_mut(program).expect(program).try_into().expect("classifier");
        // The kernel takes at most a page, and no program adds more than an ICMP error's headers.
        let mut bytes = vec![0; 4096 + 256];
        let mut ctx_out = vec![0; 192];
        let result = program
            .test_run(TestRunOptions {
                data_in: Some(frame),
                data_out: Some(&mut bytes),
                ctx_in: Some(&context.bytes()),
                ctx_out: Some(&mut ctx_out),
                ..TestRunOptions::default()
            })
            .expect("BPF_PROG_TEST_RUN");
        bytes.truncate(result.data_size_out as usize);
        let mark = u32::from_ne_bytes(ctx_out[8..12].try_into().expect("four bytes"));
        Output { action: result.return_value, bytes, mark }
    }

    /// Runs a program and fails unless it drops the frame and counts exactly this reason, once.
    #[track_caller]
    pub(crate) fn assert_drop(&mut self, program: &str, frame: &[u8], reason: &str) {
        let before = self.all_drops();
        let out = self.run(program, frame);
        assert_eq!(out.action, SHOT, "the packet is not dropped");
        self.assert_counted(&before, reason);
    }

    /// Runs a program and fails unless it answers with this ICMP error, and counts the reason once.
    #[track_caller]
    pub(crate) fn assert_answer(&mut self, program: &str, frame: &[u8], answer: &[u8], reason: &str) {
        let before = self.all_drops();
        let sent = self.counter("icmp-sent");
        self.run(program, frame).assert_sent(answer);
        self.assert_counted(&before, reason);
        assert_eq!(self.counter("icmp-sent"), sent + 1, "the ICMP error is not counted");
    }

    #[track_caller]
    fn assert_counted(&self, before: &[(&'static str, u64)], reason: &str) {
        let one = |(label, n): &(&'static str, u64)| (*label, n + u64::from(*label == reason));
        let want: Vec<_> = before.iter().map(one).collect();
        assert_eq!(self.all_drops(), want, "the drop counters did not move by one {reason}");
    }

    /// What the node counted.
    pub(crate) fn status(&self) -> datapath_agent::DatapathStatus {
        datapath_agent::status(self.fs.path()).expect("pins are there")
    }

    /// How often this drop reason was counted.
    pub(crate) fn drops(&self, label: &str) -> u64 {
        let reason = DropReason::ALL.iter().find(|r| r.label() == label).expect("a drop reason");
        slot(&self.drops, *reason as u32)
    }

    /// Every drop reason and how often it was counted.
    pub(crate) fn all_drops(&self) -> Vec<(&'static str, u64)> {
        DropReason::ALL.iter().map(|r| (r.label(), slot(&self.drops, *r as u32))).collect()
    }

    /// How many packets were dropped.
    pub(crate) fn dropped(&self) -> u64 {
        self.all_drops().iter().map(|(_, n)| n).sum()
    }

    /// How often this was done.
    pub(crate) fn counter(&self, label: &str) -> u64 {
        let counter = Counter::ALL.iter().find(|c| c.label() == label).expect("a counter");
        slot(&self.counters, *counter as u32)
    }

    /// What the node knows of another one.
    pub(crate) fn neighbour(&self, node: Ipv4Addr) -> NodeEntry {
        let nodes: HashMap<_, u32, NodeEntry> =
            HashMap::try_from(Map::HashMap(pin(&self.fs, "NODES"))).expect("a hash map of nodes");
        nodes.get(&u32::from_ne_bytes(node.octets()), 0).expect("the node is known")
    }

    /// Makes the node forget the link address of another one.
    pub(crate) fn forget_neighbour(&self, node: Ipv4Addr) {
        let mut nodes: HashMap<_, u32, NodeEntry> =
            HashMap::try_from(Map::HashMap(pin(&self.fs, "NODES"))).expect("a hash map of nodes");
        let entry = NodeEntry { mac: 0, ..self.neighbour(node) };
        nodes.insert(u32::from_ne_bytes(node.octets()), entry, 0).expect("the entry is replaced");
    }

    /// Conntrack as users see it.
    pub(crate) fn flows(&self) -> Vec<FlowRecord> {
        datapath_agent::flows(self.fs.path()).expect("pins are there")
    }

    /// The only conntrack entry of this direction.
    #[track_caller]
    pub(crate) fn flow(&self, direction: &str) -> FlowRecord {
        let mut found: Vec<_> = self.flows().into_iter().filter(|f| f.direction == direction).collect();
        assert_eq!(found.len(), 1, "there is not exactly one {direction} entry: {found:?}");
        found.remove(0)
    }

    fn flow_map(&self) -> HashMap<MapData, FlowKey, Flow> {
        HashMap::try_from(Map::LruHashMap(pin(&self.fs, "FLOWS"))).expect("a hash map of flows")
    }

    /// Deletes the entries of one [`FlowKind`], as LRU eviction may. Gives their number.
    pub(crate) fn forget(&self, kind: u8) -> usize {
        let mut map = self.flow_map();
        let keys: Vec<FlowKey> = map.keys().flatten().filter(|key| key.kind == kind).collect();
        for key in &keys {
            map.remove(key).expect("the entry is there");
        }
        keys.len()
    }

    /// Deletes all conntrack entries.
    pub(crate) fn forget_all(&self) {
        let _ = self.forget(FlowKind::FORWARD) + self.forget(FlowKind::REPLY);
    }

    /// Makes all conntrack entries older by this many seconds.
    pub(crate) fn age(&self, seconds: u64) {
        let mut map = self.flow_map();
        let entries: Vec<(FlowKey, Flow)> = map.iter().flatten().collect();
        for (key, flow) in entries {
            let last_seen = flow.last_seen.saturating_sub(seconds * 1_000_000_000);
            map.insert(key, Flow { last_seen, ..flow }, 0).expect("the entry is replaced");
        }
    }

    /// The ring buffer's records since the last call.
    pub(crate) fn events(&self) -> Vec<Event> {
        let mut ring = RingBuf::try_from(Map::RingBuf(pin(&self.fs, "EVENTS"))).expect("a ring buffer");
        let mut events = Vec::new();
        while let Some(record) = ring.next() {
            assert_eq!(record.len(), size_of::<Event>(), "the record has another size than the contract");
            // SAFETY: as many bytes as an `Event`, which is plain integers without padding.
            events.push(unsafe { record.as_ptr().cast::<Event>().read_unaligned() });
        }
        events
    }
}

/// Tells a node the link address of the others, which it would learn from the kernel: the one that all frames of
/// these tests come from.
fn meet_neighbours(fs: &BpfFs) -> Result<()> {
    let mut nodes: HashMap<_, u32, NodeEntry> = HashMap::try_from(Map::HashMap(pin(fs, "NODES")))?;
    let entries: Vec<(u32, NodeEntry)> = nodes.iter().collect::<Result<_, _>>()?;
    for (address, entry) in entries {
        let [a, b, c, d, e, f] = NEIGHBOUR;
        let mac = u64::from_ne_bytes([a, b, c, d, e, f, 0, 0]);
        nodes.insert(address, NodeEntry { mac, ..entry }, 0)?;
    }
    Ok(())
}

/// Opens a pinned map.
fn pin(fs: &BpfFs, map: &str) -> MapData {
    MapData::from_pin(fs.path().join("maps").join(map)).expect("the map is pinned")
}

/// A slot's sum over the CPUs.
fn slot(array: &PerCpuArray<MapData, u64>, index: u32) -> u64 {
    array.get(&index, 0).expect("the slot exists").iter().sum()
}

/// The client's node and the pod's node, for the life of a packet.
pub(crate) struct Cluster {
    /// The ingress node.
    pub(crate) worker: Node,
    /// The backend's node.
    pub(crate) worker2: Node,
}

impl Cluster {
    pub(crate) fn new(mode: DatapathMode) -> Self {
        Self { worker: Node::of(WORKER, mode), worker2: Node::of(WORKER2, mode) }
    }

    /// Client to pod: both nodes' uplinks.
    #[track_caller]
    pub(crate) fn deliver(&mut self, frame: &Frame) -> Output {
        let forwarded = self.worker.run("from_netdev", &frame.bytes());
        assert_eq!(forwarded.action, REDIRECT, "the ingress node does not forward");
        let delivered = self.worker2.run("from_netdev", &forwarded.bytes);
        assert_eq!(delivered.action, REDIRECT, "the backend's node does not deliver");
        delivered
    }
}
