//! Every map of the datapath. All are pinned by name in the lab's own bpffs, so an agent can restart or
//! be replaced while traffic flows. The sizes here are placeholders; the loader sets them per lab.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf},
};
use datapath_types::{
    Affinity, AffinityKey, Backend, Counter, DropReason, Endpoint, Flow, FlowKey, FragmentKey, FragmentPorts,
    Frontend, MAGLEV_SLOTS, NodeEntry, SocketKey,
};

use crate::scratch::Scratch;

/// `ABI_VERSION` of whoever created the pins, at index 0.
#[map]
pub(crate) static ABI: Array<u32> = Array::pinned(1, 0);

/// Who answers for (address, port, protocol).
#[map]
pub(crate) static FRONTENDS: HashMap<SocketKey, Frontend> = HashMap::pinned(1024, 0);

/// Backends by id.
#[map]
pub(crate) static BACKENDS: HashMap<u32, Backend> = HashMap::pinned(4096, 0);

/// Backend id by socket.
#[map]
pub(crate) static BACKEND_SOCKETS: HashMap<SocketKey, u32> = HashMap::pinned(4096, 0);

/// Maglev tables, one after the other: backend id or 0.
#[map]
pub(crate) static MAGLEV: Array<u32> = Array::pinned(MAGLEV_SLOTS, 0);

/// Local pods.
#[map]
pub(crate) static ENDPOINTS: HashMap<u32, Endpoint> = HashMap::pinned(1024, 0);

/// Nodes of the cluster.
#[map]
pub(crate) static NODES: HashMap<u32, NodeEntry> = HashMap::pinned(1024, 0);

/// Conntrack.
#[map]
pub(crate) static FLOWS: LruHashMap<FlowKey, Flow> = LruHashMap::pinned(65536, 0);

/// Ports of fragmented datagrams.
#[map]
pub(crate) static FRAGMENTS: LruHashMap<FragmentKey, FragmentPorts> = LruHashMap::pinned(1024, 0);

/// sessionAffinity ClientIP.
#[map]
pub(crate) static AFFINITY: LruHashMap<AffinityKey, Affinity> = LruHashMap::pinned(4096, 0);

/// Drops by reason.
#[map]
pub(crate) static DROPS: PerCpuArray<u64> = PerCpuArray::pinned(DropReason::SLOTS, 0);

/// What was done, by [`Counter`].
#[map]
pub(crate) static COUNTERS: PerCpuArray<u64> = PerCpuArray::pinned(Counter::SLOTS, 0);

/// Where a program keeps the packet it works on; see [`crate::scratch`]. Not pinned: it holds nothing
/// between packets.
#[map]
pub(crate) static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// Optional records, one per rewrite.
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::pinned(4096, 0);
