//! Making a lab, step by step, and undoing it when a step fails.
//!
//! Owns: the order of the steps, the netlink messages, the undo. Does not own: what is made (`topology`), how it
//! is removed (`sweep`).
//!
//! A veth pair is made where it belongs: one message in the near end's namespace creates both ends, the far
//! one in its own namespace, and enslaves the near one. Nothing ever exists in the caller's namespace, and
//! nothing is moved or renamed, which the kernel would do with a grace period each.

use std::io;
use std::num::NonZero;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use labctl_model::Plan;
use rtnetlink::packet_route::link::{BridgeStpState, InfoData, InfoKind, InfoVeth, LinkMessage};
use rtnetlink::packet_route::route::{RouteProtocol, RouteScope};
use rtnetlink::{
    AddressMessageBuilder, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
};

use super::host_lock::HostLock;
use super::mark::Mark;
use super::namespace::{self, BrokenNamespace, NETNS_DIR, Opened};
use super::netlink::{NetlinkError, Request};
use super::state::{self, LabLock};
use super::sweep::{self, DownError};
use super::topology::{Pair, Topology};
use super::{PreflightError, faults, mounts, offloads, preflight, ready};
use crate::host::{Host, HostInterface, HostKind};
use crate::lab::Lab;
use crate::steps::{Cancel, Step, StepEvent};

/// Two make namespaces 1.7 times faster than one; more only wait for the kernel's lock.
const WORKERS: usize = 2;

/// Why a lab did not come up. Everything that was made is gone, unless the variant says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum UpError {
    /// The machine cannot run it.
    #[error(transparent)]
    Preflight(#[from] PreflightError),
    /// It is up already.
    #[error("make lab {lab}: it is up; run `labctl down {lab}` first")]
    Exists {
        /// The lab.
        lab: String,
    },
    /// The lock is another lab's.
    #[error("make lab {lab} under the lock of lab {locked}: take the lab's own lock")]
    WrongLock {
        /// The lab of the plan.
        lab: String,
        /// The lab of the lock.
        locked: String,
    },
    /// Remains of an earlier `up` cannot be removed.
    #[error("remove what an earlier command left: {0}")]
    Leftovers(#[source] DownError),
    /// A namespace could not be made.
    #[error("make host {host}: {source}")]
    Namespace {
        /// The host.
        host: String,
        /// What failed.
        source: BrokenNamespace,
    },
    /// The kernel refused a link, an address or a route.
    #[error("set up host {host}: {source}")]
    Netlink {
        /// The host.
        host: String,
        /// What was refused.
        source: NetlinkError,
    },
    /// Offloads could not be switched off.
    #[error("switch offloads off on {host}: {reason}; `offloads: true` in the lab file keeps them on")]
    Offloads {
        /// The host.
        host: String,
        /// The interface, and what the kernel said.
        reason: String,
    },
    /// A fault of the lab file could not be set up.
    #[error("set up fault {fault} on {host}: {reason}")]
    Fault {
        /// The fault's name in lab files.
        fault: &'static str,
        /// The host.
        host: String,
        /// What went wrong and what to do.
        reason: String,
    },
    /// A file, folder or mount could not be made.
    #[error("make {}: {source}", path.display())]
    Io {
        /// What.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// Links did not begin to carry packets.
    #[error("see every link up: {} still down after {} s; look at `dmesg`", links.join(", "), waited.as_secs())]
    NotReady {
        /// How long was waited.
        waited: Duration,
        /// `host:interface` of each.
        links: Vec<String>,
    },
    /// The caller's cancel flag was set.
    #[error("make the lab: interrupted, and everything that was made is removed")]
    Cancelled,
    /// A step failed and so did its undo.
    #[error("{cause}; and then to undo it: {left}")]
    Undo {
        /// The step's error.
        cause: Box<UpError>,
        /// What stayed.
        left: DownError,
    },
}

impl UpError {
    /// Names the host of a netlink error.
    pub(super) fn netlink(host: &Host) -> impl FnOnce(NetlinkError) -> Self + use<> {
        let host = host.name.clone();
        move |source| Self::Netlink { host, source }
    }

    fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

pub(super) fn up(
    run_dir: &Path,
    lock: &LabLock,
    plan: &Plan,
    cancel: &Cancel,
    on_step: &mut dyn FnMut(StepEvent),
) -> Result<Lab, UpError> {
    if lock.lab() != plan.lab {
        return Err(UpError::WrongLock { lab: plan.lab.clone(), locked: lock.lab().to_owned() });
    }
    if matches!(state::read(lock.dir()), Ok(Some(_))) {
        return Err(UpError::Exists { lab: plan.lab.clone() });
    }
    preflight::run(run_dir, plan)?;
    // A panic of `on_step` unwinds through the guard, which then undoes as an error would.
    let undo = Undo { run_dir, lock };
    let topology = Topology::of(plan);
    match (Build { run_dir, lock, plan, topology: &topology, cancel, on_step }).run() {
        Ok(lab) => {
            undo.disarm();
            Ok(lab)
        }
        Err(cause) => Err(undo.now(cause)),
    }
}

struct Undo<'a> {
    run_dir: &'a Path,
    lock: &'a LabLock,
}

impl Undo<'_> {
    fn disarm(self) {
        std::mem::forget(self);
    }

    fn now(self, cause: UpError) -> UpError {
        let swept = sweep::sweep(self.run_dir, self.lock, &mut |_| {});
        std::mem::forget(self);
        match swept {
            Ok(_) => cause,
            Err(left) => UpError::Undo { cause: Box::new(cause), left },
        }
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        // Only a panic comes here, and its message is the one to show.
        let _ = sweep::sweep(self.run_dir, self.lock, &mut |_| {});
    }
}

struct Build<'a> {
    run_dir: &'a Path,
    lock: &'a LabLock,
    plan: &'a Plan,
    topology: &'a Topology,
    cancel: &'a Cancel,
    on_step: &'a mut dyn FnMut(StepEvent),
}

