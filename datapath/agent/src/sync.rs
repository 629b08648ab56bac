//! Desired state to map contents: what each map should hold, and the few writes that make it so.
//!
//! Order matters while packets flow: backends before the Maglev slots that name them, slots before the
//! frontends that use them; removals the other way round.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use aya::Pod;
use aya::maps::{Array, HashMap, Map, MapData, MapError};
use datapath_types::{
    Backend, BackendFlags, Endpoint, Frontend, FrontendFlags, MAGLEV_SLOTS, NodeEntry, PROTO_TCP, PROTO_UDP,
    Settings, SettingsFlags, SocketKey, mix, mode,
};

use crate::maglev::maglev_table;
use crate::maps;
use crate::state::{BackendState, DatapathMode, NodeState, Proto, ServiceState};

/// What the maps of one node should hold.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Desired {
    pub(crate) frontends: BTreeMap<Key, Frontend>,
    pub(crate) backends: BTreeMap<u32, Backend>,
    pub(crate) sockets: BTreeMap<Key, u32>,
    /// One table of [`MAGLEV_SLOTS`] after the other.
    pub(crate) maglev: Vec<u32>,
    pub(crate) endpoints: BTreeMap<u32, Endpoint>,
    pub(crate) nodes: BTreeMap<u32, NodeEntry>,
}

/// A [`SocketKey`] that sorts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    addr: u32,
    port: u16,
    proto: u8,
}

impl From<Key> for SocketKey {
    fn from(key: Key) -> Self {
        SocketKey::new(key.addr, key.port, key.proto)
    }
}

fn addr(address: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(address.octets())
}

fn number(proto: Proto) -> u8 {
    match proto {
        Proto::Tcp => PROTO_TCP,
        Proto::Udp => PROTO_UDP,
    }
}

fn key(address: Ipv4Addr, port: u16, proto: Proto) -> Key {
    Key { addr: addr(address), port: port.to_be(), proto: number(proto) }
}

/// The id of a backend: the same on every node and after every restart, never 0, so that Maglev tables
/// agree and a pinned flow finds its backend again.
pub fn backend_id(address: Ipv4Addr, port: u16, proto: Proto) -> u32 {
    let value = (u64::from(u32::from(address)) << 24) | (u64::from(port) << 8) | u64::from(number(proto));
    (mix(value) as u32).max(1)
}

/// The settings global for a node.
pub fn settings(state: &NodeState, uplink: u32, mtu: u32) -> Settings {
    let options = &state.options;
    let mut flags = 0;
    for (set, flag) in [
        (options.wire_cilium, SettingsFlags::WIRE_CILIUM),
        (!options.strip_option, SettingsFlags::KEEP_OPTION),
        (options.events, SettingsFlags::EVENTS),
    ] {
        flags |= if set { flag } else { 0 };
    }
    let (pod_net, prefix) = state.pod_cidr;
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
    Settings {
        mode: match options.mode {
            DatapathMode::Dsr => mode::DSR,
            DatapathMode::Snat => mode::SNAT,
            DatapathMode::Hybrid => mode::HYBRID,
            DatapathMode::Local => mode::LOCAL,
        },
        flags,
        node_addr: addr(state.node_address),
        uplink,
        mtu,
        pod_net: addr(pod_net) & mask.to_be(),
        pod_mask: mask.to_be(),
        snat_min: options.snat_ports.0,
        snat_max: options.snat_ports.1,
        mutation: options.mutation,
    }
}

impl Desired {
    /// What `state` asks for. `interface` gives index and MTU of a pod's veth.
    pub(crate) fn new(state: &NodeState, pods: &BTreeMap<Ipv4Addr, Endpoint>) -> Self {
        let mut desired = Self::default();
        for node in &state.nodes {
            let is_self = u32::from(*node == state.node_address);
            desired.nodes.insert(addr(*node), NodeEntry { is_self });
        }
        for (address, endpoint) in pods {
            desired.endpoints.insert(addr(*address), *endpoint);
        }
        for service in &state.services {
            desired.add_service(state, service);
        }
        desired
    }

