//! Backends and session affinity: what a frontend may choose from.

/// Bits of [`Backend::flags`].
pub struct BackendFlags;

impl BackendFlags {
    /// The backend runs on this node.
    pub const LOCAL: u16 = 1 << 0;
    /// The backend listens on the node's own address (hostNetwork): the node's stack gets the packet.
    pub const HOST: u16 = 1 << 1;
    /// The backend is going away: flows that it has go on, new ones go elsewhere.
    pub const TERMINATING: u16 = 1 << 2;
    /// The backend is not ready, or has left its service: TCP flows that it has go on, datagrams go elsewhere. Its
    /// node still knows it, for what other nodes send that have not heard yet. Never without [`Self::TERMINATING`].
    pub const RETIRED: u16 = 1 << 3;
}

/// Value of map `BACKENDS`, keyed by a backend id (`u32`, never 0).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backend {
    /// Address of the pod or node, packet order.
    pub addr: u32,
    /// Port it listens on, packet order.
    pub port: u16,
    /// IPv4 protocol number.
    pub proto: u8,
    /// Must be zero.
    pub pad: u8,
    /// [`BackendFlags`].
    pub flags: u16,
    /// Must be zero.
    pub pad2: u16,
}

const _: () = assert!(size_of::<Backend>() == 12);

impl Backend {
    /// Whether the backend runs on this node.
    #[inline(always)]
    pub const fn is_local(&self) -> bool {
        self.flags & BackendFlags::LOCAL != 0
    }

    /// Whether the node's own stack, not a pod's, must get the packet.
    #[inline(always)]
    pub const fn is_host(&self) -> bool {
        self.flags & BackendFlags::HOST != 0
    }

    /// Whether new flows must go elsewhere.
    #[inline(always)]
    pub const fn is_terminating(&self) -> bool {
        self.flags & BackendFlags::TERMINATING != 0
    }

    /// Whether datagrams must go elsewhere even if earlier ones of their flow came here.
    #[inline(always)]
    pub const fn is_retired(&self) -> bool {
        self.flags & BackendFlags::RETIRED != 0
    }
}

/// Key of map `AFFINITY` (sessionAffinity: ClientIP).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AffinityKey {
    /// Client address, packet order.
    pub client: u32,
    /// [`crate::Frontend::service`] of the frontend, so that all ports of a service stick together.
    pub service: u32,
}

const _: () = assert!(size_of::<AffinityKey>() == 8);

/// Value of map `AFFINITY`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Affinity {
    /// When the client last opened a flow, ns.
    pub last_seen: u64,
    /// Key into `BACKENDS`.
    pub backend: u32,
    /// Must be zero.
    pub pad: u32,
}

const _: () = assert!(size_of::<Affinity>() == 16);

crate::pod!(Backend, AffinityKey, Affinity);
