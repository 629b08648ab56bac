//! One call that makes a node's datapath what the state says: load, fill, attach, pin.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use aya::maps::{Array, MapInfo};
use aya::programs::tc::TcAttachType;
use aya::programs::{Program, ProgramError, SchedClassifier};
use aya::{EbpfError, EbpfLoader};
use datapath_types::{ABI_VERSION, Endpoint, Settings};
use serde::{Deserialize, Serialize};

use crate::attach::{AttachError, AttachKind, Point, attach, remove_stale};
use crate::maps;
use crate::object::{OBJECT, supports_mutations};
use crate::state::{AttachMode, NodeState};
use crate::sync::{Desired, SyncError, Written, settings, sync};

/// What [`apply`] did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// `program@interface` of everything attached.
    pub attached: Vec<String>,
    /// How.
    pub kind: AttachKind,
    /// Whether pins of an earlier agent were taken over.
    pub reused: bool,
}

/// The datapath could not be made what the state says.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// A named interface does not exist in this namespace.
    #[error("find interface {interface} of node {node}")]
    Interface {
        /// Node name.
        node: String,
        /// Interface name.
        interface: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The pin folder could not be made.
    #[error("make the pin folder {}; is it on a bpf filesystem?", path.display())]
    PinFolder {
        /// Folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Pins of another layout are in the way.
    #[error(
        "take over the pins in {}: they have ABI version {found}, this build has {ABI_VERSION}; \
         run `labctl down` with the version that made them, then `labctl up`",
        path.display()
    )]
    Abi {
        /// Pin folder.
        path: PathBuf,
        /// Version of the pins.
        found: u32,
    },
    /// The state asks for a test switch that this build does not have.
    #[error("use mutation {0}: this build has no feature `mutations`")]
    Mutation(u32),
    /// The kernel, or the object, does not allow it.
    #[error("load the eBPF object{}", hint(source))]
    Load {
        /// What aya said.
        #[source]
        source: Box<EbpfError>,
    },
    /// The verifier rejected a program.
    #[error("load program {program}")]
    Program {
        /// Program name.
        program: &'static str,
        /// What the verifier said.
        #[source]
        source: Box<ProgramError>,
    },
    /// A map could not be filled.
    #[error(transparent)]
    Sync(#[from] SyncError),
    /// A program could not be attached.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// Links of interfaces that are gone could not be removed.
    #[error("remove stale links in {}", path.display())]
    Stale {
        /// Folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The most frequent cause in words.
fn hint(error: &EbpfError) -> &'static str {
    let text = format!("{error:?}");
    if text.contains("code: 1,") || text.contains("PermissionDenied") {
        "; it takes root, or CAP_BPF and CAP_NET_ADMIN"
    } else {
        ""
    }
}

/// Makes the datapath of the node whose network namespace the calling thread is in what `state` says, with
/// all pins below `pins`, a folder of a bpffs. On existing pins it replaces programs atomically and changes
/// only the map entries that differ; no packet is lost.
///
/// # Errors
/// [`ApplyError`]. What was attached before a failure stays attached: it was right before, or the caller
/// takes the whole lab down.
pub fn apply(state: &NodeState, pins: &Path) -> Result<Applied, ApplyError> {
    Datapath::start(state, pins).map(|(_, applied)| applied)
}

/// A datapath whose agent stays, to change it as the desired state changes. Dropping it leaves the datapath
/// working on its pins.
#[derive(Debug)]
pub struct Datapath {
    ebpf: aya::Ebpf,
    pins: PathBuf,
    settings: Settings,
    written: Written,
    /// Interface index behind each link pin.
    attached: BTreeMap<PathBuf, u32>,
    kind: AttachKind,
}

impl Datapath {
    /// As [`apply`], and keeps the loaded programs.
    ///
    /// # Errors
    /// As [`apply`].
    pub fn start(state: &NodeState, pins: &Path) -> Result<(Self, Applied), ApplyError> {
        if state.options.mutation != 0 && !supports_mutations() {
            return Err(ApplyError::Mutation(state.options.mutation));
        }
        let links = Links::of(state)?;
        let (ebpf, reused, written) = open_maps(state, &links, pins)?;
        let mut datapath = Self {
            ebpf,
            pins: pins.to_path_buf(),
            settings: settings(state, links.uplink.ifindex, links.uplink.mtu),
            written,
            attached: BTreeMap::new(),
            kind: AttachKind::Tcx,
        };
        let attached = datapath.attach(state, &links)?;
        let kind = datapath.kind;
        Ok((datapath, Applied { attached, kind, reused }))
    }

    /// Makes the datapath what `state` says. Programs that run already stay as they are, unless the settings
    /// that are compiled into them changed; then all are replaced as by [`apply`].
    ///
    /// # Errors
    /// [`ApplyError`]. The next update does what this one could not.
    pub fn update(&mut self, state: &NodeState) -> Result<Applied, ApplyError> {
        let links = Links::of(state)?;
        if settings(state, links.uplink.ifindex, links.uplink.mtu) != self.settings {
            let (datapath, applied) = Self::start(state, &self.pins)?;
            *self = datapath;
            return Ok(applied);
        }
        sync(&mut self.ebpf, Desired::new(state, &links.pods), &mut self.written)?;
        let attached = self.attach(state, &links)?;
        Ok(Applied { attached, kind: self.kind, reused: true })
    }

    /// Attaches what is not attached yet and removes the links that are not wanted any more. Gives
    /// `program@interface` of all.
    fn attach(&mut self, state: &NodeState, links: &Links) -> Result<Vec<String>, ApplyError> {
        let folder = maps::links_folder(&self.pins);
        let index = |interface: &str| links.index(state, interface);
        let points = points(state);
        let all: Vec<&Point<'_>> = points.iter().flat_map(|(_, points)| points).collect();
        let wanted: BTreeMap<PathBuf, u32> =
            all.iter().map(|point| (point.pin(&folder), index(point.interface))).collect();
        let names = all.iter().map(|p| format!("{}@{}", p.program, p.interface)).collect();
        let is_new =
            |point: &Point<'_>| self.attached.get(&point.pin(&folder)) != Some(&index(point.interface));
        let mut missing = points.clone();
        for (_, points) in &mut missing {
            points.retain(is_new);
        }
        self.attached.retain(|pin, index| wanted.get(pin) == Some(index));
        if missing.iter().any(|(_, points)| !points.is_empty()) {
            self.kind = load_and_attach(&mut self.ebpf, &missing, &folder, state.options.attach)?;
        }
        let pins: Vec<PathBuf> = wanted.keys().cloned().collect();
        remove_stale(&folder, &pins).map_err(|source| ApplyError::Stale { path: folder, source })?;
        self.attached = wanted;
        Ok(names)
    }
}

/// What the node's interfaces are to the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Links {
    /// Index and MTU of the uplink.
    pub uplink: Endpoint,
    /// Index and MTU of each local pod's veth.
    pub pods: BTreeMap<Ipv4Addr, Endpoint>,
}

