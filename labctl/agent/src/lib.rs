//! The node agent of a real cluster: watches the Kubernetes API and makes this node's network and datapath
//! what it says.
//!
//! Owns: the CNI configuration, routes to the other nodes' pods, and which services and backends the datapath
//! knows. Does not own: the datapath itself ([`datapath_agent`]), deploying the agent (the provider).
//!
//! Data flows one way: API server (`watch`) and kernel (`netlink`) -> [`ClusterView`] -> [`services`] ->
//! [`Retention`] -> [`datapath_agent::NodeState`] -> [`datapath_agent::Datapath`].

mod agent;
mod clean;
mod cni;
mod netlink;
mod options;
mod prepare;
mod ready;
mod retention;
mod routes;
mod services;
mod view;
mod watch;

pub use agent::{AgentError, run};
pub use clean::{CleanError, clean};
pub use cni::{CniError, Conflist};
pub use netlink::NetlinkError;
pub use options::{AgentOptions, NetworkMode, ServiceName};
pub use prepare::{PrepareError, prepare};
pub use ready::is_ready;
pub use retention::{FLICKER, RETENTION, Retention};
pub use routes::{NodeRoute, node_routes};
pub use services::{Services, services};
pub use view::{ClusterNode, ClusterView, Endpoint, Slice, SlicePort, cluster_node, slice};
pub use watch::WatchError;
