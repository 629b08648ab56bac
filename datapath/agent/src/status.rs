//! Reading a pinned datapath back: programs, map fill, counters, drops, flows. Needs no object and no
//! running agent, only the pins.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};

use aya::maps::{HashMap, Map, MapData, MapError, MapInfo, PerCpuArray};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::TcAttachType;
use aya::programs::{ProgramInfo, SchedClassifier};
use datapath_types::{Counter, DropReason, Flow, FlowFlags, FlowKey, FlowKind, PROTO_TCP, PROTO_UDP};
use serde::{Deserialize, Serialize};

use crate::apply::read_abi;
use crate::maps;

/// One node's datapath as it is in the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatapathStatus {
    /// Layout version of the pins.
    pub abi: u32,
    /// Pinned links.
    pub programs: Vec<ProgramStatus>,
    /// Entries of each map.
    pub maps: Vec<MapFill>,
    /// Drops by reason, those that happened.
    pub drops: BTreeMap<String, u64>,
    /// Counters, those that moved.
    pub counters: BTreeMap<String, u64>,
}

/// One program at an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramStatus {
    /// Program name.
    pub program: String,
    /// Interface it is attached to.
    pub interface: String,
    /// The kernel's number of the program; 0 if its pin cannot be read.
    #[serde(default)]
    pub id: u32,
    /// Whether the kernel runs it there. A pin alone does not say so: a link may have been detached behind it.
    #[serde(default = "attached_before")]
    pub attached: bool,
}

/// What earlier versions meant by listing a program.
const fn attached_before() -> bool {
    true
}

/// How full a map is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapFill {
    /// Map name.
    pub name: String,
    /// Entries in use; `None` for arrays and ring buffers, which are always full-size.
    pub entries: Option<u32>,
    /// Room.
    pub max_entries: u32,
}

/// One conntrack entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowRecord {
    /// `forward` or `reply`.
    pub direction: String,
    /// `tcp`, `udp` or the number.
    pub protocol: String,
    /// The client.
    pub client: SocketAddrV4,
    /// The frontend it used.
    pub frontend: SocketAddrV4,
    /// The backend.
    pub backend: SocketAddrV4,
    /// SNAT source, if any.
    pub snat: Option<SocketAddrV4>,
    /// Names of [`FlowFlags`] that are set.
    pub flags: Vec<String>,
}

/// The pins could not be read.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// Nothing is pinned there.
    #[error("find a datapath in {}", path.display())]
    Missing {
        /// Pin folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A pinned map cannot be opened or read.
    #[error("read map {map}")]
    Map {
        /// Map name.
        map: &'static str,
        /// What the kernel said.
        #[source]
        source: MapError,
    },
}

/// Reads the datapath that is pinned below `pins`, on a thread that is in the node's network namespace: what is attached
/// is asked there.
///
/// # Errors
/// [`StatusError::Missing`] if nothing is pinned there, [`StatusError::Map`] if a map cannot be read.
pub fn status(pins: &Path) -> Result<DatapathStatus, StatusError> {
    let folder = maps::folder(pins);
    let programs =
        programs(pins).map_err(|source| StatusError::Missing { path: pins.to_path_buf(), source })?;
    let mut fills = Vec::new();
    for name in maps::ALL {
        fills.push(fill(&folder, name)?);
    }
    let drops = per_cpu(&folder, maps::DROPS, DropReason::ALL.iter().map(|r| (*r as u32, r.label())))?;
    let counters = per_cpu(&folder, maps::COUNTERS, Counter::ALL.iter().map(|c| (*c as u32, c.label())))?;
    let abi = read_abi(&folder.join(maps::ABI)).unwrap_or(0);
    Ok(DatapathStatus { abi, programs, maps: fills, drops, counters })
}

/// Pins of links, and of programs of filters, are named `<program>~<interface>`.
fn programs(pins: &Path) -> io::Result<Vec<ProgramStatus>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(maps::links_folder(pins))? {
        let path = entry?.path();
        found.extend(status_of(&path, |program, interface| {
            let id = PinnedLink::from_pin(&path)
                .ok()
                .and_then(|link| FdLink::from(link).info().ok())?
                .program_id();
            Some((id, runs_at(interface, hook(program), id)))
        }));
    }
    for entry in fs::read_dir(maps::filters_folder(pins)).into_iter().flatten() {
        let path = entry?.path();
        // What the qdisc holds is rtnetlink's to tell, which whoever observes the host asks.
        found.extend(status_of(&path, |_, _| Some((ProgramInfo::from_pin(&path).ok()?.id(), true))));
    }
    found.sort_by(|a, b| (&a.interface, &a.program).cmp(&(&b.interface, &b.program)));
    Ok(found)
}

/// `look` gives the program's number and whether it is attached.
fn status_of(pin: &Path, look: impl FnOnce(&str, &str) -> Option<(u32, bool)>) -> Option<ProgramStatus> {
    let name = pin.file_name()?.to_string_lossy().into_owned();
    let (program, interface) = name.split_once('~')?;
    let (id, attached) = look(program, interface).unwrap_or((0, false));
    Some(ProgramStatus { program: program.into(), interface: interface.into(), id, attached })
}

/// A program at a TCX hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcxProgram {
    /// Ingress, else egress.
    pub is_ingress: bool,
    /// The kernel's number of it.
    pub id: u32,
    /// Its name.
    pub name: String,
}