    fn add_service(&mut self, state: &NodeState, service: &ServiceState) {
        for backend in &service.backends {
            self.add_backend(state, service.protocol, backend);
        }
        let id = |b: &&BackendState| backend_id(b.address, b.port, service.protocol);
        // New flows go to backends that stay; if all are leaving, better those than none (KEP-1669).
        let mut takers: Vec<&BackendState> = service.backends.iter().filter(|b| !b.terminating).collect();
        if takers.is_empty() {
            takers = service.backends.iter().collect();
        }
        let local: Vec<u32> = takers.iter().filter(|b| b.node == state.node_address).map(id).collect();
        let all: Vec<u32> = takers.iter().map(id).collect();
        let inside = self.add_table(&all);
        let outside = if service.local_only { self.add_table(&local) } else { inside };
        let mut flags = 0;
        flags |= if service.local_only { FrontendFlags::LOCAL_ONLY } else { 0 };
        flags |= if service.affinity_seconds.is_some() { FrontendFlags::AFFINITY } else { 0 };
        let frontend = Frontend {
            service: service.id,
            table: outside,
            inside_table: inside,
            affinity_seconds: service.affinity_seconds.unwrap_or(0),
            flags,
            pad: 0,
        };
        let inside_only = Frontend { flags: flags | FrontendFlags::INSIDE_ONLY, ..frontend };
        if let Some((address, port)) = service.cluster_ip {
            self.frontends.insert(key(address, port, service.protocol), inside_only);
        }
        if let Some(port) = service.node_port {
            for node in &state.nodes {
                let own = *node == state.node_address;
                let value = if own { frontend } else { inside_only };
                self.frontends.insert(key(*node, port, service.protocol), value);
            }
        }
    }

    fn add_backend(&mut self, state: &NodeState, proto: Proto, backend: &BackendState) {
        let mut flags = 0;
        for (set, flag) in [
            (backend.node == state.node_address, BackendFlags::LOCAL),
            (backend.address == backend.node, BackendFlags::HOST),
            (backend.terminating, BackendFlags::TERMINATING),
        ] {
            flags |= if set { flag } else { 0 };
        }
        let id = backend_id(backend.address, backend.port, proto);
        let value = Backend {
            addr: addr(backend.address),
            port: backend.port.to_be(),
            proto: number(proto),
            pad: 0,
            flags,
            pad2: 0,
        };
        self.backends.insert(id, value);
        self.sockets.insert(key(backend.address, backend.port, proto), id);
    }

    /// Appends a table and gives its number.
    fn add_table(&mut self, ids: &[u32]) -> u32 {
        let number = self.maglev.len() as u32 / MAGLEV_SLOTS;
        self.maglev.extend(maglev_table(ids));
        number
    }
}

/// A map cannot be brought to its desired contents.
#[derive(Debug, thiserror::Error)]
#[error("sync map {map}")]
pub struct SyncError {
    /// Map name.
    pub map: &'static str,
    /// What the kernel said.
    #[source]
    pub source: MapError,
}

