//! How a program ends: counted drops, counters, and the redirect that keeps netfilter and rp_filter out.

use aya_ebpf::{
    bindings::{TC_ACT_OK, TC_ACT_SHOT},
    helpers::generated::bpf_redirect_neigh,
    programs::TcContext,
};
use datapath_types::{Counter, DropReason, MARK_DONE};

use crate::maps::{COUNTERS, DROPS};

/// Let the node's stack, or the next program, have the packet.
pub(crate) const PASS: i32 = TC_ACT_OK;

/// A step's result: go on with a value, or leave the program.
pub(crate) type Step<T> = Result<T, Leave>;

/// Why a program ends early. Drops are counted in one place, at the end: each inlined map access costs
/// the verifier states, and there are many ways to drop.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Leave(u32);

impl Leave {
    /// Not ours, or nothing to do.
    pub(crate) const PASS: Self = Self(0);
}

impl From<DropReason> for Leave {
    #[inline(always)]
    fn from(reason: DropReason) -> Self {
        Self(reason as u32)
    }
}

/// Turns a program's result into a tc action.
#[inline(always)]
pub(crate) fn finish(result: Step<i32>) -> i32 {
    match result {
        Ok(action) => action,
        Err(Leave(0)) => PASS,
        Err(Leave(reason)) => drop(reason),
    }
}

/// Counts a drop and gives the action.
#[inline(always)]
pub(crate) fn drop(reason: u32) -> i32 {
    count_lost(reason, 1);
    TC_ACT_SHOT
}

/// Counts packets that were lost for a reason.
#[inline(always)]
pub(crate) fn count_lost(reason: u32, packets: u64) {
    if let Some(count) = DROPS.get_ptr_mut(reason) {
        // SAFETY: a per-CPU slot; programs on one CPU do not interrupt each other.
        unsafe { *count += packets };
    }
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
    // The egress programs of the link must not look at it again.
    ctx.set_mark(MARK_DONE);
    // SAFETY: no parameters block, so no pointer is passed.
    unsafe { bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) as i32 }
}
