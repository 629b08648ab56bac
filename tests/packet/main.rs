//! Packet tests: one packet in, one packet out, through BPF_PROG_TEST_RUN of the real programs on the
//! real kernel. Nothing is attached; maps are real. Needs root.

mod harness;
mod load;
