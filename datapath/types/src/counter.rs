//! What the datapath did: one per-CPU counter per rewrite.

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal, $label:literal;)+) => {
        /// Index into the per-CPU array `COUNTERS`.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Counter { $($(#[doc = $doc])+ $name = $number),+ }

        impl Counter {
            /// Every counter, in the order of its number.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The short name that `labctl status` prints.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label),+ }
            }
        }
    };
}

counters! {
    /// Requests forwarded to a backend on another node with the client's address kept.
    ForwardedDsr = 0, "forwarded-dsr";
    /// Requests forwarded to a backend on another node with this node's address as source.
    ForwardedSnat = 1, "forwarded-snat";
    /// Requests given to a backend on this node.
    ForwardedLocal = 2, "forwarded-local";
    /// Requests from other nodes given to a pod here.
    Delivered = 3, "delivered";
    /// DSR options inserted.
    OptionInserted = 4, "option-inserted";
    /// DSR options read in network order.
    OptionNetwork = 5, "option-network";
    /// DSR options read in Cilium's little-endian order.
    OptionCilium = 6, "option-cilium";
    /// DSR options stripped before the pod.
    OptionStripped = 7, "option-stripped";
    /// Replies whose source became the frontend, at a pod's veth.
    ReplyAtPod = 8, "reply-at-pod";
    /// Replies whose source became the frontend, at the uplink's egress.
    ReplyAtUplink = 9, "reply-at-uplink";
    /// Replies that came back to the ingress node and were reversed there.
    ReplyReversed = 10, "reply-reversed";
    /// ICMP errors rewritten towards the client.
    IcmpToClient = 11, "icmp-to-client";
    /// ICMP errors rewritten towards the backend.
    IcmpToBackend = 12, "icmp-to-backend";
    /// ICMP errors that the datapath itself sent.
    IcmpSent = 13, "icmp-sent";
    /// Flows opened.
    FlowOpened = 14, "flow-opened";
    /// Entries rebuilt from their surviving twin.
    TwinRepaired = 15, "twin-repaired";
    /// SNAT port candidates that were taken.
    SnatCollision = 16, "snat-collision";
    /// Requests of pods or of the host to a frontend.
    ForwardedInside = 17, "forwarded-inside";
}

impl Counter {
    /// Slots of map `COUNTERS`.
    pub const SLOTS: u32 = 64;
}