impl Build<'_> {
    fn run(mut self) -> Result<Lab, UpError> {
        let (hosts, plan, cancel) = (&self.topology.hosts, self.plan, self.cancel);
        self.step(Step::Prepare, Self::prepare)?;
        let mut opened = self.step(Step::Namespaces, Self::make_namespaces)?;
        self.step(Step::Links, |b| b.make_links(&mut opened))?;
        self.step(Step::Addresses, |b| b.add_addresses(&mut opened))?;
        if !plan.offloads {
            self.step(Step::Offloads, |_| offloads::switch_off(hosts))?;
        }
        if !plan.faults.is_empty() {
            self.step(Step::Faults, |b| faults::apply(plan, hosts, &mut |did| b.did(Step::Faults, did)))?;
        }
        self.step(Step::BpfFs, Self::mount_bpffs)?;
        self.step(Step::Ready, |_| ready::wait(hosts, &mut opened, cancel))?;
        self.step(Step::State, |b| {
            state::write_ready(b.lock, plan, hosts.clone()).map_err(UpError::io(b.lock.dir()))
        })
    }

    fn step<T>(
        &mut self,
        step: Step,
        work: impl FnOnce(&mut Self) -> Result<T, UpError>,
    ) -> Result<T, UpError> {
        let began = Instant::now();
        (self.on_step)(StepEvent::Began(step));
        self.stop_if_cancelled()?;
        let made = work(self)?;
        (self.on_step)(StepEvent::Ended(step, began.elapsed()));
        self.stop_if_cancelled()?;
        Ok(made)
    }

    fn did(&mut self, step: Step, what: String) {
        (self.on_step)(StepEvent::Did(step, what));
    }

    fn stop_if_cancelled(&self) -> Result<(), UpError> {
        if self.cancel.is_cancelled() { Err(UpError::Cancelled) } else { Ok(()) }
    }

    fn prepare(&mut self) -> Result<(), UpError> {
        if self.has_leftovers() {
            sweep::sweep(self.run_dir, self.lock, &mut |_| {}).map_err(UpError::Leftovers)?;
        }
        // From the check of the names to their being written down, no other lab may look.
        let mut host = HostLock::take().map_err(UpError::io("/run/labctl.lock"))?;
        host.prepare_netns_dir().map_err(UpError::io(NETNS_DIR))?;
        preflight::names(self.run_dir, self.plan, self.topology)?;
        state::write_intent(self.lock, self.plan, self.topology).map_err(UpError::io(self.lock.dir()))
    }

    fn has_leftovers(&self) -> bool {
        let any_name = || self.topology.hosts.iter().any(|h| h.netns().exists());
        super::host_lock::names_in(self.lock.dir()).is_ok_and(|files| !files.is_empty()) || any_name()
    }

    fn make_namespaces(&mut self) -> Result<Vec<Opened>, UpError> {
        let hosts = &self.topology.hosts;
        let workers = thread::available_parallelism().map_or(1, NonZero::get).min(WORKERS);
        let (cancel, run_dir) = (self.cancel, self.run_dir);
        let mut made: Vec<(usize, Result<Opened, BrokenNamespace>)> = thread::scope(|scope| {
            let threads: Vec<_> = (0..workers)
                .map(|first| {
                    let mine = (first..hosts.len()).step_by(workers);
                    scope.spawn(move || make_some(run_dir, hosts, mine, cancel))
                })
                .collect();
            threads.into_iter().flat_map(|t| t.join().expect("making namespaces does not panic")).collect()
        });
        made.sort_by_key(|(at, _)| *at);
        let mut opened = Vec::with_capacity(hosts.len());
        for (at, result) in made {
            let host = &hosts[at];
            opened.push(result.map_err(|source| UpError::Namespace { host: host.name.clone(), source })?);
            self.did(Step::Namespaces, format!("namespace {}", host.namespace()));
        }
        // Fewer than there are hosts only after a cancel.
        self.stop_if_cancelled()?;
        Ok(opened)
    }

    fn make_links(&mut self, opened: &mut [Opened]) -> Result<(), UpError> {
        let topology = self.topology;
        for (at, host) in topology.hosts.iter().enumerate() {
            let mut requests = Vec::new();
            if host.kind == HostKind::Switch {
                requests.push(create_bridge(&host.interfaces[0]));
            }
            let pairs: Vec<_> = topology.pairs.iter().filter(|p| p.near.host == at).collect();
            requests.extend(pairs.iter().map(|pair| create_pair(topology, pair, opened)));
            opened[at].netlink.batch(requests).map_err(UpError::netlink(host))?;
            for pair in pairs {
                let (near, far) = (topology.interface(pair.near), &topology.hosts[pair.far.host]);
                self.did(Step::Links, format!("link {}:{} - {}:eth0", host.name, near.name, far.name));
            }
            self.stop_if_cancelled()?;
        }
        Ok(())
    }

    fn add_addresses(&mut self, opened: &mut [Opened]) -> Result<(), UpError> {
        let topology = self.topology;
        for (at, host) in topology.hosts.iter().enumerate() {
            let mut requests: Vec<_> = host.interfaces.iter().filter_map(add_address).collect();
            requests.extend(host.uplink().map(raise));
            requests.extend(topology.routes[at].iter().map(add_route));
            opened[at].netlink.batch(requests).map_err(UpError::netlink(host))?;
            self.stop_if_cancelled()?;
        }
        Ok(())
    }

    fn mount_bpffs(&mut self) -> Result<(), UpError> {
        let dir = state::bpf_dir(self.lock.dir());
        let nodes = self.plan.nodes.iter().map(|n| &n.name);
        mounts::mount_bpffs(&dir, nodes).map_err(UpError::io(&dir))?;
        self.did(Step::BpfFs, format!("mount {}", dir.display()));
        Ok(())
    }
}

