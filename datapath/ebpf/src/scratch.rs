//! The packet that a program works on, kept in a per-CPU map value instead of on the stack.
//!
//! Why: the verifier follows every path to its end unless it meets a state that it knows already. Values
//! on the stack carry what each path made of them, so the same code is verified again for each of dozens
//! of ways to reach it (127,000 instructions, 170 ms a program on 6.18). A map value is unknown to it on
//! every path alike, so paths join after each step, and the 512 bytes of stack are no limit either.

use core::hint::black_box;

use datapath_types::{Flow, option::DsrFrontend};

use crate::{
    drop::{Leave, Step},
    forward::Move,
    maps::SCRATCH,
    names::Options,
    packet::Packet,
};

/// One packet and what is to become of it.
pub(crate) struct Scratch {
    /// As it was parsed; the option steps keep length fields true.
    pub(crate) packet: Packet,
    /// The flow it belongs to.
    pub(crate) flow: Flow,
    /// Its next move.
    pub(crate) way: Move,
    /// The IPv4 options that are looked at.
    pub(crate) options: Options,
    /// The frontend that a node has sent along; address 0 without.
    pub(crate) carried: DsrFrontend,
    /// 1 if nobody outside can have the packet's source address.
    pub(crate) martian: u32,
    /// 1 if the client has sent the same before.
    pub(crate) again: u32,
    /// 1 if this packet opened the flow, 0 if it follows one.
    pub(crate) opened: u32,
}

/// This CPU's scratch value. tc programs run with bottom halves disabled, so nobody else uses it before
/// this program ends.
///
/// # Errors
/// Never in practice: the map has the one entry.
#[inline(always)]
pub(crate) fn scratch() -> Step<&'static mut Scratch> {
    let value = SCRATCH.get_ptr_mut(0).ok_or(Leave::PASS)?;
    // SAFETY: one value per CPU, and one program at a time on it; every bit pattern that earlier programs
    // left was written through these very types.
    Ok(unsafe { &mut *value })
}

/// Makes the compiler forget what it knows of a value, so that it is read from the map again and paths
/// join here for the verifier.
#[inline(always)]
pub(crate) fn forget<T>(value: &mut T) -> &mut T {
    black_box(value)
}
