//! End-to-end tests on real clusters: the static `labctl` that users get, a real Docker engine, the real kind.
//! Each test has clusters of its own and takes them down again. See CONTRIBUTING.md for what they need; without
//! it they say that they are skipped.

mod docker;
mod existing;
mod lab;
mod lifecycle;
mod modes;
mod need;
mod refusals;
mod resilience;
mod shop;
#[path = "../witness/tcpdump.rs"]
mod tcpdump;
#[path = "../witness/verdict.rs"]
mod verdict;
