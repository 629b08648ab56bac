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

impl std::fmt::Display for HostKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Client => "client",
            Self::Node => "node",
            Self::Pod => "pod",
        })
    }
}

/// Which way a frame passed an interface, seen from the host that has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// The host received it.
    In,
    /// The host sent it.
    Out,
    /// The capture does not say.
    #[default]
    Unknown,
}

impl Direction {
    /// Bits 0 and 1 of pcapng's `epb_flags`.
    pub const fn flags(self) -> u32 {
        match self {
            Self::Unknown => 0,
            Self::In => 1,
            Self::Out => 2,
        }
    }

    /// The direction in pcapng's `epb_flags`.
    pub const fn from_flags(flags: u32) -> Self {
        match flags & 3 {
            1 => Self::In,
            2 => Self::Out,
            _ => Self::Unknown,
        }
    }
}

impl std::fmt::Display for Direction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::In => "in",
            Self::Out => "out",
            Self::Unknown => "?",
        })
    }
}

/// One interface of one host; a pcapng interface block is named `host:interface`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CapturePoint {
    /// Client, node or pod name.
    pub host: String,
    /// What it is.
    pub kind: HostKind,
    /// Interface name inside the host; empty if the file does not say.
    pub interface: String,
}

impl std::fmt::Display for CapturePoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.interface.as_str() {
            "" => f.write_str(&self.host),
            interface => write!(f, "{}:{interface}", self.host),
        }
    }
}
