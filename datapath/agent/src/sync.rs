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
    /// Backends of each Maglev table, by its number.
    pub(crate) tables: BTreeMap<u32, Vec<u32>>,
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

impl From<SocketKey> for Key {
    fn from(key: SocketKey) -> Self {
        Self { addr: key.addr, port: key.port, proto: key.proto }
    }
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
            desired.nodes.insert(addr(*node), NodeEntry { is_self, ..NodeEntry::default() });
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
        let stays = |b: &&BackendState| !b.terminating && !b.retired;
        let mut takers: Vec<&BackendState> = service.backends.iter().filter(stays).collect();
        if takers.is_empty() {
            takers = service.backends.iter().filter(|b| !b.retired).collect();
        }
        let local = takers.iter().filter(|b| b.node == state.node_address).map(id).collect();
        let all = self.add_table(takers.iter().map(id).collect());
        let here = if service.local_only || service.internal_local { self.add_table(local) } else { all };
        let outside = if service.local_only { here } else { all };
        let affinity = if service.affinity_seconds.is_some() { FrontendFlags::AFFINITY } else { 0 };
        let local_only = |yes| if yes { FrontendFlags::LOCAL_ONLY } else { 0 };
        let frontend = Frontend {
            service: service.id,
            table: outside,
            inside_table: all,
            affinity_seconds: service.affinity_seconds.unwrap_or(0),
            flags: affinity | local_only(service.local_only),
            pad: 0,
        };
        let inside = affinity | FrontendFlags::INSIDE_ONLY;
        if let Some((address, port)) = service.cluster_ip {
            let table = if service.internal_local { here } else { all };
            let flags = inside | local_only(service.internal_local);
            let value = Frontend { table, inside_table: table, flags, ..frontend };
            self.frontends.insert(key(address, port, service.protocol), value);
        }
        if let Some(port) = service.node_port {
            for node in &state.nodes {
                let own = *node == state.node_address;
                let value = if own { frontend } else { Frontend { flags: inside, ..frontend } };
                self.frontends.insert(key(*node, port, service.protocol), value);
            }
        }
    }

    fn add_backend(&mut self, state: &NodeState, proto: Proto, backend: &BackendState) {
        let mut flags = 0;
        for (set, flag) in [
            (backend.node == state.node_address, BackendFlags::LOCAL),
            (backend.address == backend.node, BackendFlags::HOST),
            (backend.terminating || backend.retired, BackendFlags::TERMINATING),
            (backend.retired, BackendFlags::RETIRED),
        ] {
            flags |= if set { flag } else { 0 };
        }
        let id = backend_id(backend.address, backend.port, proto);
        // Of two services that share a backend, one may have let it go.
        if let Some(other) = self.backends.get(&id) {
            flags &= other.flags | !(BackendFlags::TERMINATING | BackendFlags::RETIRED);
        }
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
    fn add_table(&mut self, ids: Vec<u32>) -> u32 {
        let number = self.tables.len() as u32;
        self.tables.insert(number, ids);
        number
    }

    /// Numbers the tables anew so that each frontend keeps the one that it has in the kernel, and a new table
    /// gets a number that no frontend there uses. Packets pass while tables and frontends are written one after
    /// the other: a table that changed hands would send them to another service's backends.
    fn keep_tables(&mut self, current: &BTreeMap<Key, Frontend>) {
        let mut numbers = BTreeMap::new();
        let mut taken: BTreeSet<u32> = BTreeSet::new();
        for (key, frontend) in &self.frontends {
            let Some(now) = current.get(key) else { continue };
            for (wanted, number) in [(frontend.table, now.table), (frontend.inside_table, now.inside_table)] {
                if !numbers.contains_key(&wanted) && taken.insert(number) {
                    numbers.insert(wanted, number);
                }
            }
        }
        taken.extend(current.values().flat_map(|frontend| [frontend.table, frontend.inside_table]));
        let mut free = (0..).filter(|number| !taken.contains(number));
        for wanted in self.tables.keys() {
            numbers.entry(*wanted).or_insert_with(|| free.next().expect("the numbers do not end"));
        }
        for frontend in self.frontends.values_mut() {
            frontend.table = numbers[&frontend.table];
            frontend.inside_table = numbers[&frontend.inside_table];
        }
        self.tables =
            std::mem::take(&mut self.tables).into_iter().map(|(n, ids)| (numbers[&n], ids)).collect();
    }
}

