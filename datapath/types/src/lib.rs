//! The kernel/user contract of the datapath.
//!
//! Owns: every map key and value, the settings global, the DSR option codec, checksum arithmetic, the
//! flow hash, drop reasons and counters. Does not own: maps themselves, programs, or anything that does
//! I/O. It is `no_std` and has no dependency, so the same code runs in the kernel and in the tests that
//! need no root.
//!
//! Byte order: every address (`u32`) and port (`u16`) in these types holds the bytes *as they stand in
//! the packet*, so `u32::from_ne_bytes([172, 18, 0, 3])` is 172.18.0.3 on every machine. Nothing is
//! converted on the way from packet to map. Times are nanoseconds of `CLOCK_MONOTONIC_COARSE`, counts
//! are plain integers of the machine.
#![no_std]

mod backend;
pub mod checksum;
mod counter;
mod drop_reason;
mod endpoint;
mod event;
mod flow;
mod frontend;
mod hash;
mod kernel_drop;
pub mod option;
mod settings;

pub use backend::{Affinity, AffinityKey, Backend, BackendFlags};
pub use counter::Counter;
pub use drop_reason::DropReason;
pub use endpoint::{Endpoint, NodeEntry, SocketKey};
pub use event::{Event, EventAction, Hook};
pub use flow::{Flow, FlowFlags, FlowKey, FlowKind, FragmentKey, FragmentPorts};
pub use frontend::{Frontend, FrontendFlags};
pub use hash::{flow_hash, mix};
pub use kernel_drop::{KernelDrop, KernelLayout};
pub use settings::{Mutation, Settings, SettingsFlags, mode};

/// Layout version of everything in this crate that crosses the kernel border.
///
/// Bump it whenever a map key, a map value or [`Settings`] changes shape or meaning. The loader writes
/// it into the pinned `ABI` map and refuses to reuse pins of another version.
pub const ABI_VERSION: u32 = 3;

/// Slots of one service's Maglev table. A prime, at least 100 times the backends of a large lab, so
/// that adding or removing one backend moves little more than its share of the flows
/// (Eisenbud et al., "Maglev", NSDI 2016, section 5.3).
pub const MAGLEV_SLOTS: u32 = 1021;

/// `skb->mark` of a packet that the datapath has already rewritten; the uplink's egress program lets
/// it pass. The value spells "LABC"; the kernel clears the mark when the packet changes namespace.
pub const MARK_DONE: u32 = 0x4c41_4243;

/// IPv4 protocol number of ICMP (IANA protocol numbers).
pub const PROTO_ICMP: u8 = 1;
/// IPv4 protocol number of TCP.
pub const PROTO_TCP: u8 = 6;
/// IPv4 protocol number of UDP.
pub const PROTO_UDP: u8 = 17;

/// Marks a type as plain old data for aya's map API.
macro_rules! pod {
    ($($t:ty),* $(,)?) => {$(
        // SAFETY: `repr(C)`, integers only, padding is explicit (the size assertion beside each type
        // would fail otherwise), and every bit pattern is a valid value.
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $t {}
    )*};
}
pub(crate) use pod;
