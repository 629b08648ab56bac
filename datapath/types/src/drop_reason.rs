//! Why a packet was not delivered. One numbered list for kernel and user space; a number is never
//! reused and never changes its meaning, so that counters of old evidence stay readable.

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal, $label:literal;)+) => {
        /// A numbered drop reason: index into the per-CPU array `DROPS`.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum DropReason { $($(#[doc = $doc])+ $name = $number),+ }

        impl DropReason {
            /// Every reason, in the order of its number.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The short name that `labctl status` prints.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label),+ }
            }

            /// What happened and why, in one sentence.
            pub const fn explanation(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+)),+ }
            }
        }
    };
}

drop_reasons! {
    /// The IPv4 header is inconsistent: version, IHL or total length do not fit the frame.
    InvalidHeader = 1, "invalid-header";
    /// The service has no backend at all; the client got ICMP port unreachable.
    NoBackend = 2, "no-backend";
    /// externalTrafficPolicy is Local and this node has no backend.
    NoLocalBackend = 3, "no-local-backend";
    /// The IPv4 header has no room for the 8 option bytes (IHL 14 or 15).
    OptionNoRoom = 4, "option-no-room";
    /// With the option the packet exceeds the MTU; the client got ICMP fragmentation needed.
    TooBigForOption = 5, "too-big-for-option";
    /// The packet exceeds the MTU of the next link; the sender got ICMP fragmentation needed.
    TooBig = 6, "too-big";
    /// The TTL ran out here; the sender got ICMP time exceeded.
    TtlExceeded = 7, "ttl-exceeded";
    /// A backend's reply has no flow: sending it would show the backend's address to the client.
    NoReplyState = 8, "no-reply-state";
    /// A packet to a SNAT port has no flow: the node's stack would reset the backend's connection.
    NoSnatState = 9, "no-snat-state";
    /// No free SNAT port after all retries.
    SnatExhausted = 10, "snat-exhausted";
    /// The map refused the new flow.
    FlowTableFull = 11, "flow-table-full";
    /// Another live connection through another frontend uses the same client port at this backend.
    TupleInUse = 12, "tuple-in-use";
    /// A later fragment came before the first one, so its ports are not known. Counted when the first one comes,
    /// and is a service's.
    FragmentUnknown = 13, "fragment-unknown";
    /// The TCP or UDP header is truncated.
    TruncatedTransport = 14, "truncated-transport";
    /// The DSR option is malformed: wrong length, or it does not fit the header.
    BadOption = 15, "bad-option";
    /// A helper refused to change the packet (out of memory, or an unsupported GSO type).
    RewriteFailed = 16, "rewrite-failed";
    /// An ICMP error quotes a backend, but no flow is known for the quote.
    IcmpNoState = 17, "icmp-no-state";
    /// The backend that Maglev or conntrack named is not in the backend map.
    BackendGone = 18, "backend-gone";
    /// This host asked a frontend whose backend is this host: the packet would leave with the host's address
    /// at both ends.
    HostToItself = 19, "host-to-itself";
    /// A DSR option that no node of this lab has sent, or in a mode that has none: believing it would let anyone
    /// make a backend answer as any frontend.
    ForeignCarrier = 20, "foreign-carrier";
    /// A source address that nobody outside can have: this network, loopback, multicast, reserved, this node itself
    /// or a pod of it.
    MartianSource = 21, "martian-source";
    /// The checksum of the IPv4 header is wrong.
    HeaderChecksum = 22, "header-checksum";
}

impl DropReason {
    /// Slots of map `DROPS`; room for later reasons without a new ABI.
    pub const SLOTS: u32 = 64;

    /// The reason with this number.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.iter().copied().find(|r| *r as u32 == number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_never_reused() {
        for (i, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, i + 1, "{} moved", reason.label());
            assert_eq!(DropReason::from_number(*reason as u32), Some(*reason));
            assert!((*reason as u32) < DropReason::SLOTS);
        }
    }

    #[test]
    fn explanations_are_sentences() {
        for reason in DropReason::ALL {
            assert!(reason.explanation().trim().ends_with('.'), "{}", reason.label());
        }
    }
}
