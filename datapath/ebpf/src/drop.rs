//! Verdicts: counted drops, counters, and the redirects that keep netfilter and rp_filter out.

use aya_ebpf::{
    bindings::{TC_ACT_OK, TC_ACT_SHOT},
    helpers::generated::bpf_redirect_neigh,
    programs::TcContext,
};
use datapath_types::{Counter, DropReason, MARK_DONE};

use crate::maps::{COUNTERS, DROPS};

/// A step's result: go on with a value, or leave the program with this tc action.
pub(crate) type Step<T> = Result<T, i32>;

/// Let the node's stack have the packet.
pub(crate) const PASS: i32 = TC_ACT_OK;

/// Counts a drop and returns the action.
#[inline(always)]
pub(crate) fn drop(reason: DropReason) -> i32 {
    if let Some(count) = DROPS.get_ptr_mut(reason as u32) {
        // SAFETY: a per-CPU slot; programs on one CPU do not interrupt each other.
        unsafe { *count += 1 };
    }
    TC_ACT_SHOT
}

/// Counts something that was done.
#[inline(always)]
pub(crate) fn count(counter: Counter) {
    if let Some(count) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: a per-CPU slot; programs on one CPU do not interrupt each other.
        unsafe { *count += 1 };
    }
}

/// Sends the packet out of `ifindex`; the kernel finds the next hop and its MAC address. The packet
/// never enters this node's IP stack, so rp_filter, conntrack, FORWARD rules and ICMP redirects do not
/// see it.
#[inline(always)]
pub(crate) fn redirect(ctx: &mut TcContext, ifindex: u32) -> i32 {
    // The uplink's egress program must not look at it again.
    ctx.set_mark(MARK_DONE);
    // SAFETY: no parameters block, so no pointer is passed.
    unsafe { bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) as i32 }
}
