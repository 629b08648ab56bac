//! Kernel features, each tried for real in a network namespace that ends with its thread.

use std::io;
use std::path::Path;

use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::netlink::Netlink;
use super::{Area, Finding, bpf};

/// The loopback link: index 1 in every new network namespace.
const LOOPBACK: u32 = 1;

pub(super) fn findings() -> Vec<Finding> {
    let mut findings = vec![release()];
    findings.extend(in_fresh_namespace(network_findings));
    findings.push(judge(
        "bpf-lru-map",
        bpf::lru_map().map(|_| "LRU hash map created".to_owned()),
        config("BPF_SYSCALL"),
    ));
    findings.push(judge(
        "bpffs",
        bpf::bpffs().map(|()| "file system created".to_owned()),
        config("BPF_SYSCALL"),
    ));
    findings.push(btf().optional());
    findings
}

/// `uname -r`: said first, because every other answer depends on it.
fn release() -> Finding {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    Finding::ok(Area::Kernel, "kernel", format!("Linux {}", release.trim())).optional()
}

/// Runs probes in a thread with a network namespace of its own.
fn in_fresh_namespace(probes: fn() -> Vec<Finding>) -> Vec<Finding> {
    let thread = std::thread::spawn(move || match unshare(CloneFlags::CLONE_NEWNET) {
        Ok(()) => {
            let mut findings = vec![Finding::ok(Area::Kernel, "network-namespace", "created")];
            findings.extend(probes());
            findings
        }
        Err(error) => namespace_refused(error.into()),
    });
    thread.join().unwrap_or_default()
}

/// Without a namespace nothing that needs one can be tried.
fn namespace_refused(error: io::Error) -> Vec<Finding> {
    let mut findings = vec![judge("network-namespace", Err(error), config("NET_NS"))];
    for name in ["veth", "bridge", "packet-socket", "tc-program"] {
        findings.push(Finding::unknown(Area::Kernel, name, "needs a network namespace to try"));
    }
    findings
}

fn network_findings() -> Vec<Finding> {
    let link = |kind: &str| Netlink::open().and_then(|netlink| netlink.add_link(kind));
    vec![
        judge("veth", link("veth").map(|()| "link pair created".to_owned()), module("veth", "VETH")),
        judge("bridge", link("bridge").map(|()| "bridge created".to_owned()), module("bridge", "BRIDGE")),
        judge("packet-socket", packet_socket().map(|()| "opened".to_owned()), module("af_packet", "PACKET")),
        judge("tc-program", tc_attach(), module("sch_ingress cls_bpf", "NET_CLS_BPF")),
    ]
}

fn packet_socket() -> io::Result<()> {
    socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
    Ok(())
}

/// Loads a program and attaches it as the datapath would: by TCX, else to clsact.
fn tc_attach() -> io::Result<String> {
    let program = bpf::tc_program()?;
    if bpf::tcx_link(&program, LOOPBACK).is_ok() {
        return Ok("loaded and attached by TCX".to_owned());
    }
    Netlink::open()?.add_clsact(LOOPBACK)?;
    Ok("loaded; no TCX (kernel 6.6), clsact works".to_owned())
}

/// The kernel's own type information. The datapath does without; other eBPF tools need it.
fn btf() -> Finding {
    const VMLINUX: &str = "/sys/kernel/btf/vmlinux";
    if Path::new(VMLINUX).exists() {
        Finding::ok(Area::Kernel, "btf", VMLINUX)
    } else {
        Finding::missing(Area::Kernel, "btf", format!("no {VMLINUX}"), config("DEBUG_INFO_BTF"))
    }
}

/// Turns an attempt into a finding; "not permitted" says nothing about the kernel.
fn judge(name: &'static str, attempt: io::Result<String>, fix: String) -> Finding {
    match attempt {
        Ok(detail) => Finding::ok(Area::Kernel, name, detail),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Finding::unknown(Area::Kernel, name, "not permitted to try; run as root")
        }
        Err(error) => Finding::missing(Area::Kernel, name, error.to_string(), fix),
    }
}

fn module(modules: &str, option: &str) -> String {
    format!("modprobe -a {modules}, or a kernel with CONFIG_{option}")
}

fn config(option: &str) -> String {
    format!("boot a kernel with CONFIG_{option}")
}
