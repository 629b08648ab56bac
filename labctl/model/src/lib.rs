//! Lab file to [`Plan`]: what a user wrote, checked, and turned once into what will be done.
//!
//! Owns: the lab file's grammar, its validation and its JSON schema, and the plan that every later
//! stage reads. Does not own: any I/O, any provider. First stage of the flow.

pub mod plan;

pub use plan::{
    Affinity, ClientPlan, DatapathPlan, Mode, NodePlan, NodeRole, Plan, PodPlan, Protocol, ProviderKind,
    ServicePlan, TrafficPolicy, TrafficPlan, WireFormat,
};
