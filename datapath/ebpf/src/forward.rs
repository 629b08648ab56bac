//! A packet's next move: decided by the steps before, carried out here, once per program.
//!
//! Deciding never touches the packet. So there is one copy of the code that does, whatever led to it, and
//! the ICMP errors about a packet that cannot be moved still find it as its sender wrote it.

use aya_ebpf::programs::TcContext;
use datapath_types::{Counter, DropReason, Endpoint, Mutation, PROTO_TCP, option};

use crate::{
    drop::{PASS, Step, count, redirect},
    icmp_send::{self, Message},
    maps::{ENDPOINTS, NODES},
    names::{self, Options, Place},
    option as dsr_option,
    packet::{ETH_LEN, Packet, read},
    rewrite::{Tuple, rewrite},
    scratch::forget,
    settings,
};

/// What to do about the DSR option.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum OptionStep {
    /// Nothing.
    Leave = 0,
    /// Insert one that names [`Move::seen`]'s destination.
    Insert = 1,
    /// Take it out.
    Strip = 2,
    /// Leave the one that is there, for the pod.
    Keep = 3,
    /// As [`Self::Insert`], or nothing if the packet would be too big or has no room.
    InsertIfItFits = 4,
}

/// Where a packet goes and as what.
#[derive(Clone, Copy)]
pub(crate) struct Move {
    /// Addresses and ports it shall have.
    pub(crate) new: Tuple,
    /// Addresses and ports as its sender wrote them, for quotes and for the option.
    pub(crate) seen: Tuple,
    /// Interface index; 0 is this host's stack.
    pub(crate) out: u32,
    /// MTU of that interface; 0 does not ask.
    pub(crate) mtu: u32,
    /// The DSR option.
    pub(crate) option: OptionStep,
    /// Whether this node counts as a hop.
    pub(crate) hop: bool,
    /// Answer with port unreachable instead.
    pub(crate) refuse: bool,
}

/// The local pod with this address.
#[inline(always)]
pub(crate) fn endpoint(addr: u32) -> Option<Endpoint> {
    // SAFETY: the agent replaces values whole; both fields are plain integers.
    ENDPOINTS.get_ptr(addr).map(|e| unsafe { *e })
}

/// Whether an address belongs to nobody in the cluster: not a pod, not a node.
#[inline(always)]
pub(crate) fn is_outside(addr: u32) -> bool {
    !settings::is_pod_addr(addr) && NODES.get_ptr(addr).is_none()
}

impl Move {
    /// Towards the destination that `new` names: a local pod, this host's stack, or the uplink.
    #[inline(always)]
    pub(crate) fn towards(packet: &Packet, new: Tuple) -> Self {
        let stack = new.dst == settings::node_addr();
        let (out, mtu) = match endpoint(new.dst) {
            Some(pod) => (pod.ifindex, pod.mtu),
            None if stack => (0, 0),
            None => (settings::uplink(), settings::mtu()),
        };
        let seen = Tuple::of(packet);
        Self { new, seen, out, mtu, option: OptionStep::Leave, hop: !stack, refuse: false }
    }

    /// Out of the uplink.
    #[inline(always)]
    pub(crate) fn uplink(packet: &Packet, new: Tuple) -> Self {
        let (out, mtu) = (settings::uplink(), settings::mtu());
        let seen = Tuple::of(packet);
        Self { new, seen, out, mtu, option: OptionStep::Leave, hop: true, refuse: false }
    }

    /// The packet as the stack routed it already, with other addresses.
    #[inline(always)]
    pub(crate) fn in_place(packet: &Packet, new: Tuple) -> Self {
        let seen = Tuple::of(packet);
        Self { new, seen, out: 0, mtu: 0, option: OptionStep::Leave, hop: false, refuse: false }
    }

    /// Port unreachable to the sender.
    #[inline(always)]
    pub(crate) fn refuse(packet: &Packet) -> Self {
        Self { refuse: true, ..Self::in_place(packet, Tuple::of(packet)) }
    }

    /// Bytes that the option step adds.
    #[inline(always)]
    fn growth(&self) -> i32 {
        match self.option {
            OptionStep::Leave | OptionStep::Keep | OptionStep::InsertIfItFits => 0,
            OptionStep::Insert => option::LEN as i32,
            OptionStep::Strip => -(option::LEN as i32),
        }
    }