/// Makes the namespaces of some hosts, one after the other, on a thread that changes its own.
fn make_some(
    run_dir: &Path,
    hosts: &[Host],
    mine: impl Iterator<Item = usize>,
    cancel: &Cancel,
) -> Vec<(usize, Result<Opened, BrokenNamespace>)> {
    let mut made = Vec::new();
    for at in mine {
        if cancel.is_cancelled() || made.last().is_some_and(|(_, r): &(_, Result<_, _>)| r.is_err()) {
            break;
        }
        let host = &hosts[at];
        let mark = Mark { lab: host.lab.clone(), host: host.name.clone(), run_dir: run_dir.to_owned() };
        made.push((at, namespace::make(host.namespace(), &mark, host.kind == HostKind::Node)));
    }
    made
}

/// How long the bridge remembers where an address is, in hundredths of a second: a year.
const BRIDGE_AGEING: u32 = 365 * 86_400 * 100;

/// A bridge that forwards at once and sends nothing by itself. VLAN filtering is off from the start; asking for
/// it is EOPNOTSUPP on kernels without CONFIG_BRIDGE_VLAN_FILTERING.
///
/// It never forgets an address: after five silent minutes it would flood the next frame to every port, and the
/// client's link would carry a pod's address.
fn create_bridge(bridge: &HostInterface) -> Request {
    let link = LinkBridge::new(&bridge.name)
        .index(bridge.index)
        .address(bridge.mac.0.to_vec())
        .mtu(bridge.mtu.into())
        .stp_state(BridgeStpState::Disabled)
        .forward_delay(0)
        .mcast_snooping(false)
        .ageing_time(BRIDGE_AGEING)
        .up()
        .build();
    Request::new_link("create bridge", &bridge.name, link)
}

