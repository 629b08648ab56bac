//! The node agent of a real cluster: watches the Kubernetes API and makes this node's network and datapath
//! what it says.
//!
//! Owns: the CNI configuration, routes to the other nodes' pods, and which services and backends the datapath
//! knows. Does not own: the datapath itself ([`datapath_agent`]), deploying the agent (the provider).
