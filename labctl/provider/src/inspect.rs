//! A node from inside: its interfaces, and those of every pod on it.
//!
//! Owns: the form of the answer, looking through the namespaces that container runtimes keep below
//! `/run/netns`, joining the one of a pod. Does not own: how the look gets into the node (`labctl node inspect`
//! in its container or in a pod of the host's network), or what it means for a plan. Runs in nodes.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use labctl_wire::facts::{Hook, HostFacts, InterfaceFacts, NeighbourFacts, ProgramFacts};
use labctl_wire::packet::Mac;
use serde::{Deserialize, Serialize};

use crate::host::MacAddress;
use crate::netns::netlink::{Netlink, NetlinkError};
use crate::netns::{ethtool, namespace};

/// Why a node cannot be looked into.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The kernel does not list links or addresses.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The folder of namespaces cannot be read.
    #[error("read {}: {source}", path.display())]
    Read {
        /// The folder or file.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// The thread may not enter a namespace.
    #[error("enter {}: {source}; it takes CAP_SYS_ADMIN on the node", path.display())]
    Enter {
        /// The namespace's file.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// Offloads stay on.
    #[error("switch offloads of {interface} off: {source}; `offloads: true` in the lab file keeps them on")]
    Offloads {
        /// The interface.
        interface: String,
        /// The system's words.
        source: io::Error,
    },
    /// No pod of this node has the address.
    #[error(
        "find pod {address}: no network namespace in /run/netns has this address; the pod is gone, or on another node"
    )]
    NoPod {
        /// The pod's address.
        address: Ipv4Addr,
    },
}

/// What a node, or a client, consists of. JSON on the stdout of `labctl node inspect`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspection {
    /// Interfaces of the namespace itself that are up, loopback left out, by index.
    pub interfaces: Vec<InspectedInterface>,
    /// Every pod with a namespace of its own.
    pub pods: Vec<InspectedPod>,
}

/// A pod as its node's runtime keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InspectedPod {
    /// The file of its network namespace, on the node.
    pub netns: PathBuf,
    /// Its interfaces that are up, loopback left out, by index.
    pub interfaces: Vec<InspectedInterface>,
}

impl InspectedPod {
    /// Whether one of its interfaces has this address.
    pub fn has(&self, address: Ipv4Addr) -> bool {
        self.interfaces.iter().any(|i| i.addresses.iter().any(|net| net.addr() == address))
    }
}

/// An interface that is up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InspectedInterface {
    /// Its name.
    pub name: String,
    /// Its index in its namespace.
    pub index: u32,
    /// Its Ethernet address; `None` for one that has none.
    pub mac: Option<MacAddress>,
    /// Its MTU in bytes, without the Ethernet header.
    pub mtu: u32,
    /// Its IPv4 addresses with their prefixes.
    pub addresses: Vec<Ipv4Net>,
    /// Of a veth: index of the other end, in that end's namespace. A pod's `eth0` names the interface of its node so.
    pub peer: Option<u32>,
}

/// What to do about offloads while looking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offloads {
    /// Leave them.
    Keep,
    /// Switch them off on every veth, of pods too: captures then see what a wire would carry.
    Off,
}

/// Looks at the calling thread's network namespace and those of pods.
///
/// # Errors
/// What the kernel refused. A pod that ends meanwhile is left out.
pub fn inspect(offloads: Offloads) -> Result<Inspection, InspectError> {
    let interfaces = interfaces(offloads)?;
    let mut pods = Vec::new();
    for netns in pod_namespaces()? {
        match in_namespace(&netns, || self::interfaces(offloads)) {
            Ok(Ok(interfaces)) => pods.push(InspectedPod { netns, interfaces }),
            Ok(Err(_)) | Err(InspectError::Enter { .. }) if !netns.exists() => {}
            Ok(Err(error)) | Err(error) => return Err(error),
        }
    }
    Ok(Inspection { interfaces, pods })
}

