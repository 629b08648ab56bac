//! The Docker engine of this machine: networks, images, containers, files and commands in them.
//!
//! Owns: finding the engine, its requests in the words of labs, the image that is made of this program. Does
//! not own: which networks and containers a lab has (`kind`), anything of Kubernetes.

mod binary;
mod container;
mod engine;
mod error;
mod exec;
mod image;
mod network;

pub(crate) use binary::AgentBinary;
pub use binary::BinaryError;
pub(crate) use container::{Container, ContainerSpec};
pub use engine::Engine;
pub use error::EngineError;
pub(crate) use exec::{Ended, ended};
pub(crate) use image::AgentImage;
pub(crate) use network::Network;

/// Label of everything in Docker that a lab owns: the lab's name.
pub(crate) const LAB_LABEL: &str = "labctl.lab";
/// Label beside it: the state folder that knows the lab. Labs of other state folders are foreign.
pub(crate) const STATE_LABEL: &str = "labctl.state";
