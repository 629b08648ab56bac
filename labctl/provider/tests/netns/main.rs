//! The netns provider against the kernel, with iproute2 as second witness.
//!
//! Every test runs itself again in a process with a mount and a network namespace of its own and an empty
//! `/run`, so tests see neither each other nor the machine, and "nothing is left" can be checked to the last file.
//! They need root; without it they say so and pass.

mod isolation;
mod lab;

mod cleanup;
mod crash;
mod faults;
mod packets;
mod refusals;
mod topology;
