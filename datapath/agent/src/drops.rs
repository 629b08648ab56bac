//! What the kernel drops in some network namespaces, packet by packet, with its reason.
//!
//! Owns: loading and attaching the watch, and reading its records. Does not own: which namespaces, or what a drop means. It takes a
//! kernel with BTF and a reason at `skb:kfree_skb` (5.17), and root or CAP_BPF and CAP_PERFMON; no kprobes.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aya::maps::{HashMap, MapError, PerCpuArray, RingBuf};
use aya::programs::{BtfTracePoint, ProgramError};
use aya::{Btf, BtfError, Ebpf, EbpfError, EbpfLoader, Endianness};
use datapath_types::{KernelDrop, KernelLayout};

use crate::kernel_types::KernelTypes;
use crate::object::DROPS_OBJECT;

const PROGRAM: &str = "kfree_skb";

/// The watch cannot be set up. Reads well after "watch drops: ".
#[derive(Debug, thiserror::Error)]
pub enum DropWatchError {
    /// The kernel's BTF cannot be read.
    #[error("read the kernel's types: {0}")]
    Types(#[from] io::Error),
    /// aya cannot read it.
    #[error("read the kernel's types: {0}")]
    Btf(#[from] BtfError),
    /// A field is not where any kernel that is known has it.
    #[error("this kernel has no {0}")]
    Field(&'static str),
    /// The object is refused.
    #[error("load the eBPF object: {0}")]
    Load(#[from] EbpfError),
    /// The program is refused.
    #[error("load the program: {0}")]
    Program(#[from] ProgramError),
    /// A map cannot be used.
    #[error("use a map: {0}")]
    Map(#[from] MapError),
}

/// One packet that was dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenDrop {
    /// The record; its time is converted by [`SeenDrop::at`].
    pub record: KernelDrop,
    /// `CLOCK_REALTIME`, ns.
    pub at: u64,
    /// The kernel's own name of the reason, without `SKB_DROP_REASON_`.
    pub reason: String,
}

/// A watch under way. Dropped, it is gone.
#[derive(Debug)]
pub struct DropWatch {
    ebpf: Ebpf,
    reasons: BTreeMap<u32, String>,
    /// What to add to `CLOCK_MONOTONIC` for `CLOCK_REALTIME`.
    ahead: Duration,
}

impl DropWatch {
    /// Watches the namespaces with these inodes (`stat /proc/self/ns/net`).
    ///
    /// # Errors
    /// [`DropWatchError`]: an old kernel, or too few rights.
    pub fn open(namespaces: &[u32]) -> Result<Self, DropWatchError> {
        let types = KernelTypes::read()?;
        let btf = Btf::parse(types.bytes(), Endianness::default())?;
        let mut ebpf = EbpfLoader::new()
            .btf(Some(&btf))
            .override_global("LAYOUT", &layout(&types)?, true)
            .map_max_entries("WATCHED", namespaces.len().max(1) as u32)
            .load(DROPS_OBJECT)?;
        let mut watched: HashMap<_, u32, u8> =
            HashMap::try_from(ebpf.map_mut("WATCHED").expect("the object defines it"))?;
        for inode in namespaces {
            watched.insert(inode, 1, 0)?;
        }
        let program: &mut BtfTracePoint =
            ebpf.program_mut(PROGRAM).expect("the object defines it").try_into()?;
        program.load(PROGRAM, &btf)?;
        program.attach()?;
        Ok(Self { ebpf, reasons: types.enumerators("skb_drop_reason"), ahead: ahead() })
    }

    /// What was dropped since, and how many records found no room.
    ///
    /// # Errors
    /// [`DropWatchError::Map`].
    pub fn finish(mut self) -> Result<(Vec<SeenDrop>, u64), DropWatchError> {
        // Nothing more is written from here on.
        let program: &mut BtfTracePoint =
            self.ebpf.program_mut(PROGRAM).expect("the object defines it").try_into()?;
        program.unload()?;
        let untold: PerCpuArray<_, u64> =
            PerCpuArray::try_from(self.ebpf.map("UNTOLD").expect("the object defines it"))?;
        let untold = untold.get(&0, 0)?.iter().sum();
        let mut ring = RingBuf::try_from(self.ebpf.map_mut("KERNEL_DROPS").expect("the object defines it"))?;
        let mut seen = Vec::new();
        while let Some(item) = ring.next() {
            let Some(record) = record(&item) else { continue };
            let at = record.time.saturating_add(u64::try_from(self.ahead.as_nanos()).unwrap_or(0));
            let name = self.reasons.get(&record.reason).map_or("UNKNOWN", String::as_str);
            let reason = name.strip_prefix("SKB_DROP_REASON_").unwrap_or(name).to_owned();
            seen.push(SeenDrop { record, at, reason });
        }
        Ok((seen, untold))
    }
}

fn record(bytes: &[u8]) -> Option<KernelDrop> {
    if bytes.len() != size_of::<KernelDrop>() {
        return None;
    }
    // SAFETY: as long as the type, which is plain old data; the ring aligns to eight bytes, and an unaligned read needs none.
    Some(unsafe { bytes.as_ptr().cast::<KernelDrop>().read_unaligned() })
}

fn layout(types: &KernelTypes) -> Result<KernelLayout, DropWatchError> {
    let at =
        |structure, path: &[&str], name| types.offset(structure, path).ok_or(DropWatchError::Field(name));
    Ok(KernelLayout {
        skb_head: at("sk_buff", &["head"], "sk_buff.head")?,
        skb_network_header: at("sk_buff", &["network_header"], "sk_buff.network_header")?,
        skb_dev: at("sk_buff", &["dev"], "sk_buff.dev")?,
        skb_sk: at("sk_buff", &["sk"], "sk_buff.sk")?,
        dev_net: at("net_device", &["nd_net", "net"], "net_device.nd_net")?,
        sk_net: at("sock", &["__sk_common", "skc_net", "net"], "sock.skc_net")?,
        net_inum: at("net", &["ns", "inum"], "net.ns.inum")?,
        pad: 0,
    })
}

/// By how much the clock of the captures is ahead of the program's.
fn ahead() -> Duration {
    let mut since_boot = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec that outlives the call.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut since_boot) };
    let monotonic = Duration::new(since_boot.tv_sec as u64, since_boot.tv_nsec as u32);
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(monotonic)
}
