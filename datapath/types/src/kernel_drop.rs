//! What the kernel drops, as the program at its tracepoint `skb:kfree_skb` records it.

/// Where the fields that the program follows lie in this kernel's structures, in bytes. User space finds them in the
/// kernel's BTF and sets them before the program is loaded.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelLayout {
    /// `sk_buff.head`.
    pub skb_head: u32,
    /// `sk_buff.network_header`, 16 bits, from `head` on.
    pub skb_network_header: u32,
    /// `sk_buff.dev`.
    pub skb_dev: u32,
    /// `sk_buff.sk`.
    pub skb_sk: u32,
    /// `net_device.nd_net`, a pointer to `net`.
    pub dev_net: u32,
    /// `sock.__sk_common.skc_net`, a pointer to `net`.
    pub sk_net: u32,
    /// `net.ns.inum`: the inode of the namespace's file.
    pub net_inum: u32,
    /// Must be zero.
    pub pad: u32,
}

const _: () = assert!(size_of::<KernelLayout>() == 32);

/// One IPv4 packet that the kernel dropped.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelDrop {
    /// `CLOCK_MONOTONIC`, ns.
    pub time: u64,
    /// Inode of the network namespace in which it happened.
    pub netns: u32,
    /// `enum skb_drop_reason` of this kernel.
    pub reason: u32,
    /// Source address, packet order.
    pub src: u32,
    /// Destination address, packet order.
    pub dst: u32,
    /// TCP sequence number, packet order; 0 for other protocols and later fragments.
    pub seq: u32,
    /// Source port, packet order; 0 without.
    pub sport: u16,
    /// Destination port, packet order; 0 without.
    pub dport: u16,
    /// IP identification, packet order.
    pub ip_id: u16,
    /// Flags and fragment offset, packet order.
    pub fragment: u16,
    /// IPv4 protocol number.
    pub proto: u8,
    /// Must be zero.
    pub pad: [u8; 3],
}

const _: () = assert!(size_of::<KernelDrop>() == 40);

crate::pod!(KernelLayout, KernelDrop);
