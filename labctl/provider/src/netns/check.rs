//! Whether a lab still is as `up` left it.
//!
//! Owns: comparing the state file with the kernel. Does not own: programs and processes inside the hosts, which
//! their own stages look after.

use std::fmt;
use std::fs::File;
use std::io;
use std::net::Ipv4Addr;

use super::mark::Holding;
use super::netlink::{Link, Netlink};
use super::{mark, mounts, namespace, state};
use crate::host::{Host, HostInterface};
use crate::lab::Lab;

/// Something that is not as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The namespace has no name any more, or the name is another one's.
    NamespaceMissing {
        /// The host.
        host: String,
    },
    /// The namespace cannot be looked into.
    Unreadable {
        /// The host.
        host: String,
        /// The system's words.
        reason: String,
    },
    /// An interface is gone or has another index.
    InterfaceMissing {
        /// The host.
        host: String,
        /// The interface.
        interface: String,
    },
    /// An interface is there and carries nothing.
    LinkDown {
        /// The host.
        host: String,
        /// The interface.
        interface: String,
    },
    /// An address was taken away.
    AddressMissing {
        /// The host.
        host: String,
        /// The interface.
        interface: String,
        /// The address.
        address: Ipv4Addr,
    },
    /// The lab's bpf file system is not mounted.
    BpfFsMissing,
    /// A node or the client has no container any more.
    ContainerMissing {
        /// The container.
        container: String,
    },
    /// A container is there and does not run.
    ContainerStopped {
        /// The container.
        container: String,
        /// Docker's word: `exited`, `paused`.
        state: String,
    },
    /// Kubernetes does not call it ready.
    NotReady {
        /// `agent on worker`, `backend web-1`.
        what: String,
    },
    /// The cluster or Docker cannot be asked.
    NoAnswer {
        /// Whom, and what went wrong.
        reason: String,
    },
}

impl Problem {
    /// Whether the lab can only be made anew: `gc` then removes it.
    pub fn is_fatal(&self) -> bool {
        matches!(
            self,
            Self::NamespaceMissing { .. }
                | Self::InterfaceMissing { .. }
                | Self::BpfFsMissing
                | Self::ContainerMissing { .. }
        )
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NamespaceMissing { host } => write!(f, "host {host} has lost its namespace"),
            Self::Unreadable { host, reason } => write!(f, "host {host} cannot be read: {reason}"),
            Self::InterfaceMissing { host, interface } => write!(f, "{host}:{interface} is gone"),
            Self::LinkDown { host, interface } => write!(f, "{host}:{interface} is down"),
            Self::AddressMissing { host, interface, address } => {
                write!(f, "{host}:{interface} has lost its address {address}")
            }
            Self::BpfFsMissing => f.write_str("the lab's bpf file system is not mounted"),
            Self::ContainerMissing { container } => write!(f, "container {container} is gone"),
            Self::ContainerStopped { container, state } => write!(f, "container {container} is {state}"),
            Self::NotReady { what } => write!(f, "{what} is not ready"),
            Self::NoAnswer { reason } => f.write_str(reason),
        }
    }
}

/// What differs, host by host.
pub(crate) fn lab(lab: &Lab) -> Vec<Problem> {
    let run_dir = lab.dir.parent().unwrap_or(&lab.dir);
    let files: Vec<_> = lab.hosts.iter().map(|h| File::open(h.netns())).collect();
    let marks = mark::read_all(files.iter().flatten().collect::<Vec<_>>());
    let mut marks = marks.into_iter();
    let mut problems = Vec::new();
    for (host, file) in lab.hosts.iter().zip(&files) {
        let missing = || Problem::NamespaceMissing { host: host.name.clone() };
        let Ok(file) = file else {
            problems.push(missing());
            continue;
        };
        match marks.next() {
            // A wiped mark harms nobody as long as the name is there.
            Some(Ok(Holding::Unmarked)) => problems.extend(inside(host, file)),
            Some(Ok(Holding::Marked(mark))) if mark.is_of(run_dir, lab.name()) => {
                problems.extend(inside(host, file));
            }
            Some(Err(e)) => problems.push(unreadable(host, &e)),
            _ => problems.push(missing()),
        }
    }
    if !mounts::is_mount_point(&state::bpf_dir(&lab.dir)).unwrap_or(false) {
        problems.push(Problem::BpfFsMissing);
    }
    problems
}

fn unreadable(host: &Host, error: &dyn fmt::Display) -> Problem {
    Problem::Unreadable { host: host.name.clone(), reason: error.to_string() }
}

fn inside(host: &Host, file: &File) -> Vec<Problem> {
    let read = namespace::on_own_thread(|| {
        namespace::join(file)?;
        let mut netlink = Netlink::open().map_err(io::Error::other)?;
        let links = netlink.links().map_err(io::Error::other)?;
        let addresses = netlink.addresses().map_err(io::Error::other)?;
        io::Result::Ok((links, addresses))
    });
    match read {
        Ok((links, addresses)) => {
            host.interfaces.iter().filter_map(|i| compare(host, i, &links, &addresses)).collect()
        }
        Err(e) => vec![unreadable(host, &e)],
    }
}

fn compare(
    host: &Host,
    interface: &HostInterface,
    links: &[Link],
    addresses: &[(u32, Ipv4Addr, u8)],
) -> Option<Problem> {
    let (host, name) = (host.name.clone(), interface.name.clone());
    let Some(link) = links.iter().find(|l| l.index == interface.index && l.name == interface.name) else {
        return Some(Problem::InterfaceMissing { host, interface: name });
    };
    if !link.up || !link.running || link.forwarding == Some(false) {
        return Some(Problem::LinkDown { host, interface: name });
    }
    let wanted = interface.address?;
    let present = addresses.contains(&(interface.index, wanted.addr(), wanted.prefix_len()));
    (!present).then(|| Problem::AddressMissing { host, interface: name, address: wanted.addr() })
}
