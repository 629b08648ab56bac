//! What a provider says while it works, and how a caller stops it.
//!
//! Owns: the names of the steps and the cancel flag. Does not own: how either is shown. Between the
//! provider and the command line.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A step of `up` or `down`, in the order in which it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Leftovers of a killed `up` of the same lab are removed, and the new names are written down.
    Prepare,
    /// One namespace a host.
    Namespaces,
    /// The bridge and a veth pair a host.
    Links,
    /// Addresses and routes.
    Addresses,
    /// Checksums and segmentation are no longer left to hardware that is not there.
    Offloads,
    /// Disturbances that the lab file asks for.
    Faults,
    /// The lab's own bpf file system.
    BpfFs,
    /// Waiting until every link carries packets.
    Ready,
    /// The state file that makes the lab findable.
    State,
    /// `down`: processes of the lab end.
    Processes,
    /// `down`: namespaces go, and all links with them.
    RemoveNamespaces,
    /// `down`: mounts and files go.
    RemoveFiles,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Prepare => "prepare",
            Self::Namespaces | Self::RemoveNamespaces => "namespaces",
            Self::Links => "links",
            Self::Addresses => "addresses",
            Self::Offloads => "offloads",
            Self::Faults => "faults",
            Self::BpfFs => "bpf file system",
            Self::Ready => "links ready",
            Self::State => "state",
            Self::Processes => "processes",
            Self::RemoveFiles => "files",
        })
    }
}

/// Progress of `up` and `down`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepEvent {
    /// The step begins.
    Began(Step),
    /// Something was made or removed: `namespace labctl-dsr-worker`.
    Did(Step, String),
    /// The step is complete.
    Ended(Step, Duration),
}

/// A flag that stops an `up`: it undoes what it made and returns [`crate::UpError::Cancelled`].
/// Clones share the flag; setting it is safe in a signal handler.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// A flag that is not set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Uses a flag that somebody else sets, such as a signal handler's.
    pub fn from_flag(flag: Arc<AtomicBool>) -> Self {
        Self(flag)
    }

    /// Sets the flag.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether the flag is set.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}
