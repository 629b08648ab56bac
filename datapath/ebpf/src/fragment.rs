//! Fragments: the first lends the others its ports, and pays for those that came before it.
//!
//! A fragment that overtakes its first cannot be translated: nobody knows its ports yet, and eBPF cannot hold a
//! packet back. Nor can it be dropped at once, because it may be for a socket of this node, whose stack
//! reassembles in any order. So it passes, and the table remembers that it did; if then the first fragment turns
//! out to be a service's, what came before it is counted as lost. A carrier says enough by itself: with one, a
//! backend's node delivers in any order.

use datapath_types::{FragmentKey, FragmentPorts};

use crate::{maps::FRAGMENTS, packet::Packet};

/// What fragmentation says about the ports.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Fragment {
    /// Not a fragment.
    Whole = 0,
    /// Carries the transport header.
    First = 1,
    /// Carries none; its ports are those of the first.
    Later = 2,
    /// Carries none, and its first fragment was never seen: the ports are unknown.
    Orphan = 3,
}

impl Fragment {
    /// Whether the frame holds the transport header.
    #[inline(always)]
    pub(crate) fn has_transport(self) -> bool {
        matches!(self, Self::Whole | Self::First)
    }
}

/// Remembers the ports of a first fragment, and notes how many came before it.
#[inline(always)]
pub(crate) fn lend_ports(packet: &mut Packet) {
    let key = key(packet);
    if let Some(entry) = FRAGMENTS.get_ptr(key) {
        // SAFETY: an LRU entry may be reused under us; then the count is another datagram's.
        packet.early = unsafe { if (*entry).known == 0 { (*entry).early } else { 0 } };
    }
    let ports = FragmentPorts { sport: packet.sport, dport: packet.dport, known: 1, early: 0, pad: 0 };
    // A full table loses the later fragments, and they are counted then.
    let _ = FRAGMENTS.insert(key, ports, 0);
}

/// Gives a later fragment the ports of its first, or makes it an orphan.
#[inline(always)]
pub(crate) fn borrow_ports(packet: &mut Packet) {
    match FRAGMENTS.get_ptr(key(packet)) {
        // SAFETY: an LRU entry may be reused under us; then two integers are of another datagram, and
        // its reassembly fails at the receiver as it would have without them.
        Some(entry) if unsafe { (*entry).known } != 0 => unsafe {
            packet.sport = (*entry).sport;
            packet.dport = (*entry).dport;
        },
        _ => packet.fragment = Fragment::Orphan,
    }
}

/// Remembers that a fragment passed before its first.
#[inline(always)]
pub(crate) fn note_early(packet: &Packet) {
    let key = key(packet);
    if let Some(entry) = FRAGMENTS.get_ptr_mut(key) {
        // SAFETY: as above. Two CPUs may count one fragment too few.
        unsafe { (*entry).early = (*entry).early.saturating_add(1) };
        return;
    }
    let entry = FragmentPorts { sport: 0, dport: 0, known: 0, early: 1, pad: 0 };
    // A full table counts one fragment too few.
    let _ = FRAGMENTS.insert(key, entry, 0);
}

#[inline(always)]
fn key(packet: &Packet) -> FragmentKey {
    FragmentKey { src: packet.src, dst: packet.dst, id: packet.id, proto: packet.proto, pad: 0 }
}
