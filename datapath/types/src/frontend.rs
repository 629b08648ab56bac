//! Frontends: the (address, port, protocol) that clients use.

/// Bits of [`Frontend::flags`].
pub struct FrontendFlags;

impl FrontendFlags {
    /// externalTrafficPolicy Local: only backends on this node, an empty table is a drop.
    pub const LOCAL_ONLY: u16 = 1 << 0;
    /// sessionAffinity ClientIP.
    pub const AFFINITY: u16 = 1 << 1;
    /// A ClusterIP, or another node's NodePort: answers pods and this host, never the uplink.
    pub const INSIDE_ONLY: u16 = 1 << 2;
}

/// Value of map `FRONTENDS`, keyed by [`crate::SocketKey`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Frontend {
    /// Number of the service this frontend belongs to, never 0.
    pub service: u32,
    /// Which Maglev table serves clients from outside: slot `table * MAGLEV_SLOTS + hash % MAGLEV_SLOTS`.
    pub table: u32,
    /// Which table serves pods and this host (differs under externalTrafficPolicy Local).
    pub inside_table: u32,
    /// sessionAffinity time-out in seconds.
    pub affinity_seconds: u32,
    /// [`FrontendFlags`].
    pub flags: u16,
    /// Must be zero.
    pub pad: u16,
}

const _: () = assert!(size_of::<Frontend>() == 20);

impl Frontend {
    /// Whether only backends on this node may serve clients from outside.
    #[inline(always)]
    pub const fn is_local_only(&self) -> bool {
        self.flags & FrontendFlags::LOCAL_ONLY != 0
    }

    /// Whether a client sticks to its backend.
    #[inline(always)]
    pub const fn has_affinity(&self) -> bool {
        self.flags & FrontendFlags::AFFINITY != 0
    }

    /// Whether the uplink must not answer for it.
    #[inline(always)]
    pub const fn is_inside_only(&self) -> bool {
        self.flags & FrontendFlags::INSIDE_ONLY != 0
    }
}

crate::pod!(Frontend);
