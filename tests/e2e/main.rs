//! End-to-end tests: the `labctl` binary against the real kernel. Each test has a lab of its own and
//! takes it down again. Needs root; see CONTRIBUTING.md.

mod lab;
mod lifecycle;
mod refusals;
mod root;
mod world;