    /// What the sender must hear instead, if the packet cannot be moved.
    #[inline(always)]
    fn obstacle(&self, ctx: &TcContext, packet: &Packet) -> Option<Message> {
        if self.refuse {
            return Some(Message::port_unreachable(self.seen.dst));
        }
        if self.hop && packet.ttl <= 1 {
            return Some(Message::time_exceeded(settings::node_addr()));
        }
        if self.mtu == 0 || settings::mutated(Mutation::IgnoreMtu) {
            return None;
        }
        // Also without DF, where RFC 791 lets a gateway cut the packet and RFC 1191 expects no answer. eBPF has
        // no helper that fragments, and the node's stack, which can, must not have the packet: its FORWARD
        // rules, conntrack and rp_filter would judge a flow of which they see one direction, and an ICMP
        // redirect would tell the client the pod's address. So the one datagram is lost, and the sender
        // hears why: Linux lowers the path MTU for senders without DF too, and cuts the next one itself.
        let growth = self.growth();
        if wire_len(ctx, packet) as i32 + growth <= self.mtu as i32 {
            return None;
        }
        let tagged = self.option == OptionStep::Insert;
        let room = if tagged { self.mtu - option::LEN as u32 } else { self.mtu };
        let reason = if tagged { DropReason::TooBigForOption } else { DropReason::TooBig };
        // A client outside knows the frontend; a pod may hear from its router, and a reply's destination is
        // the client, in whose name nobody else may speak.
        let source = match settings::is_pod_addr(packet.src) {
            true => settings::node_addr(),
            false => self.seen.dst,
        };
        Some(Message::fragmentation_needed(room, source, reason))
    }

    /// Decides [`OptionStep::InsertIfItFits`].
    #[inline(always)]
    fn insert_if_it_fits(&mut self, ctx: &TcContext, packet: &Packet) {
        if self.option == OptionStep::InsertIfItFits {
            let fits =
                wire_len(ctx, packet) + option::LEN as u32 <= self.mtu && packet.ihl <= dsr_option::LONGEST;
            self.option = if fits { OptionStep::Insert } else { OptionStep::Leave };
        }
    }

    /// Whether the packet belongs to a flow, whose one end must not see the other's options. Whoever sends
    /// to a pod as such, knows it.
    #[inline(always)]
    fn is_of_a_flow(&self) -> bool {
        self.seen != self.new
    }

    /// The options that the packet came with.
    #[inline(always)]
    fn options(&self, packet: &Packet) -> Place {
        let carrier = matches!(self.option, OptionStep::Strip | OptionStep::Keep);
        Place { header: ETH_LEN, ihl: packet.ihl, carrier }
    }

    /// Carries the move out. Gives the tc action.
    ///
    /// # Errors
    /// A drop if a helper refuses.
    #[inline(always)]
    pub(crate) fn carry_out(
        &mut self,
        ctx: &mut TcContext,
        packet: &mut Packet,
        options: &mut Options,
    ) -> Step<i32> {
        self.insert_if_it_fits(ctx, packet);
        let way = forget(self);
        if let Some(message) = way.obstacle(ctx, packet) {
            return way.send_back(ctx, packet, &message);
        }
        if way.option == OptionStep::Insert && packet.ihl > dsr_option::LONGEST {
            return Err(DropReason::OptionNoRoom.into());
        }
        if way.is_of_a_flow() {
            names::blank(ctx, options, way.options(packet))?;
        }
        let (way, packet) = (forget(way), forget(packet));
        rewrite(ctx, packet, &way.new, way.hop)?;
        match way.option {
            OptionStep::Leave | OptionStep::Keep | OptionStep::InsertIfItFits => {}
            OptionStep::Insert => {
                dsr_option::insert(ctx, packet, way.seen.dst, way.seen.dport)?;
                count(Counter::OptionInserted);
            }
            OptionStep::Strip => {
                dsr_option::strip(ctx, packet)?;
                count(Counter::OptionStripped);
            }
        }
        Ok(if way.out == 0 { PASS } else { redirect(ctx, way.out) })
    }

    /// Answers the sender. A packet that another node has rewritten shows its sender's view again first.
    #[inline(always)]
    fn send_back(&self, ctx: &mut TcContext, packet: &mut Packet, message: &Message) -> Step<i32> {
        if self.seen.dst != packet.dst {
            rewrite(ctx, packet, &self.seen, false)?;
        }
        Ok(icmp_send::error(ctx, packet, message))
    }
}

/// The largest IPv4 packet that will be on the wire: the packet itself, or one segment of a GSO packet.
#[inline(always)]
fn wire_len(ctx: &TcContext, packet: &Packet) -> u32 {
    // SAFETY: the kernel hands a valid context; a plain field.
    let segment = unsafe { (*ctx.skb.skb).gso_size };
    if segment == 0 {
        return packet.tot_len as u32;
    }
    let transport = match packet.proto {
        PROTO_TCP => read::<u8>(ctx, packet.l4_offset() + 12).map_or(20, |b| (b >> 4) << 2) as u32,
        _ => 8,
    };
    packet.ihl as u32 + transport + segment
}
