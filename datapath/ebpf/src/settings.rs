//! The read-only global that the loader fills: one node's settings.
//!
//! Each field is read on its own, straight from `.rodata`: the map is frozen, so the verifier knows the
//! value and removes the branches that it rules out. Copying the struct to the stack first would lose that.

use core::ptr;

use datapath_types::{Settings, mode};

#[unsafe(no_mangle)]
static SETTINGS: Settings = Settings::zeroed();

/// Reads one field of the global so that the compiler cannot fold the zero it was built with.
macro_rules! field {
    ($name:ident) => {
        // SAFETY: a plain read of an initialised static; volatile only against constant folding.
        unsafe { ptr::read_volatile(&raw const SETTINGS.$name) }
    };
}

/// This node's address, packet order.
#[inline(always)]
pub(crate) fn node_addr() -> u32 {
    field!(node_addr)
}

/// Interface index of the uplink.
#[inline(always)]
pub(crate) fn uplink() -> u32 {
    field!(uplink)
}

/// MTU of the uplink.
#[inline(always)]
pub(crate) fn mtu() -> u32 {
    field!(mtu)
}

/// Whether a flag of [`datapath_types::SettingsFlags`] is set.
#[inline(always)]
pub(crate) fn has(flag: u32) -> bool {
    field!(flags) & flag != 0
}

/// First and last SNAT port, host order.
#[inline(always)]
pub(crate) fn snat_ports() -> (u16, u16) {
    (field!(snat_min), field!(snat_max))
}

/// Whether replies of a remote backend return directly for this protocol.
#[inline(always)]
pub(crate) fn returns_directly(proto: u8) -> bool {
    match field!(mode) {
        mode::SNAT => false,
        mode::HYBRID => proto == datapath_types::PROTO_TCP,
        _ => true,
    }
}

/// Whether nodes of this mode send this protocol with a carrier.
#[inline(always)]
pub(crate) fn carries(proto: u8) -> bool {
    match field!(mode) {
        mode::DSR => true,
        mode::HYBRID => proto == datapath_types::PROTO_TCP,
        mode::LOCAL => mutated(datapath_types::Mutation::IgnoreLocalPolicy),
        _ => false,
    }
}

/// Whether an address lies in the pods' native routing range.
#[inline(always)]
pub(crate) fn is_pod_addr(addr: u32) -> bool {
    addr & field!(pod_mask) == field!(pod_net)
}

/// Whether the object was told to misbehave in this way. Constant false without feature `mutations`.
#[inline(always)]
pub(crate) fn mutated(mutation: datapath_types::Mutation) -> bool {
    cfg!(feature = "mutations") && field!(mutation) == mutation as u32
}
