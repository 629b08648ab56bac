//! One host of a lab, and how to run something in it.
//!
//! Owns: names and addresses of a host's interfaces, entering its namespace by thread or by process. Does
//! not own: making or removing the namespace. Made by the provider, used by every later stage.

use std::ffi::{CString, OsStr};
use std::fmt;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::netns::namespace;

/// What a host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostKind {
    /// Sends the requests.
    Client,
    /// A node, with the host sides of its pods.
    Node,
    /// A backend pod with a namespace of its own.
    Pod,
    /// The bridge that joins client and nodes.
    Switch,
}

/// An Ethernet address in the order of the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct MacAddress(pub [u8; 6]);

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> Self {
        mac.to_string()
    }
}

impl TryFrom<String> for MacAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(|| not_a_mac(&text))?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| not_a_mac(&text))?;
        }
        if parts.next().is_some() {
            return Err(not_a_mac(&text));
        }
        Ok(Self(bytes))
    }
}

fn not_a_mac(text: &str) -> String {
    format!("`{text}` is not six hexadecimal bytes joined by colons")
}

/// The other end of a veth pair.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Host that has it.
    pub host: String,
    /// Its name there.
    pub interface: String,
}

/// An interface of a host, loopback left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostInterface {
    /// Its name, at most 15 bytes.
    pub name: String,
    /// Its index, the same on every `up` of the same plan.
    pub index: u32,
    /// Its Ethernet address, the same on every `up` of the same plan.
    pub mac: MacAddress,
    /// Its MTU in bytes, without the Ethernet header.
    pub mtu: u16,
    /// Its address and prefix, `None` on the switch.
    pub address: Option<Ipv4Net>,
    /// The other end; `None` for the bridge itself.
    pub peer: Option<Peer>,
    /// On a node: the pod behind this interface.
    pub pod: Option<String>,
}

/// Where a host's processes are started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "in", rename_all = "kebab-case")]
pub enum Place {
    /// A network namespace of this machine, by the name that `ip netns list` shows; files are this machine's.
    Namespace {
        /// `labctl-<lab>-<host>`.
        name: String,
    },
    /// A Docker container that has this program in it.
    Container {
        /// Its name.
        name: String,
        /// Path of labctl in it.
        program: String,
    },
    /// A container of a pod that has this program in it.
    Pod {
        /// How to reach the cluster.
        kubeconfig: PathBuf,
        /// Context of the kubeconfig; `None` is its current one.
        context: Option<String>,
        /// Kubernetes namespace of the pod.
        namespace: String,
        /// Its name.
        pod: String,
        /// Name of the container in it.
        container: String,
        /// Path of labctl in it.
        program: String,
    },
}

/// The name that people know it by: `labctl-dsr-worker`, or `namespace/pod`.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Namespace { name } | Self::Container { name, .. } => f.pad(name),
            Self::Pod { namespace, pod, .. } => f.pad(&format!("{namespace}/{pod}")),
        }
    }
}

/// A host of a lab: the client, a node, a pod, or the switch of a netns lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Its name: the client's, a node's or a pod's name in the plan, or `switch`.
    pub name: String,
    /// What it is.
    pub kind: HostKind,
    /// Where its processes are started. A pod of a cluster has its node's place and
    /// [`Host::in_pod`].
    pub place: Place,
    /// Set for a pod of a cluster: the role first joins the network namespace on that node that has this
    /// address, so a pod needs neither labctl nor any rights of its own to be looked into.
    #[serde(default)]
    pub in_pod: Option<Ipv4Addr>,
    /// Its interfaces, the uplink `eth0` first.
    pub interfaces: Vec<HostInterface>,
    /// The lab that it belongs to.
    pub lab: String,
}

impl Host {
    /// The name that `ip netns list` shows; empty for a host that is no namespace of this machine.
    pub fn namespace(&self) -> &str {
        match &self.place {
            Place::Namespace { name } => name,
            Place::Container { .. } | Place::Pod { .. } => "",
        }
    }

    /// The file that holds the namespace, as `ip netns` expects it.
    pub fn netns(&self) -> PathBuf {
        namespace::path_of(self.namespace())
    }

    /// The interface with this name.
    pub fn interface(&self, name: &str) -> Option<&HostInterface> {
        self.interfaces.iter().find(|i| i.name == name)
    }

    /// The interface towards the switch, or of a pod towards its node; `None` on the switch. Nodes of somebody
    /// else's cluster have their own names for it; it is the first one then.
    pub fn uplink(&self) -> Option<&HostInterface> {
        let first = self.interfaces.first().filter(|_| self.kind != HostKind::Switch);
        self.interface(namespace::UPLINK).or(first)
    }

    /// The host's address: the uplink's.
    pub fn address(&self) -> Option<Ipv4Addr> {
        self.uplink()?.address.map(|net| net.addr())
    }

    /// Runs `f` on a thread of its own inside the host and waits for it. Sockets that `f` opens stay
    /// in the host's namespace wherever they are used later; the caller's own namespace never changes.
    ///
    /// # Errors
    /// When the namespace is gone or may not be entered.
    ///
    /// # Panics
    /// When `f` panics, with its payload.
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> io::Result<T> {
        namespace::enter(&self.netns(), f)
    }

    /// A command that will run inside the host. The caller adds arguments and streams. `spawn` fails
    /// with "not found" when the namespace is gone. Only the network namespace changes: files,
    /// users and `/sys` are the caller's.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        // A namespace name is `labctl-` and names that validation keeps to `[a-z0-9-]`.
        let path = CString::new(self.netns().as_os_str().as_bytes()).unwrap_or_default();
        // SAFETY: between fork and exec the closure only calls open, setns and close, which
        // are async-signal-safe, and allocates nothing: the path was made before.
        unsafe {
            command.pre_exec(move || namespace::join_after_fork(&path));
        }
        command
    }

    /// This program as `node <role> --lab <lab>` inside the host; the caller adds the role's own arguments.
    /// `down` and `gc` know the process by these words and by its namespace.
    ///
    /// In a container or a pod it is a relay: a process here whose stdin, stdout, stderr and exit status are
    /// those of the role there, so that callers need not know the difference.
    pub fn role(&self, role: &str) -> Command {
        // The child resolves the link after the fork, when its executable still is this one: it
        // works also when the file on disk was replaced since.
        const THIS_PROGRAM: &str = "/proc/self/exe";
        let program = match &self.place {
            Place::Namespace { .. } => {
                let mut command = self.command(THIS_PROGRAM);
                command.arg0("labctl").args(["node", role, "--lab", &self.lab]);
                return command;
            }
            Place::Container { program, .. } | Place::Pod { program, .. } => program,
        };
        let mut command = Command::new(THIS_PROGRAM);
        command.arg0("labctl").args(["node", "relay", "--lab", &self.lab, "--to"]);
        // A place is made of strings: it always has a JSON form.
        command.arg(serde_json::to_string(&self.place).unwrap_or_default());
        command.args(["--", program, "node", role, "--lab", &self.lab]);
        if let Some(address) = self.in_pod {
            command.args(["--in-pod", &address.to_string()]);
        }
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_survives_text() {
        let mac = MacAddress([2, 0x42, 172, 18, 0, 3]);
        assert_eq!(mac.to_string(), "02:42:ac:12:00:03");
        assert_eq!(MacAddress::try_from(mac.to_string()), Ok(mac));
        for wrong in ["", "02:42", "02:42:ac:12:00:03:04", "02:42:ac:12:00:0g", "2:42:ac:12:00:03"] {
            assert!(MacAddress::try_from(wrong.to_owned()).is_err(), "{wrong} was taken");
        }
    }
}