/// Every program at the TCX hooks of an interface of this network namespace, in the order in which they run; none on
/// kernels without TCX.
pub fn tcx_programs(interface: &str) -> Vec<TcxProgram> {
    let hooks = [(true, TcAttachType::Ingress), (false, TcAttachType::Egress)];
    let at = |(is_ingress, hook)| {
        let programs =
            SchedClassifier::query_tcx(interface, hook).map_or_else(|_| Vec::new(), |(_, found)| found);
        programs.into_iter().map(move |program| TcxProgram {
            is_ingress,
            id: program.id(),
            name: program.name_as_str().unwrap_or_default().to_owned(),
        })
    };
    hooks.into_iter().flat_map(at).collect()
}

/// The hook that a program of ours belongs to.
fn hook(program: &str) -> TcAttachType {
    if program.starts_with("from_") { TcAttachType::Ingress } else { TcAttachType::Egress }
}

/// Whether the kernel runs this program at a TCX hook of an interface of this network namespace.
fn runs_at(interface: &str, hook: TcAttachType, id: u32) -> bool {
    SchedClassifier::query_tcx(interface, hook)
        .is_ok_and(|(_, programs)| programs.iter().any(|p| p.id() == id))
}

fn open(folder: &Path, map: &'static str) -> Result<MapData, StatusError> {
    MapData::from_pin(folder.join(map)).map_err(|source| StatusError::Map { map, source })
}

fn fill(folder: &Path, name: &'static str) -> Result<MapFill, StatusError> {
    let info =
        MapInfo::from_pin(folder.join(name)).map_err(|source| StatusError::Map { map: name, source })?;
    Ok(MapFill { name: name.into(), entries: count(folder, name)?, max_entries: info.max_entries() })
}

/// Counts the keys of a hash map; `None` for the other kinds.
fn count(folder: &Path, name: &'static str) -> Result<Option<u32>, StatusError> {
    fn keys<K: aya::Pod, V: aya::Pod>(map: Map) -> Result<u32, MapError> {
        Ok(HashMap::<_, K, V>::try_from(map)?.keys().filter(Result::is_ok).count() as u32)
    }
    let hash = || open(folder, name).map(Map::HashMap);
    let lru = || open(folder, name).map(Map::LruHashMap);
    let counted = match name {
        maps::FLOWS => keys::<FlowKey, Flow>(lru()?),
        maps::FRAGMENTS => keys::<datapath_types::FragmentKey, datapath_types::FragmentPorts>(lru()?),
        maps::AFFINITY => keys::<datapath_types::AffinityKey, datapath_types::Affinity>(lru()?),
        maps::FRONTENDS => keys::<datapath_types::SocketKey, datapath_types::Frontend>(hash()?),
        maps::BACKENDS => keys::<u32, datapath_types::Backend>(hash()?),
        maps::BACKEND_SOCKETS => keys::<datapath_types::SocketKey, u32>(hash()?),
        maps::ENDPOINTS => keys::<u32, datapath_types::Endpoint>(hash()?),
        maps::NODES => keys::<u32, datapath_types::NodeEntry>(hash()?),
        _ => return Ok(None),
    };
    counted.map(Some).map_err(|source| StatusError::Map { map: name, source })
}

/// Sums a per-CPU array over the CPUs, for the slots that have a name.
fn per_cpu(
    folder: &Path,
    name: &'static str,
    slots: impl Iterator<Item = (u32, &'static str)>,
) -> Result<BTreeMap<String, u64>, StatusError> {
    let fail = |source| StatusError::Map { map: name, source };
    let array: PerCpuArray<_, u64> =
        PerCpuArray::try_from(Map::PerCpuArray(open(folder, name)?)).map_err(fail)?;
    let mut sums = BTreeMap::new();
    for (slot, label) in slots {
        let sum: u64 = array.get(&slot, 0).map_err(fail)?.iter().sum();
        if sum != 0 {
            sums.insert(label.to_string(), sum);
        }
    }
    Ok(sums)
}

/// Every conntrack entry below `pins`.
///
/// # Errors
/// As [`status`].
pub fn flows(pins: &Path) -> Result<Vec<FlowRecord>, StatusError> {
    let fail = |source| StatusError::Map { map: maps::FLOWS, source };
    let data = open(&maps::folder(pins), maps::FLOWS)?;
    let map: HashMap<_, FlowKey, Flow> = HashMap::try_from(Map::LruHashMap(data)).map_err(fail)?;
    Ok(map.iter().filter_map(Result::ok).map(|(key, flow)| record(&key, &flow)).collect())
}

fn socket(addr: u32, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::from(addr.to_ne_bytes()), u16::from_be(port))
}

fn record(key: &FlowKey, flow: &Flow) -> FlowRecord {
    let names = [
        (FlowFlags::DSR, "dsr"),
        (FlowFlags::SNAT, "snat"),
        (FlowFlags::LOCAL, "local"),
        (FlowFlags::NEED_OPTION, "need-option"),
        (FlowFlags::INSIDE, "inside"),
        (FlowFlags::REPLIED, "replied"),
        (FlowFlags::FIN_CLIENT, "fin-client"),
        (FlowFlags::FIN_BACKEND, "fin-backend"),
        (FlowFlags::RST, "rst"),
        (FlowFlags::HOST, "host"),
    ];
    FlowRecord {
        direction: if key.kind == FlowKind::FORWARD { "forward" } else { "reply" }.into(),
        protocol: match key.proto {
            PROTO_TCP => "tcp".into(),
            PROTO_UDP => "udp".into(),
            other => other.to_string(),
        },
        client: socket(flow.client_addr, flow.client_port),
        frontend: socket(flow.vip, flow.vport),
        backend: socket(flow.backend_addr, flow.backend_port),
        snat: (flow.snat_port != 0).then(|| socket(flow.snat_addr, flow.snat_port)),
        flags: names.iter().filter(|(bit, _)| flow.flags & bit != 0).map(|(_, n)| (*n).into()).collect(),
    }
}