impl Links {
    fn of(state: &NodeState) -> Result<Self, ApplyError> {
        Ok(Self { uplink: interface(state, &state.uplink)?, pods: endpoints(state)? })
    }

    /// Index of one of the state's interfaces.
    fn index(&self, state: &NodeState, interface: &str) -> u32 {
        let pod = state.pods.iter().find(|pod| pod.interface == interface);
        pod.and_then(|pod| self.pods.get(&pod.address)).unwrap_or(&self.uplink).ifindex
    }
}

/// Loads the object with its maps pinned and filled, but no program loaded or attached yet; true if pins
/// of an earlier agent were taken over. [`apply`] goes on from here; packet tests run the programs.
///
/// # Errors
/// [`ApplyError`].
pub fn open(state: &NodeState, links: &Links, pins: &Path) -> Result<(aya::Ebpf, bool), ApplyError> {
    open_maps(state, links, pins).map(|(ebpf, reused, _)| (ebpf, reused))
}

fn open_maps(
    state: &NodeState,
    links: &Links,
    pins: &Path,
) -> Result<(aya::Ebpf, bool, Written), ApplyError> {
    let reused = prepare_pins(pins)?;
    let desired = Desired::new(state, &links.pods);
    let mut ebpf = load(state, pins, links.uplink, &desired)?;
    write_abi(&mut ebpf)?;
    let mut written = Written::open(&mut ebpf, reused, maglev_slots(pins)?)?;
    sync(&mut ebpf, desired, &mut written)?;
    Ok((ebpf, reused, written))
}

/// Size of the pinned Maglev map: that of whoever made it.
fn maglev_slots(pins: &Path) -> Result<u32, SyncError> {
    let info = MapInfo::from_pin(maps::folder(pins).join(maps::MAGLEV));
    info.map(|info| info.max_entries()).map_err(SyncError::map(maps::MAGLEV))
}

