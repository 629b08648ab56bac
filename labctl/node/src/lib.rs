//! What runs inside a node, a pod or the client: serve, fetch, canary, capture.
//!
//! Owns: the backend that reports whom it saw, the client that checks every byte, canaries, the packet capture
//! that loses nothing at its stop, and the compiler of its filter language. Does not own: namespaces and
//! spawning (provider), the command line (labctl), the capture file's format (wire), any judgement (verdict).
//! Sits between the provider, which starts a role inside a host, and wire, whose types the roles report in.
//!
//! Every role speaks IPv4 addresses only and never resolves a name, so that one static binary serves in any
//! root file system.

pub mod canary;
pub mod capture;
pub mod dialogue;
pub mod fetch;
pub mod filter;
pub mod pattern;
pub mod serve;
