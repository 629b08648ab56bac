//! A program of its own beside the datapath: every IPv4 packet that the kernel drops in the network namespaces that are
//! watched, with the kernel's reason.
//!
//! Owns: the tracepoint `skb:kfree_skb` (a typed one, `tp_btf`: no kprobes) and the records. Does not own: the datapath's own
//! drop counters. It is an object of its own, because only `verify` loads it: `up` need not wait for it.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod program {
    use aya_ebpf::{
        helpers::{bpf_ktime_get_ns, bpf_probe_read_kernel},
        macros::{btf_tracepoint, map},
        maps::{HashMap, PerCpuArray, RingBuf},
        programs::BtfTracePointContext,
    };
    use datapath_types::{KernelDrop, KernelLayout, PROTO_TCP, PROTO_UDP};

    /// Inodes of the namespaces that are watched. User space sets the size.
    #[map]
    static WATCHED: HashMap<u32, u8> = HashMap::with_max_entries(1, 0);

    /// What was dropped there. 40 bytes and a header of 8 each: room for some 80,000.
    #[map]
    static KERNEL_DROPS: RingBuf = RingBuf::with_byte_size(4 << 20, 0);

    /// Records that found no room.
    #[map]
    static UNTOLD: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

    #[unsafe(no_mangle)]
    static LAYOUT: KernelLayout = KernelLayout {
        skb_head: 0,
        skb_network_header: 0,
        skb_dev: 0,
        skb_sk: 0,
        dev_net: 0,
        sk_net: 0,
        net_inum: 0,
        pad: 0,
    };

    /// `SKB_NOT_DROPPED_YET` and `SKB_CONSUMED` (include/net/dropreason-core.h): not lost.
    const LAST_GOOD_REASON: u32 = 1;

    /// Reads one field of [`LAYOUT`]; the loader has written it, and the compiler must not take the zeros for it.
    macro_rules! offset {
        ($field:ident) => {
            // SAFETY: a static of this program.
            unsafe { core::ptr::read_volatile(&raw const LAYOUT.$field) as usize }
        };
    }

    /// Arguments: the packet, who dropped it, why, and since Linux 6.11 the socket.
    #[btf_tracepoint(function = "kfree_skb")]
    pub fn kfree_skb(ctx: BtfTracePointContext) -> i32 {
        let _ = note(&ctx);
        0
    }

    #[inline(always)]
    fn note(ctx: &BtfTracePointContext) -> Option<()> {
        let (skb, reason): (*const u8, u32) = (ctx.arg(0), ctx.arg(2));
        if reason <= LAST_GOOD_REASON {
            return None;
        }
        let netns = namespace(skb)?;
        let mut record = packet(skb)?;
        // SAFETY: the helper takes nothing.
        record.time = unsafe { bpf_ktime_get_ns() };
        (record.netns, record.reason) = (netns, reason);
        if KERNEL_DROPS.output::<KernelDrop>(record, 0).is_err()
            && let Some(untold) = UNTOLD.get_ptr_mut(0)
        {
            // SAFETY: a per-CPU slot; a lost increment of a nested drop is one record fewer in a count of losses.
            unsafe { *untold += 1 };
        }
        Some(())
    }

    /// The watched namespace that a packet was in: its device's, else its socket's. A socket's queue uses the device's
    /// field for something else; what is read there names no watched namespace.
    #[inline(always)]
    fn namespace(skb: *const u8) -> Option<u32> {
        let of = |holder: Option<*const u8>, net: usize| watched(field(holder?, net)?);
        of(field(skb, offset!(skb_dev)), offset!(dev_net))
            .or_else(|| of(field(skb, offset!(skb_sk)), offset!(sk_net)))
    }

    #[inline(always)]
    fn watched(net: *const u8) -> Option<u32> {
        let inode: u32 = field(net, offset!(net_inum))?;
        // SAFETY: the value is one byte, and is not looked at.
        unsafe { WATCHED.get(inode) }.map(|_| inode)
    }

    /// Reads a field of a kernel structure; `None` for a null pointer, or one to nowhere.
    #[inline(always)]
    fn field<T>(of: *const u8, at: usize) -> Option<T> {
        if of.is_null() {
            return None;
        }
        // SAFETY: the helper checks the address and copies.
        unsafe { bpf_probe_read_kernel(of.add(at).cast::<T>()) }.ok()
    }

    /// Addresses, ports and what tells packets of a flow apart.
    #[inline(always)]
    fn packet(skb: *const u8) -> Option<KernelDrop> {
        let head: *const u8 = field(skb, offset!(skb_head))?;
        let at: u16 = field(skb, offset!(skb_network_header))?;
        let ip: [u8; 20] = field(head, at as usize)?;
        if ip[0] >> 4 != 4 {
            return None;
        }
        let word = |at: usize| u32::from_ne_bytes([ip[at], ip[at + 1], ip[at + 2], ip[at + 3]]);
        let half = |at: usize| u16::from_ne_bytes([ip[at], ip[at + 1]]);
        let mut record = KernelDrop {
            src: word(12),
            dst: word(16),
            ip_id: half(4),
            fragment: half(6),
            proto: ip[9],
            ..KernelDrop::default()
        };
        let is_first = u16::from_be(record.fragment) & 0x1fff == 0;
        if is_first && (record.proto == PROTO_TCP || record.proto == PROTO_UDP) {
            let ports: [u16; 4] = field(head, at as usize + ((ip[0] & 0xf) as usize) * 4)?;
            (record.sport, record.dport) = (ports[0], ports[1]);
            if record.proto == PROTO_TCP {
                let [a, b] = ports[2].to_ne_bytes();
                let [c, d] = ports[3].to_ne_bytes();
                record.seq = u32::from_ne_bytes([a, b, c, d]);
            }
        }
        Some(record)
    }

    #[panic_handler]
    fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
        // The verifier rejects every path that could get here; the attribute is still mandatory.
        loop {}
    }

    /// `bpf_probe_read_kernel` is for programs with a GPL-compatible licence.
    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
}
