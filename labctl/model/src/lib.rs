//! Lab file to [`Plan`]: what a user wrote, checked, and turned once into what will be done.
//!
//! Owns: the lab file's grammar, its validation and its JSON schema, and the plan that every later
//! stage reads. Does not own: any I/O, any provider. First stage of the flow.

pub mod plan;

pub use plan::{
    Affinity, ClientPlan, DatapathPlan, ExpectedStatus, Fault, FaultPlan, FaultScope, Mode, NodePlan,
    NodeRole, Plan, PodPlan, Protocol, ProviderKind, ServicePlan, TrafficPlan, TrafficPolicy, WireFormat,
};

/// Names of the checks that `verify` runs, in the order of its report. Lab files name them in `expect`.
pub const CHECK_NAMES: [&str; 12] = [
    "handshake",
    "client-ip",
    "return-path",
    "reply-source",
    "dsr-option",
    "request-path",
    "ttl",
    "l2-source",
    "checksums",
    "mtu",
    "no-resets",
    "conservation",
];