/// Makes the pin folders; true if an earlier agent's pins of our layout are there.
fn prepare_pins(pins: &Path) -> Result<bool, ApplyError> {
    for path in [maps::folder(pins), maps::links_folder(pins)] {
        fs::create_dir_all(&path).map_err(|source| ApplyError::PinFolder { path, source })?;
    }
    let abi = maps::folder(pins).join(maps::ABI);
    if !abi.exists() {
        return Ok(false);
    }
    let found = read_abi(&abi).unwrap_or(0);
    if found != ABI_VERSION {
        return Err(ApplyError::Abi { path: pins.to_path_buf(), found });
    }
    Ok(true)
}

/// The version in a pinned `ABI` map.
pub(crate) fn read_abi(pin: &Path) -> Option<u32> {
    let data = aya::maps::MapData::from_pin(pin).ok()?;
    let array: Array<_, u32> = Array::try_from(aya::maps::Map::Array(data)).ok()?;
    array.get(&0, 0).ok()
}

fn write_abi(ebpf: &mut aya::Ebpf) -> Result<(), SyncError> {
    let fail = SyncError::map(maps::ABI);
    let map = ebpf.map_mut(maps::ABI).expect("the object defines every map in maps::ALL");
    let mut array: Array<_, u32> = Array::try_from(map).map_err(fail)?;
    array.set(0, ABI_VERSION, 0).map_err(fail)
}

fn interface(state: &NodeState, name: &str) -> Result<Endpoint, ApplyError> {
    interface_link(name).map_err(|source| ApplyError::Interface {
        node: state.node.clone(),
        interface: name.into(),
        source,
    })
}

/// Index and MTU of an interface of the calling thread's network namespace.
///
/// # Errors
/// `ENODEV` if there is no such interface.
pub fn interface_link(name: &str) -> io::Result<Endpoint> {
    let c_name = CString::new(name)?;
    // SAFETY: a NUL-terminated string.
    let index = unsafe { libc::if_nametoindex(c_name.as_ptr()) };
    if index == 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Endpoint { ifindex: index, mtu: mtu_of(&c_name)? })
}

/// Asks the kernel with SIOCGIFMTU: sysfs shows the mount's namespace, not the thread's.
fn mtu_of(name: &CString) -> io::Result<u32> {
    use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

    // SAFETY: plain arguments; the result is checked.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` is a fresh descriptor that nobody else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: all zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.as_bytes()).take(libc::IFNAMSIZ - 1) {
        *to = *from as libc::c_char;
    }
    // SAFETY: `request` is a valid ifreq and outlives the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU, &mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: SIOCGIFMTU fills this member.
    Ok(unsafe { request.ifr_ifru.ifru_mtu } as u32)
}

/// Index and MTU of every local pod's veth.
fn endpoints(state: &NodeState) -> Result<BTreeMap<Ipv4Addr, Endpoint>, ApplyError> {
    let mut found = BTreeMap::new();
    for pod in &state.pods {
        found.insert(pod.address, interface(state, &pod.interface)?);
    }
    Ok(found)
}

/// Room for at least `need` entries, and some to grow into while pinned.
fn room(need: usize, wished: u32) -> u32 {
    (need as u32 * 2).next_power_of_two().max(64).max(wished)
}

/// A loader that has not read the kernel's BTF. `EbpfLoader::new` of aya 0.14 parses all of
/// /sys/kernel/btf/vmlinux, 23 ms of the 35 that loading took, though no program here needs it (no CO-RE).
/// It tolerates a missing file, so it is called on a thread whose root is a folder without one. Where
/// that is not permitted (no CAP_SYS_CHROOT) it reads the file.
fn loader() -> EbpfLoader<'static> {
    let without_sys = || {
        // SAFETY: a plain argument. Only this thread's root changes, and the thread ends here.
        let alone = unsafe { libc::unshare(libc::CLONE_FS) } == 0;
        // SAFETY: a NUL-terminated string.
        let _ = alone && unsafe { libc::chroot(c"/proc/self/fdinfo".as_ptr()) } == 0;
        EbpfLoader::new()
    };
    std::thread::spawn(without_sys).join().unwrap_or_else(|_| EbpfLoader::new())
}

