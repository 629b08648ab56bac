//! Where a capture was taken.

use serde::{Deserialize, Serialize};

/// What kind of host a capture point is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostKind {
    /// The client.
    Client,
    /// A node's own namespace.
    Node,
    /// A backend pod.
    Pod,
}

/// One interface of one host; a pcapng interface block is named `host:interface`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CapturePoint {
    /// Client, node or pod name.
    pub host: String,
    /// What it is.
    pub kind: HostKind,
    /// Interface name inside the host.
    pub interface: String,
}

impl std::fmt::Display for CapturePoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.host, self.interface)
    }
}
