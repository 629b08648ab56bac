//! A lab that is up, as its state file describes it.
//!
//! Owns: looking up hosts, interfaces and folders of a lab. Does not own: the state file's format, making
//! or removing anything. Made by the provider, used by every later stage.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use labctl_model::{Plan, ProviderKind};

use crate::host::{Host, HostInterface, HostKind};
use crate::netns::{Problem, check};
use crate::{cluster, kind};

/// A complete lab.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lab {
    pub(crate) asked: Plan,
    pub(crate) plan: Plan,
    pub(crate) hosts: Vec<Host>,
    pub(crate) dir: PathBuf,
    pub(crate) created: u64,
    pub(crate) version: String,
}

impl Lab {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.plan.lab
    }

    /// The plan that it was made from, word for word: what an `up` compares with its own.
    pub fn asked(&self) -> &Plan {
        &self.asked
    }

    /// The plan as it came out: in a cluster, node and pod addresses, pod names and the ClusterIP are those
    /// that were found when the lab was looked up. Node names are the lab file's. In a netns lab the
    /// same as [`Lab::asked`].
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Every host: the switch if there is one, the client, then each node followed by its pods.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The host with this name. A hostNetwork pod is not a host: see [`Lab::host_of_pod`].
    pub fn host(&self, name: &str) -> Option<&Host> {
        self.hosts.iter().find(|h| h.name == name)
    }

    /// The client.
    ///
    /// # Panics
    /// Never: a state file without a client is refused when it is read.
    pub fn client(&self) -> &Host {
        self.of_kind(HostKind::Client).next().expect("the state file was checked for a client")
    }

    /// The switch; only a netns lab has one that is a host.
    pub fn switch(&self) -> Option<&Host> {
        self.of_kind(HostKind::Switch).next()
    }

    /// Every node, in the order of the plan.
    pub fn nodes(&self) -> impl Iterator<Item = &Host> {
        self.of_kind(HostKind::Node)
    }

    /// Every pod that has a namespace of its own.
    pub fn pods(&self) -> impl Iterator<Item = &Host> {
        self.of_kind(HostKind::Pod)
    }

    /// Where the processes of a pod run: its own namespace, or its node's for a hostNetwork pod.
    pub fn host_of_pod(&self, pod: &str) -> Option<&Host> {
        let (node, plan) = self.plan.backends().find(|(_, p)| p.name == pod)?;
        self.host(if plan.host_network { &node.name } else { pod })
    }

    /// The host side of a pod's veth with the node that has it; `None` for a hostNetwork pod.
    pub fn pod_interface(&self, pod: &str) -> Option<(&Host, &HostInterface)> {
        self.nodes().find_map(|node| {
            let interface = node.interfaces.iter().find(|i| i.pod.as_deref() == Some(pod))?;
            Some((node, interface))
        })
    }

    /// The lab's own folder below the run directory, or below the state directory of clusters' labs.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Folder of a node in the lab's own bpf file system, for pinned maps and links.
    pub fn bpf_dir(&self, node: &str) -> PathBuf {
        self.dir.join("bpf").join(node)
    }

    /// Folder for the logs of roles.
    pub fn log_dir(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// When it was made.
    pub fn created(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.created)
    }

    /// Version of labctl that made it.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// What is not as `up` left it: a namespace, interface, address or the bpf file system missing, a link
    /// down; a container that does not run, an agent or backend that is not ready. Empty for a healthy lab.
    /// Needs root for a netns lab, and Docker for a kind lab.
    pub fn check(&self) -> Vec<Problem> {
        match self.asked.provider {
            ProviderKind::Netns => check::lab(self),
            ProviderKind::Kind => kind::check::lab(self),
            ProviderKind::Cluster => cluster::check::lab(self),
        }
    }

    fn of_kind(&self, kind: HostKind) -> impl Iterator<Item = &Host> {
        self.hosts.iter().filter(move |h| h.kind == kind)
    }
}

/// A lab in the run directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabEntry {
    /// Its name.
    pub name: String,
    /// How far it is.
    pub state: LabState,
}

/// How far a lab is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LabState {
    /// Complete. Whether it also is healthy says [`Lab::check`].
    Ready(Box<Lab>),
    /// A command is making or removing it.
    Busy {
        /// The command's process, where the kernel tells.
        pid: Option<u32>,
    },
    /// A killed command left it so; `labctl gc` removes it.
    Incomplete,
    /// Its state file cannot be read, for instance because another version wrote it; `labctl down` removes it.
    Unreadable {
        /// What is wrong with the file.
        reason: String,
    },
}