/// A map cannot be brought to its desired contents.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The kernel refused.
    #[error("sync map {map}")]
    Map {
        /// Map name.
        map: &'static str,
        /// What the kernel said.
        #[source]
        source: MapError,
    },
    /// More services than the pinned map has room for.
    #[error(
        "keep {wanted} Maglev tables in a map that was made for {room}; take the datapath down and bring it up \
         again with more room"
    )]
    Tables {
        /// Number of the last table, plus one.
        wanted: u32,
        /// Tables that fit.
        room: u32,
    },
}

impl SyncError {
    pub(crate) fn map(map: &'static str) -> impl Fn(MapError) -> Self + Copy {
        move |source| Self::Map { map, source }
    }
}

/// What is known of the maps' contents, so that the next sync reads nothing back.
#[derive(Debug)]
pub(crate) struct Written {
    frontends: BTreeMap<Key, Frontend>,
    /// Backends of each table that is in use or was.
    tables: BTreeMap<u32, Vec<u32>>,
    /// Whether tables that are not in `tables` may hold anything.
    unknown: bool,
    /// How many tables fit.
    room: u32,
}

impl Written {
    /// Of maps that were just made, or of maps of an earlier agent. `slots` is the size of the Maglev map.
    pub(crate) fn open(ebpf: &mut aya::Ebpf, reused: bool, slots: u32) -> Result<Self, SyncError> {
        let frontends = if reused { read_frontends(ebpf)? } else { BTreeMap::new() };
        Ok(Self { frontends, tables: BTreeMap::new(), unknown: reused, room: slots / MAGLEV_SLOTS })
    }
}

fn read_frontends(ebpf: &mut aya::Ebpf) -> Result<BTreeMap<Key, Frontend>, SyncError> {
    let hash = hash::<SocketKey, Frontend>(ebpf, maps::FRONTENDS)?;
    let pairs = hash.iter().map(|pair| pair.map(|(key, frontend)| (Key::from(key), frontend)));
    pairs.collect::<Result<_, _>>().map_err(SyncError::map(maps::FRONTENDS))
}

/// Brings all maps to their desired contents with as few writes as possible.
///
/// # Errors
/// [`SyncError`] naming the first map that refused.
pub(crate) fn sync(
    ebpf: &mut aya::Ebpf,
    mut desired: Desired,
    written: &mut Written,
) -> Result<(), SyncError> {
    desired.keep_tables(&written.frontends);
    insert_nodes(ebpf, &desired.nodes)?;
    insert_all(ebpf, maps::ENDPOINTS, &desired.endpoints)?;
    insert_all(ebpf, maps::BACKENDS, &desired.backends)?;
    let sockets: Vec<(SocketKey, u32)> = desired.sockets.iter().map(|(k, v)| ((*k).into(), *v)).collect();
    let frontends: Vec<(SocketKey, Frontend)> =
        desired.frontends.iter().map(|(k, v)| ((*k).into(), *v)).collect();
    insert_all(ebpf, maps::BACKEND_SOCKETS, sockets.iter().map(|(k, v)| (k, v)))?;
    write_tables(ebpf, &desired.tables, written)?;
    // Recorded before it is done: a failure half way must not forget which tables the kernel uses.
    written.frontends.extend(desired.frontends.iter().map(|(k, v)| (*k, *v)));
    insert_all(ebpf, maps::FRONTENDS, frontends.iter().map(|(k, v)| (k, v)))?;

    remove_others::<SocketKey, Frontend>(ebpf, maps::FRONTENDS, |k| {
        desired.frontends.contains_key(&Key::from(*k))
    })?;
    remove_others::<SocketKey, u32>(ebpf, maps::BACKEND_SOCKETS, |k| {
        desired.sockets.contains_key(&Key::from(*k))
    })?;
    remove_others::<u32, Backend>(ebpf, maps::BACKENDS, |k| desired.backends.contains_key(k))?;
    remove_others::<u32, Endpoint>(ebpf, maps::ENDPOINTS, |k| desired.endpoints.contains_key(k))?;
    remove_others::<u32, NodeEntry>(ebpf, maps::NODES, |k| desired.nodes.contains_key(k))?;
    written.frontends = desired.frontends;
    Ok(())
}

