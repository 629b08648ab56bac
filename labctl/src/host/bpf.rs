//! bpf(2) with attributes laid out by hand: three commands, each tried with the smallest thing that the
//! datapath needs. aya's own probes cannot tell "not permitted" from "not there".

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `enum bpf_cmd`, `enum bpf_map_type`, `enum bpf_prog_type`, `enum bpf_attach_type` (`linux/bpf.h`).
const MAP_CREATE: libc::c_long = 0;
const PROG_LOAD: libc::c_long = 5;
const LINK_CREATE: libc::c_long = 28;
const MAP_TYPE_LRU_HASH: u32 = 9;
const PROG_TYPE_SCHED_CLS: u32 = 3;
const TCX_INGRESS: u32 = 46;

/// Bytes of `union bpf_attr` that are passed: more than any command here reads, zero beyond.
const ATTR: usize = 128;

/// Creates an LRU hash map, the kind that holds the flows.
pub(super) fn lru_map() -> io::Result<OwnedFd> {
    let mut attr = [0u8; ATTR];
    for (slot, value) in [MAP_TYPE_LRU_HASH, 4, 4, 16].into_iter().enumerate() {
        put(&mut attr, slot * 4, &value.to_ne_bytes());
    }
    bpf(MAP_CREATE, &attr)
}

/// Loads a traffic-control program of two instructions: `return TC_ACT_OK`.
pub(super) fn tc_program() -> io::Result<OwnedFd> {
    // BPF_MOV64_IMM(r0, 0); BPF_EXIT
    let instructions: [u64; 2] =
        [u64::from_ne_bytes([0xb7, 0, 0, 0, 0, 0, 0, 0]), u64::from_ne_bytes([0x95, 0, 0, 0, 0, 0, 0, 0])];
    let license = c"GPL";
    let mut attr = [0u8; ATTR];
    put(&mut attr, 0, &PROG_TYPE_SCHED_CLS.to_ne_bytes());
    put(&mut attr, 4, &(instructions.len() as u32).to_ne_bytes());
    put(&mut attr, 8, &(instructions.as_ptr() as u64).to_ne_bytes());
    put(&mut attr, 16, &(license.as_ptr() as u64).to_ne_bytes());
    // `instructions` and `license` outlive the call, which copies them.
    bpf(PROG_LOAD, &attr)
}

/// Attaches a program to an interface by TCX (kernel 6.6 and newer).
pub(super) fn tcx_link(program: &OwnedFd, ifindex: u32) -> io::Result<OwnedFd> {
    let mut attr = [0u8; ATTR];
    put(&mut attr, 0, &program.as_raw_fd().to_ne_bytes());
    put(&mut attr, 4, &ifindex.to_ne_bytes());
    put(&mut attr, 8, &TCX_INGRESS.to_ne_bytes());
    bpf(LINK_CREATE, &attr)
}

/// Makes a bpffs without mounting it anywhere (fsopen(2), kernel 5.2).
pub(super) fn bpffs() -> io::Result<()> {
    // SAFETY: the name is a constant C string; the call only reads it.
    let context = unsafe {
        libc::syscall(libc::SYS_fsopen, c"bpf".as_ptr(), 1 /* FSOPEN_CLOEXEC */)
    };
    let context = owned(context)?;
    // SAFETY: FSCONFIG_CMD_CREATE (6) takes no key, value or aux; the descriptor is open.
    let created = unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            6,
            std::ptr::null::<u8>(),
            std::ptr::null::<u8>(),
            0,
        )
    };
    if created < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn put(attr: &mut [u8; ATTR], offset: usize, bytes: &[u8]) {
    attr[offset..offset + bytes.len()].copy_from_slice(bytes);
}

fn bpf(command: libc::c_long, attr: &[u8; ATTR]) -> io::Result<OwnedFd> {
    // SAFETY: `attr` is readable for ATTR bytes, and the kernel writes nothing back for these commands.
    owned(unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_ptr(), ATTR) })
}

/// Takes the descriptor that a system call returned.
fn owned(returned: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(returned).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