/// Loads the object: settings in, maps sized and pinned, programs not yet.
fn load(
    state: &NodeState,
    pins: &Path,
    uplink: Endpoint,
    desired: &Desired,
) -> Result<aya::Ebpf, ApplyError> {
    let settings = settings(state, uplink.ifindex, uplink.mtu);
    let folder = maps::folder(pins);
    let wish = state.options.room;
    let tables = (desired.tables.len() as u32 + 4).next_power_of_two().max(wish.tables);
    let ring = if state.options.events { 256 * 1024 } else { 4096 };
    loader()
        .btf(None)
        .default_map_pin_directory(&folder)
        .override_global("SETTINGS", &settings, true)
        .map_max_entries(maps::FRONTENDS, room(desired.frontends.len(), wish.frontends))
        .map_max_entries(maps::BACKENDS, room(desired.backends.len(), wish.backends))
        .map_max_entries(maps::BACKEND_SOCKETS, room(desired.sockets.len(), wish.backends))
        .map_max_entries(maps::MAGLEV, tables * datapath_types::MAGLEV_SLOTS)
        .map_max_entries(maps::ENDPOINTS, room(desired.endpoints.len(), wish.pods))
        .map_max_entries(maps::NODES, room(desired.nodes.len(), wish.nodes))
        .map_max_entries(maps::FLOWS, state.options.flows)
        .map_max_entries(maps::EVENTS, ring)
        .load(OBJECT)
        .map_err(|source| ApplyError::Load { source: Box::new(source) })
}

/// Loads each program and attaches it to its points, in their order. The next program is verified while
/// the one before waits for its RCU grace periods; both take the same 10 to 16 ms.
fn load_and_attach(
    ebpf: &mut aya::Ebpf,
    points: &[(&'static str, Vec<Point<'_>>)],
    links: &Path,
    mode: AttachMode,
) -> Result<AttachKind, ApplyError> {
    let mut programs: BTreeMap<&str, &mut Program> = ebpf.programs_mut().collect();
    let wanted: Vec<_> = points
        .iter()
        .filter(|(_, points)| !points.is_empty())
        .map(|(name, points)| {
            (*name, points, programs.remove(name).expect("the object defines the four programs"))
        })
        .collect();
    let mut kind = AttachKind::Tcx;
    std::thread::scope(|scope| {
        let (loaded, next) = mpsc::channel();
        // Only attaching depends on the thread's network namespace.
        scope.spawn(move || {
            for (name, points, program) in wanted {
                let done = classifier(name, program).map(|program| (points, program));
                let failed = done.is_err();
                if loaded.send(done).is_err() || failed {
                    return;
                }
            }
        });
        for loaded in next {
            let (points, program) = loaded?;
            for point in points {
                kind = attach(program, point, links, mode)?;
            }
        }
        Ok(kind)
    })
}

/// Loads a program into the kernel, if it is not there yet.
fn classifier<'a>(
    name: &'static str,
    program: &'a mut Program,
) -> Result<&'a mut SchedClassifier, ApplyError> {
    let fail = |source| ApplyError::Program { program: name, source: Box::new(source) };
    let program: &mut SchedClassifier = program.try_into().map_err(fail)?;
    // It is, where a pod came later.
    if program.fd().is_err() {
        program.load().map_err(fail)?;
    }
    Ok(program)
}

/// Which program goes where. Replies are caught at the pods before requests are let in at the uplink, so
/// no reply can leave unrewritten while a node comes up.
///
/// A hook that no packet of this state can need stays free: every TCX attachment waits for an RCU grace
/// period under the rtnl lock (`tcx_entry_sync` in include/net/tcx.h), 16 ms on a kernel with HZ=250, one
/// after the other for all nodes of the machine.
fn points(state: &NodeState) -> Vec<(&'static str, Vec<Point<'_>>)> {
    let own = || state.services.iter().flat_map(|s| &s.backends).filter(|b| b.node == state.node_address);
    let serves = own().next().is_some();
    let serves_itself = own().any(|b| b.address == b.node);
    let at_pods = |program, hook| {
        let points = state.pods.iter();
        (program, points.map(|pod| Point { program, interface: &pod.interface, hook }).collect())
    };
    let at_uplink = |program, hook| (program, vec![Point { program, interface: &state.uplink, hook }]);
    let mut points = vec![at_pods("from_pod", TcAttachType::Ingress)];
    if serves_itself {
        points.push(at_pods("to_pod", TcAttachType::Egress));
    }
    if serves || !state.pods.is_empty() || state.options.host_clients {
        points.push(at_uplink("to_netdev", TcAttachType::Egress));
    }
    points.push(at_uplink("from_netdev", TcAttachType::Ingress));
    points
}
