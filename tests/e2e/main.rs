//! End-to-end tests: the `labctl` binary against the real kernel. Each test has a lab of its own and
//! takes it down again. Needs root; see CONTRIBUTING.md.

mod agent;
mod ask;
mod facts;
mod files;
mod hostile;
mod kernel;
mod lab;
mod lifecycle;
mod modes;
mod mutation;
mod proof;
mod refusals;
mod restart;
mod root;
#[path = "../witness/tcpdump.rs"]
mod tcpdump;
mod traffic;
#[path = "../witness/verdict.rs"]
mod verdict;
mod witness;
mod world;
