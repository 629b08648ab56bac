//! What the test binaries share: a private bpffs, and packets.

pub mod bpffs;