/// Brings all maps to their desired contents with as few writes as possible. `reused` maps may hold
/// anything, fresh ones are empty.
///
/// # Errors
/// [`SyncError`] naming the first map that refused.
pub(crate) fn sync(ebpf: &mut aya::Ebpf, desired: &Desired, reused: bool) -> Result<(), SyncError> {
    insert_all(ebpf, maps::NODES, &desired.nodes)?;
    insert_all(ebpf, maps::ENDPOINTS, &desired.endpoints)?;
    insert_all(ebpf, maps::BACKENDS, &desired.backends)?;
    let sockets: Vec<(SocketKey, u32)> = desired.sockets.iter().map(|(k, v)| ((*k).into(), *v)).collect();
    let frontends: Vec<(SocketKey, Frontend)> =
        desired.frontends.iter().map(|(k, v)| ((*k).into(), *v)).collect();
    insert_all(ebpf, maps::BACKEND_SOCKETS, sockets.iter().map(|(k, v)| (k, v)))?;
    write_slots(ebpf, &desired.maglev, reused)?;
    insert_all(ebpf, maps::FRONTENDS, frontends.iter().map(|(k, v)| (k, v)))?;

    let keep: BTreeSet<[u8; 8]> = frontends.iter().map(|(k, _)| bytes(*k)).collect();
    remove_others::<SocketKey, Frontend>(ebpf, maps::FRONTENDS, |k| keep.contains(&bytes(*k)))?;
    let keep: BTreeSet<[u8; 8]> = sockets.iter().map(|(k, _)| bytes(*k)).collect();
    remove_others::<SocketKey, u32>(ebpf, maps::BACKEND_SOCKETS, |k| keep.contains(&bytes(*k)))?;
    remove_others::<u32, Backend>(ebpf, maps::BACKENDS, |k| desired.backends.contains_key(k))?;
    remove_others::<u32, Endpoint>(ebpf, maps::ENDPOINTS, |k| desired.endpoints.contains_key(k))?;
    remove_others::<u32, NodeEntry>(ebpf, maps::NODES, |k| desired.nodes.contains_key(k))
}

fn bytes(key: SocketKey) -> [u8; 8] {
    let [a, b, c, d] = key.addr.to_ne_bytes();
    let [p, q] = key.port.to_ne_bytes();
    [a, b, c, d, p, q, key.proto, 0]
}

fn map<'a>(ebpf: &'a mut aya::Ebpf, name: &'static str) -> Result<&'a mut Map, SyncError> {
    let missing = || SyncError { map: name, source: MapError::InvalidName { name: name.into() } };
    ebpf.map_mut(name).ok_or_else(missing)
}

fn hash<'a, K: Pod, V: Pod>(
    ebpf: &'a mut aya::Ebpf,
    name: &'static str,
) -> Result<HashMap<&'a mut MapData, K, V>, SyncError> {
    HashMap::try_from(map(ebpf, name)?).map_err(|source| SyncError { map: name, source })
}

/// Inserts every pair, each atomically for the reader.
fn insert_all<'k, K, V>(
    ebpf: &mut aya::Ebpf,
    name: &'static str,
    pairs: impl IntoIterator<Item = (&'k K, &'k V)>,
) -> Result<(), SyncError>
where
    K: Pod + 'k,
    V: Pod + 'k,
{
    let mut hash = hash::<K, V>(ebpf, name)?;
    for (key, value) in pairs {
        hash.insert(key, value, 0).map_err(|source| SyncError { map: name, source })?;
    }
    Ok(())
}

/// Removes every key that is not wanted.
fn remove_others<K: Pod, V: Pod>(
    ebpf: &mut aya::Ebpf,
    name: &'static str,
    wanted: impl Fn(&K) -> bool,
) -> Result<(), SyncError> {
    let mut hash = hash::<K, V>(ebpf, name)?;
    let stale: Result<Vec<K>, MapError> =
        hash.keys().filter(|key| !matches!(key, Ok(key) if wanted(key))).collect();
    let fail = |source| SyncError { map: name, source };
    for key in stale.map_err(fail)? {
        hash.remove(&key).map_err(fail)?;
    }
    Ok(())
}

/// Writes the slots that differ, and zeros behind the last table. Fresh slots are zero; not reading them
/// first saves a thousand system calls a table.
fn write_slots(ebpf: &mut aya::Ebpf, slots: &[u32], reused: bool) -> Result<(), SyncError> {
    let fail = |source| SyncError { map: maps::MAGLEV, source };
    let mut array: Array<_, u32> = Array::try_from(map(ebpf, maps::MAGLEV)?).map_err(fail)?;
    let len = array.len();
    if slots.len() > len as usize {
        return Err(fail(MapError::OutOfBounds { index: slots.len() as u32, max_entries: len }));
    }
    for index in 0..len {
        let wanted = slots.get(index as usize).copied().unwrap_or(0);
        let current = if reused { array.get(&index, 0).map_err(fail)? } else { 0 };
        if current != wanted {
            array.set(index, wanted, 0).map_err(fail)?;
        }
    }
    Ok(())
}