/// A veth pair: the near end up and enslaved, the far end in its own namespace. The far end cannot be taken
/// up here: the kernel configures it before the two know each other (`veth_open` says ENOTCONN).
fn create_pair(topology: &Topology, pair: &Pair, opened: &[Opened]) -> Request {
    let (near, far) = (topology.interface(pair.near), topology.interface(pair.far));
    let peer = describe(LinkUnspec::new_with_name(&far.name), far)
        .setns_by_fd(opened[pair.far.host].file.as_raw_fd())
        .build();
    let veth = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
        .name(near.name.clone())
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)));
    let veth = describe(veth, near).up();
    let host = &topology.hosts[pair.near.host];
    let link: LinkMessage = match host.kind {
        HostKind::Switch => veth.controller(host.interfaces[0].index).build(),
        _ => veth.build(),
    };
    Request::new_link("create veth", &near.name, link)
}

fn describe<T>(link: LinkMessageBuilder<T>, interface: &HostInterface) -> LinkMessageBuilder<T> {
    link.index(interface.index).address(interface.mac.0.to_vec()).mtu(interface.mtu.into())
}

fn raise(interface: &HostInterface) -> Request {
    let link = LinkUnspec::new_with_index(interface.index).up().build();
    Request::set_link("raise", &interface.name, link)
}

fn add_address(interface: &HostInterface) -> Option<Request> {
    let net = interface.address?;
    let address = AddressMessageBuilder::<std::net::Ipv4Addr>::new()
        .index(interface.index)
        .address(net.addr(), net.prefix_len())
        .build();
    Some(Request::add_address(&interface.name, address))
}

fn add_route(route: &super::topology::Route) -> Request {
    let message = RouteMessageBuilder::<std::net::Ipv4Addr>::new()
        .destination_prefix(route.destination.addr(), route.destination.prefix_len())
        .output_interface(route.index)
        .protocol(RouteProtocol::Static);
    let message = match route.gateway {
        Some(gateway) => message.gateway(gateway),
        None => message.scope(RouteScope::Link),
    };
    Request::add_route(&route.interface, message.build())
}