/// Moves the calling thread into the network namespace of the pod with this address. Threads that it starts
/// afterwards are there too, others are not: call it before there are any.
///
/// # Errors
/// [`InspectError::NoPod`], or that the namespace may not be entered.
pub fn join_pod(address: Ipv4Addr) -> Result<(), InspectError> {
    for netns in pod_namespaces()? {
        let has = || -> Result<bool, InspectError> {
            Ok(Netlink::open()?.addresses()?.iter().any(|(_, found, _)| *found == address))
        };
        // One that cannot be read may be another's, or about to go.
        if !in_namespace(&netns, has).is_ok_and(|found| found.unwrap_or(false)) {
            continue;
        }
        let joined = File::open(&netns).and_then(namespace::join);
        return joined.map_err(|source| InspectError::Enter { path: netns, source });
    }
    Err(InspectError::NoPod { address })
}

/// What the calling thread's network namespace is made of, interfaces that are down too; of eBPF programs those that
/// rtnetlink tells of. TCX programs are the datapath agent's to ask for.
///
/// # Errors
/// What the kernel refused.
pub fn observe() -> Result<HostFacts, InspectError> {
    let mac = |mac: MacAddress| Mac(mac.0);
    let mut netlink = Netlink::open()?;
    let addresses = netlink.addresses()?;
    let mut interfaces = Vec::new();
    for link in netlink.links()?.into_iter().filter(|link| link.name != "lo") {
        let xdp = link.xdp.map(|id| ProgramFacts { hook: Hook::Xdp, id, name: String::new() });
        // Where there is no clsact qdisc the kernel refuses to list its filters.
        let filters =
            netlink.filters(link.index).unwrap_or_default().into_iter().map(|filter| ProgramFacts {
                hook: if filter.is_ingress { Hook::Ingress } else { Hook::Egress },
                id: filter.id,
                name: filter.name,
            });
        let own = addresses.iter().filter(|(index, ..)| *index == link.index);
        interfaces.push(InterfaceFacts {
            addresses: own.map(|(_, address, prefix)| (*address, *prefix)).collect(),
            programs: xdp.into_iter().chain(filters).collect(),
            name: link.name,
            index: link.index,
            mac: link.mac.map(mac),
            mtu: link.mtu,
            up: link.up,
            kind: link.kind,
            master: link.master,
        });
    }
    interfaces.sort_by_key(|interface| interface.index);
    let neighbours = netlink.neighbours()?.into_iter().map(|n| NeighbourFacts {
        interface: n.index,
        address: n.address,
        mac: mac(n.mac),
    });
    // Of this thread, not of the process: threads of a test or of a provider are in others' namespaces.
    let netns = std::fs::metadata("/proc/thread-self/ns/net").map_or(0, |meta| meta.ino() as u32);
    Ok(HostFacts { interfaces, neighbours: neighbours.collect(), netns, boot: boot_id() })
}

/// Names this run of this kernel, for all of its namespaces; empty where the kernel does not say.
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

fn pod_namespaces() -> Result<Vec<PathBuf>, InspectError> {
    let folder = Path::new(namespace::NETNS_DIR);
    let names = crate::netns::host_lock::names_in(folder)
        .map_err(|source| InspectError::Read { path: folder.to_owned(), source })?;
    let files = names.into_iter().map(|name| folder.join(name));
    Ok(files.filter(|path| File::open(path).is_ok_and(|file| namespace::is_namespace(&file))).collect())
}

fn in_namespace<T: Send>(netns: &Path, f: impl FnOnce() -> T + Send) -> Result<T, InspectError> {
    namespace::enter(netns, f).map_err(|source| InspectError::Enter { path: netns.to_owned(), source })
}

fn interfaces(offloads: Offloads) -> Result<Vec<InspectedInterface>, InspectError> {
    let mut netlink = Netlink::open()?;
    let links = netlink.links()?;
    let addresses = netlink.addresses()?;
    let mut found = Vec::new();
    for link in links.into_iter().filter(|link| link.up && link.name != "lo") {
        if offloads == Offloads::Off && link.peer.is_some() {
            ethtool::offloads_off(&link.name)
                .map_err(|source| InspectError::Offloads { interface: link.name.clone(), source })?;
        }
        let own = addresses.iter().filter(|(index, ..)| *index == link.index);
        found.push(InspectedInterface {
            addresses: own.filter_map(|(_, address, prefix)| Ipv4Net::new(*address, *prefix).ok()).collect(),
            name: link.name,
            index: link.index,
            mac: link.mac,
            mtu: link.mtu,
            peer: link.peer,
        });
    }
    found.sort_by_key(|interface| interface.index);
    Ok(found)
}
