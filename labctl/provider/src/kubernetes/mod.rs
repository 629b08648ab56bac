//! A Kubernetes cluster through its API: what the kind and the cluster provider have in common.
//!
//! Owns: connecting by a kubeconfig, applying and deleting rendered manifests, waiting for what they make, reading
//! nodes, pods and Services. Does not own: making clusters, containers, images, or what the pods do. Between a
//! provider and the API server; everything here is async and wants the caller's tokio runtime.
//!
//! Nothing is asked without a limit: a request that has no answer and a wait that is over end in an error that
//! says what was wanted of whom.

mod connect;
mod error;
mod exec;
pub mod manifests;
mod nodes;
mod objects;
pub(crate) mod observe;
mod pods;
mod service;
mod teardown;
mod trouble;
mod wait;

pub use connect::{Access, Cluster};
pub use error::ClusterError;
pub use nodes::ClusterNode;
pub use observe::SightError;
pub use pods::ClusterPod;
pub use service::{ClusterPort, ClusterService, TargetPort};
