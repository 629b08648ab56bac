//! What an agent is told when it starts. Does not own: reading it from a command line.

use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use datapath_agent::DatapathOptions;
use ipnet::Ipv4Net;

/// One node's agent.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// Name of this node's Node object.
    pub node: String,
    /// `https://ADDRESS:PORT` of the API server, at a node's address: this agent is what makes the
    /// ClusterIP of the API work.
    pub api_server: String,
    /// The datapath.
    pub datapath: DatapathOptions,
    /// Range of all nodes' pods.
    pub pod_cidr: Ipv4Net,
    /// Whether the agent is the network plugin too.
    pub network: NetworkMode,
    /// Folder on a bpffs for the pins.
    pub pins: PathBuf,
    /// The services to serve; empty for all.
    pub only: Vec<ServiceName>,
}

/// Who connects the pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkMode {
    /// The agent: CNI configuration, and routes to the other nodes' pods.
    Full,
    /// The cluster has a network plugin already.
    None,
}

/// Namespace and name of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceName {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl FromStr for ServiceName {
    type Err = Infallible;

    /// `NAMESPACE/NAME`; a name alone is in the namespace `default`.
    fn from_str(text: &str) -> Result<Self, Infallible> {
        let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
        Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
    }
}
