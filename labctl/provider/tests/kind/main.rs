//! The kind provider against a real Docker engine and a real `kind`.
//!
//! Tests that make a cluster need Docker, kind and the static binary (`make build`); without one of them they say so on
//! stderr and pass, unless LABCTL_REQUIRE_KIND=1. LABCTL_KIND_IMAGE names a node image where kind cannot pull its own.

mod cluster;
mod machine;
mod refusals;
mod relay;
