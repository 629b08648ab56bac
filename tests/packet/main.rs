//! Packet tests: one packet in, one packet out, through BPF_PROG_TEST_RUN of the real programs on the
//! real kernel. Nothing is attached; maps are real. Needs root.
//!
//! Each test builds a frame, runs it, and compares what came out byte for byte with a frame that was built
//! from scratch; one node's output is the next node's input. Which interface a packet is redirected to
//! cannot be seen here: that, and netfilter's view, is what the end-to-end tests are for.

mod check;
mod frame;
mod harness;

mod backends;
mod dsr;
mod foreign;
mod fragments;
mod fuzz;
mod icmp;
mod inside;
mod limits;
mod load;
mod local;
mod names;
mod oracle;
mod reply;
mod settings;
mod snat;
mod tcp;
mod trust;
mod tuple;