fn map<'a>(ebpf: &'a mut aya::Ebpf, name: &'static str) -> Result<&'a mut Map, SyncError> {
    let missing = || SyncError::map(name)(MapError::InvalidName { name: name.into() });
    ebpf.map_mut(name).ok_or_else(missing)
}

fn hash<'a, K: Pod, V: Pod>(
    ebpf: &'a mut aya::Ebpf,
    name: &'static str,
) -> Result<HashMap<&'a mut MapData, K, V>, SyncError> {
    HashMap::try_from(map(ebpf, name)?).map_err(SyncError::map(name))
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
        hash.insert(key, value, 0).map_err(SyncError::map(name))?;
    }
    Ok(())
}

/// Inserts the nodes that are not there yet. The others keep what the datapath has learned about them.
fn insert_nodes(ebpf: &mut aya::Ebpf, nodes: &BTreeMap<u32, NodeEntry>) -> Result<(), SyncError> {
    let fail = SyncError::map(maps::NODES);
    let mut hash = hash::<u32, NodeEntry>(ebpf, maps::NODES)?;
    for (address, node) in nodes {
        if !hash.get(address, 0).is_ok_and(|now| now.is_self == node.is_self) {
            hash.insert(address, node, 0).map_err(fail)?;
        }
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
    let fail = SyncError::map(name);
    for key in stale.map_err(fail)? {
        hash.remove(&key).map_err(fail)?;
    }
    Ok(())
}

/// Writes the slots that differ. A table that nobody uses any more keeps what it has.
fn write_tables(
    ebpf: &mut aya::Ebpf,
    tables: &BTreeMap<u32, Vec<u32>>,
    written: &mut Written,
) -> Result<(), SyncError> {
    let wanted = tables.keys().last().map_or(0, |last| last + 1);
    if wanted > written.room {
        return Err(SyncError::Tables { wanted, room: written.room });
    }
    let fail = SyncError::map(maps::MAGLEV);
    let mut array: Array<_, u32> = Array::try_from(map(ebpf, maps::MAGLEV)?).map_err(fail)?;
    // A table that a failure leaves half written is one of the unknown ones.
    let unknown = std::mem::replace(&mut written.unknown, true);
    for (number, ids) in tables {
        if written.tables.get(number) == Some(ids) {
            continue;
        }
        let before = match written.tables.remove(number) {
            Some(before) => Some(maglev_table(&before)),
            None if unknown => None,
            // Fresh slots are zero; not reading them first saves a thousand system calls a table.
            None => Some(maglev_table(&[])),
        };
        for (slot, wanted) in maglev_table(ids).into_iter().enumerate() {
            let index = number * MAGLEV_SLOTS + slot as u32;
            let current = match &before {
                Some(table) => table[slot],
                None => array.get(&index, 0).map_err(fail)?,
            };
            if current != wanted {
                array.set(index, wanted, 0).map_err(fail)?;
            }
        }
        written.tables.insert(*number, ids.clone());
    }
    written.unknown = unknown;
    Ok(())
}
