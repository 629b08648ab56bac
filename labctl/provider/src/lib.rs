//! Where labs run. A provider turns a [`labctl_model::Plan`] into hosts that packets can travel between,
//! finds them again after a crash, and takes them away.
//!
//! Owns: namespaces, links, addresses, routes, the lab's bpf file system and its state file; Docker networks,
//! containers and images, kind clusters and what is deployed in clusters; and the undo of each of them. Does not
//! own: what runs inside a host (the roles), eBPF programs, captures, verdicts. Third stage of the flow: plan ->
//! **provider** -> node roles.
//!
//! The [`NetnsProvider`] needs root and a Linux kernel, the [`KindProvider`] Docker and `kind`. Every call of theirs
//! is synchronous and may be made from any thread that runs no async runtime; threads that change their namespace are
//! never the caller's.

mod blocking;
mod cluster;
mod docker;
mod host;
mod inspect;
mod kind;
pub mod kubernetes;
mod lab;
mod labs;
mod netns;
pub mod relay;
mod steps;
mod store;

pub use cluster::{ClusterOptions, ClusterPreflightError, ClusterProvider, ClusterUpError, LookError};
pub use docker::{BinaryError, Engine, EngineError};
pub use host::{Host, HostInterface, HostKind, MacAddress, Peer, Place};
pub use inspect::{
    InspectError, InspectedInterface, InspectedPod, Inspection, Offloads, boot_id, inspect, join_pod, observe,
};
pub use kind::{KindCliError, KindPreflightError, KindProvider, KindUpError, ObserveError};
pub use lab::{Lab, LabEntry, LabState};
pub use labs::{Labs, PROVIDERS, ProvidedLab};
pub use netns::{
    BrokenNamespace, DownError, DownReport, GcError, GcReport, GcSweep, LabLock, LockError, NetlinkError,
    NetnsProvider, PreflightError, Problem, ProcessInfo, StateError, UpError,
};
pub use steps::{Cancel, Step, StepEvent};
