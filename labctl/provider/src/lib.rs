//! Where labs run. A provider turns a [`labctl_model::Plan`] into hosts that packets can travel between,
//! finds them again after a crash, and takes them away.
//!
//! Owns: namespaces, links, addresses, routes, the lab's bpf file system and its state file, and the undo of
//! each of them. Does not own: what runs inside a host (the roles), eBPF programs, captures, verdicts. Third
//! stage of the flow: plan -> **provider** -> node roles.
//!
//! The [`NetnsProvider`] needs root and a Linux kernel. Every call is synchronous and may be made from any
//! thread, also from inside an async runtime: threads that change their namespace are never the caller's.

mod host;
mod lab;
mod netns;
mod steps;

pub use host::{Host, HostInterface, HostKind, MacAddress, Peer, Place};
pub use lab::{Lab, LabEntry, LabState};
pub use netns::{
    BrokenNamespace, DownError, DownReport, GcError, GcReport, GcSweep, LabLock, LockError, NetlinkError,
    NetnsProvider, PreflightError, Problem, ProcessInfo, StateError, UpError,
};
pub use steps::{Cancel, Step, StepEvent};
