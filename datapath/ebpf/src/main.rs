//! The eBPF programs of the datapath: four tc classifiers and nothing else.
//!
//! Owns: the entry points and the order in which each hook asks its questions. The steps themselves are
//! in the modules. Built for `bpfel-unknown-none` by `datapath/agent/build.rs`; on any other target only
//! an empty `main` remains, so that the host toolchain can lint the modules' neighbours.
//!
//! | program | hook | sees |
//! |---|---|---|
//! | `from_netdev` | uplink ingress | clients' requests, other nodes' forwarded requests, SNAT replies |
//! | `to_netdev` | uplink egress | what this host's own stack sends, and a safety net for pods |
//! | `from_pod` | host side of a pod's veth, ingress | pods' replies and pods' own requests |
//! | `to_pod` | host side of a pod's veth, egress | what this host's own stack answers to pods |
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod backend;
#[cfg(target_arch = "bpf")]
mod drop;
#[cfg(target_arch = "bpf")]
mod event;
#[cfg(target_arch = "bpf")]
mod flow;
#[cfg(target_arch = "bpf")]
mod forward;
#[cfg(target_arch = "bpf")]
mod fragment;
#[cfg(target_arch = "bpf")]
mod icmp;
#[cfg(target_arch = "bpf")]
mod icmp_send;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod names;
#[cfg(target_arch = "bpf")]
mod option;
#[cfg(target_arch = "bpf")]
mod packet;
#[cfg(target_arch = "bpf")]
mod programs;
#[cfg(target_arch = "bpf")]
mod reply;
#[cfg(target_arch = "bpf")]
mod rewrite;
#[cfg(target_arch = "bpf")]
mod scratch;
#[cfg(target_arch = "bpf")]
mod service;
#[cfg(target_arch = "bpf")]
mod settings;
#[cfg(target_arch = "bpf")]
mod snat;
#[cfg(target_arch = "bpf")]
mod trust;

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier rejects every path that could get here; the attribute is still mandatory.
    loop {}
}

/// The kernel offers `bpf_redirect_neigh` and friends only to programs with a GPL-compatible licence.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
