//! From terms to tests on packet bytes.
//!
//! Owns: header offsets, what has to be tested before a field may be read, and VLAN tags. Does not own:
//! jumps (`assemble`).
//!
//! VLAN: the kernel takes the outermost tag out of the frame before a packet socket sees it and keeps it
//! beside the packet; some drivers leave it in. As with libpcap, the first `vlan` takes it from either
//! place, and everything behind a `vlan` that looks into the frame counts its offsets from behind that tag.
//! So a filter with `vlan` is lowered twice, once for each place of the tag, and a test picks the right one.
//! The offsets behind a `vlan` in the text shift whether or not that `vlan` was tested on the way there, as
//! pcap-filter(7) says and libpcap does for files.

use std::net::Ipv6Addr;

use super::Instruction;
use super::ast::{AddressIn, Arith, Dir, Expr, Header, Join, Operator, Relation, Term, Version};
use super::error::Problem;

/// Tests joined by logic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Node {
    Test(Test),
    /// Joined from left to right.
    Chain(Box<Node>, Vec<(Join, Node)>),
    Not(Box<Node>),
    And(Box<Node>, Box<Node>),
    Or(Box<Node>, Box<Node>),
}

/// A comparison of the accumulator, after instructions that load it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Test {
    pub(super) load: Vec<Instruction>,
    /// `JEQ`, `JGT` or `JGE`, or `JSET`, with the source bit.
    pub(super) jump: u16,
    pub(super) k: u32,
}

/// Operation codes of classic BPF (linux/bpf_common.h, linux/filter.h).
pub(super) mod op {
    pub(super) const LD_W_ABS: u16 = 0x20;
    pub(super) const LD_H_ABS: u16 = 0x28;
    pub(super) const LD_B_ABS: u16 = 0x30;
    /// Added to an `ABS` load: offset plus X.
    pub(super) const ABS_TO_IND: u16 = 0x20;
    pub(super) const LD_LEN: u16 = 0x80;
    pub(super) const LD_IMM: u16 = 0x00;
    pub(in super::super) const LDX_MEM: u16 = 0x61;
    /// X = 4 * (byte & 15): an IPv4 header's length.
    pub(in super::super) const LDX_MSH: u16 = 0xb1;
    pub(super) const ST: u16 = 0x02;
    pub(super) const ALU: u16 = 0x04;
    pub(super) const ADD: u16 = 0x00;
    pub(super) const SUB: u16 = 0x10;
    pub(super) const MUL: u16 = 0x20;
    pub(super) const DIV: u16 = 0x30;
    pub(super) const OR: u16 = 0x40;
    pub(super) const AND: u16 = 0x50;
    pub(super) const LSH: u16 = 0x60;
    pub(super) const RSH: u16 = 0x70;
    pub(super) const NEG: u16 = 0x80;
    pub(super) const MOD: u16 = 0x90;
    pub(super) const XOR: u16 = 0xa0;
    pub(super) const X: u16 = 0x08;
    pub(in super::super) const TAX: u16 = 0x07;
    pub(in super::super) const JA: u16 = 0x05;
    pub(in super::super) const JEQ: u16 = 0x15;
    pub(super) const JGT: u16 = 0x25;
    pub(super) const JGE: u16 = 0x35;
    pub(super) const JSET: u16 = 0x45;
    pub(in super::super) const RET: u16 = 0x06;
}

/// Facts beside the packet, read as words at these offsets (`SKF_AD_*`).
mod beside {
    const BASE: u32 = 0xffff_f000;
    pub(super) const PKTTYPE: u32 = BASE + 4;
    pub(super) const VLAN_TAG: u32 = BASE + 44;
    pub(super) const VLAN_TAG_PRESENT: u32 = BASE + 48;
}

/// `PACKET_OUTGOING` of linux/if_packet.h.
const OUTGOING: u32 = 4;
/// EtherTypes of a VLAN tag: 802.1Q, 802.1ad and the older stacked one.
const TAGS: [u32; 3] = [0x8100, 0x88a8, 0x9100];
/// Bits of a tag that number the VLAN.
const VLAN_ID: u32 = 0x0fff;
const ETHER_IP: u32 = 0x0800;
const ETHER_ARP: u32 = 0x0806;
const ETHER_RARP: u32 = 0x8035;
const ETHER_IP6: u32 = 0x86dd;
/// Offset of the EtherType in a frame without tags.
const ETHER_TYPE: u32 = 12;
/// Next header number of an IPv6 fragment header.
const FRAGMENT6: u32 = 44;
/// Bytes of an IPv6 header.
const HEADER6: u32 = 40;
/// TCP, UDP, SCTP: what has ports in the first four bytes.
const WITH_PORTS: [u8; 3] = [132, 6, 17];
/// Words of scratch memory.
const SCRATCH: u32 = 16;

/// Lowers a filter.
pub(super) fn lower(expr: &Expr) -> Result<Node, Problem> {
    if !mentions_vlan(expr) {
        return Frame { shift: 0, tag_beside: false }.expr(expr);
    }
    let beside = Frame { shift: 0, tag_beside: true }.expr(expr)?;
    let inside = Frame { shift: 0, tag_beside: false }.expr(expr)?;
    Ok(or(and(tag_present(), beside), and(not(tag_present()), inside)))
}

fn mentions_vlan(expr: &Expr) -> bool {
    match expr {
        Expr::Chain(first, rest) => mentions_vlan(first) || rest.iter().any(|(_, e)| mentions_vlan(e)),
        Expr::Not(inside) => mentions_vlan(inside),
        Expr::Term(term) => matches!(term, Term::Vlan(_)),
    }
}

/// What is known of the frame at this place in the filter's text.
struct Frame {
    /// Bytes of tags in the frame that `vlan` terms have stepped over.
    shift: u32,
    /// The outermost tag is beside the packet, and no `vlan` has taken it yet.
    tag_beside: bool,
}

impl Frame {
    fn expr(&mut self, expr: &Expr) -> Result<Node, Problem> {
        Ok(match expr {
            Expr::Chain(first, rest) => {
                let first = self.expr(first)?;
                let rest = rest.iter().map(|(join, expr)| Ok((*join, self.expr(expr)?)));
                Node::Chain(Box::new(first), rest.collect::<Result<_, _>>()?)
            }
            Expr::Not(inside) => not(self.expr(inside)?),
            Expr::Term(term) => self.term(term)?,
        })
    }

    fn term(&mut self, term: &Term) -> Result<Node, Problem> {
        Ok(match term {
            Term::EtherType(number) => self.ether_type(u32::from(*number)),
            Term::Protocol { version, number } => self.protocol(*version, *number),
            Term::Host4 { within, dir, address, mask } => self.host4(*within, *dir, *address, *mask),
            Term::Host6 { dir, address, prefix } => self.host6(*dir, *address, *prefix),
            Term::Mac { dir, address } => ends(*dir, |source| mac(if source { 6 } else { 0 }, address)),
            Term::Ports { protocol, dir, low, high } => self.ports(*protocol, *dir, *low, *high),
            Term::EtherMulticast => set(load(op::LD_B_ABS, 0), 1),
            Term::IpMulticast => {
                and(self.ether_type(ETHER_IP), test(load(op::LD_B_ABS, self.network() + 16), op::JGE, 224))
            }
            Term::Ip6Multicast => {
                and(self.ether_type(ETHER_IP6), equal(load(op::LD_B_ABS, self.network() + 24), 255))
            }
            Term::Outbound => outgoing(),
            Term::Inbound => not(outgoing()),
            Term::Vlan(id) => self.vlan(*id),
            Term::Compare { left, relation, right } => self.compare(left, *relation, right)?,
        })
    }

    /// Offset of the network header.
    fn network(&self) -> u32 {
        ETHER_TYPE + 2 + self.shift
    }

    fn ether_type(&self, number: u32) -> Node {
        equal(load(op::LD_H_ABS, ETHER_TYPE + self.shift), number)
    }

    fn vlan(&mut self, id: Option<u16>) -> Node {
        if std::mem::take(&mut self.tag_beside) {
            return match id {
                None => tag_present(),
                Some(id) => equal(masked(load(op::LD_W_ABS, beside::VLAN_TAG), VLAN_ID), u32::from(id)),
            };
        }
        let [first, second, third] = TAGS.map(|tag| self.ether_type(tag));
        let tagged = or(first, or(second, third));
        let number = load(op::LD_H_ABS, self.network());
        self.shift += 4;
        match id {
            None => tagged,
            Some(id) => and(tagged, equal(masked(number, VLAN_ID), u32::from(id))),
        }
    }

    fn protocol(&self, version: Version, number: u8) -> Node {
        match version {
            Version::Any => or(self.protocol(Version::V4, number), self.protocol(Version::V6, number)),
            Version::V4 => and(self.ether_type(ETHER_IP), self.protocol4(number)),
            Version::V6 => {
                let fragment = and(self.protocol6(FRAGMENT6 as u8), equal(self.behind6(), u32::from(number)));
                and(self.ether_type(ETHER_IP6), or(self.protocol6(number), fragment))
            }
        }
    }

    /// The protocol field of an IPv4 header.
    fn protocol4(&self, number: u8) -> Node {
        equal(load(op::LD_B_ABS, self.network() + 9), u32::from(number))
    }

    /// The next header field of an IPv6 header.
    fn protocol6(&self, number: u8) -> Node {
        equal(load(op::LD_B_ABS, self.network() + 6), u32::from(number))
    }

    /// The first byte behind an IPv6 header: the next header field of a fragment header.
    fn behind6(&self) -> Vec<Instruction> {
        load(op::LD_B_ABS, self.network() + HEADER6)
    }

    /// Not a later fragment: only the first one has a transport header.
    fn first_fragment4(&self) -> Node {
        not(set(load(op::LD_H_ABS, self.network() + 6), 0x1fff))
    }

    fn host4(&self, within: AddressIn, dir: Dir, address: u32, mask: u32) -> Node {
        let at = |ether_type, source, destination| {
            if mask == 0 {
                return self.ether_type(ether_type);
            }
            let end = |is_source| {
                let offset = self.network() + if is_source { source } else { destination };
                equal(masked(load(op::LD_W_ABS, offset), mask), address)
            };
            and(self.ether_type(ether_type), ends(dir, end))
        };
        match within {
            AddressIn::Ip => at(ETHER_IP, 12, 16),
            AddressIn::Arp => at(ETHER_ARP, 14, 24),
            AddressIn::Rarp => at(ETHER_RARP, 14, 24),
            AddressIn::Any => or(at(ETHER_IP, 12, 16), or(at(ETHER_ARP, 14, 24), at(ETHER_RARP, 14, 24))),
        }
    }

    fn host6(&self, dir: Dir, address: Ipv6Addr, prefix: u8) -> Node {
        let bits = address.to_bits();
        let mask = !u128::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
        let word = |of: u128, index: u32| (of >> (96 - 32 * index)) as u32;
        let end = |source| {
            let offset = self.network() + if source { 8 } else { 24 };
            (0..4)
                .filter(|i| word(mask, *i) != 0)
                .map(|i| equal(masked(load(op::LD_W_ABS, offset + 4 * i), word(mask, i)), word(bits, i)))
                .reduce(and)
        };
        let version = self.ether_type(ETHER_IP6);
        match (end(true), end(false)) {
            (Some(source), Some(destination)) => {
                let either =
                    ends(dir, |is_source| if is_source { source.clone() } else { destination.clone() });
                and(version, either)
            }
            // The whole of IPv6.
            _ => version,
        }
    }

    fn ports(&self, protocol: Option<u8>, dir: Dir, low: u16, high: u16) -> Node {
        let protocols = protocol.map_or(WITH_PORTS.to_vec(), |p| vec![p]);
        let any = |field: &dyn Fn(u8) -> Node| protocols.iter().map(|p| field(*p)).reduce(or);
        let network = self.network();
        let end4 = |source| {
            let port = vec![
                Instruction { code: op::LDX_MSH, jt: 0, jf: 0, k: network },
                step(op::LD_H_ABS + op::ABS_TO_IND, network + port_offset(source)),
            ];
            within(port, low, high)
        };
        let end6 = |source| within(load(op::LD_H_ABS, network + HEADER6 + port_offset(source)), low, high);
        let ports4 = and(self.first_fragment4(), ends(dir, end4));
        let v4 = match any(&|p| self.protocol4(p)) {
            Some(protocols) => and(protocols, ports4),
            None => ports4,
        };
        let v6 = match any(&|p| self.protocol6(p)) {
            Some(protocols) => and(protocols, ends(dir, end6)),
            None => ends(dir, end6),
        };
        or(and(self.ether_type(ETHER_IP), v4), and(self.ether_type(ETHER_IP6), v6))
    }

    fn compare(&self, left: &Arith, relation: Relation, right: &Arith) -> Result<Node, Problem> {
        let (jump, negated) = match relation {
            Relation::Equal => (op::JEQ, false),
            Relation::NotEqual => (op::JEQ, true),
            Relation::Greater => (op::JGT, false),
            Relation::LessOrEqual => (op::JGT, true),
            Relation::GreaterOrEqual => (op::JGE, false),
            Relation::Less => (op::JGE, true),
        };
        let mut load = Vec::new();
        let compared = if let Arith::Constant(k) = right {
            self.arithmetic(left, 0, &mut load)?;
            test(load, jump, *k)
        } else {
            self.arithmetic(right, 0, &mut load)?;
            load.push(step(op::ST, 0));
            self.arithmetic(left, 1, &mut load)?;
            load.push(step(op::LDX_MEM, 0));
            test(load, jump | op::X, 0)
        };
        let compared = if negated { not(compared) } else { compared };
        let mut guards = Vec::new();
        self.guards(left, &mut guards);
        self.guards(right, &mut guards);
        Ok(guards.into_iter().rev().fold(compared, |node, guard| and(guard, node)))
    }

    /// What must hold before the fields of `arith` may be read.
    fn guards(&self, arith: &Arith, guards: &mut Vec<Node>) {
        match arith {
            Arith::Constant(_) | Arith::Length => {}
            Arith::Negative(inside) => self.guards(inside, guards),
            Arith::Binary { left, right, .. } => {
                self.guards(left, guards);
                self.guards(right, guards);
            }
            Arith::Field { header, offset, .. } => {
                self.guards(offset, guards);
                guards.extend(self.guard(*header));
            }
        }
    }

    fn guard(&self, header: Header) -> Option<Node> {
        match header {
            Header::Link => None,
            Header::Network(number) => Some(self.ether_type(u32::from(number))),
            Header::Transport4(number) => {
                Some(and(self.protocol(Version::V4, number), self.first_fragment4()))
            }
            Header::Transport6(number) => Some(and(self.ether_type(ETHER_IP6), self.protocol6(number))),
        }
    }

    /// Appends instructions that leave the value in the accumulator; scratch words below `free` are in use.
    fn arithmetic(&self, arith: &Arith, free: u32, out: &mut Vec<Instruction>) -> Result<(), Problem> {
        match arith {
            Arith::Constant(k) => out.push(step(op::LD_IMM, *k)),
            Arith::Length => out.push(step(op::LD_LEN, 0)),
            Arith::Negative(inside) => {
                self.arithmetic(inside, free, out)?;
                out.push(step(op::ALU | op::NEG, 0));
            }
            Arith::Field { header, offset, size } => self.field(*header, offset, *size, free, out)?,
            Arith::Binary { operator, left, right } => {
                let code = op::ALU | operation(*operator);
                if let Arith::Constant(k) = **right
                    && fits(*operator, k)
                {
                    self.arithmetic(left, free, out)?;
                    out.push(step(code, k));
                    return Ok(());
                }
                let slot = scratch(free)?;
                self.arithmetic(right, free, out)?;
                out.push(step(op::ST, slot));
                self.arithmetic(left, free + 1, out)?;
                out.push(step(op::LDX_MEM, slot));
                out.push(step(code | op::X, 0));
            }
        }
        Ok(())
    }

    fn field(
        &self,
        header: Header,
        offset: &Arith,
        size: u8,
        free: u32,
        out: &mut Vec<Instruction>,
    ) -> Result<(), Problem> {
        let code = match size {
            1 => op::LD_B_ABS,
            2 => op::LD_H_ABS,
            _ => op::LD_W_ABS,
        };
        let (base, behind_options) = match header {
            Header::Link => (0, false),
            Header::Network(_) => (self.network(), false),
            Header::Transport4(_) => (self.network(), true),
            Header::Transport6(_) => (self.network() + HEADER6, false),
        };
        let header_length = step(op::LDX_MSH, self.network());
        match (offset, behind_options) {
            (Arith::Constant(k), false) => out.push(step(code, base + k)),
            (Arith::Constant(k), true) => out.extend([header_length, step(code + op::ABS_TO_IND, base + k)]),
            (offset, behind_options) => {
                self.arithmetic(offset, free, out)?;
                if behind_options {
                    out.extend([header_length, step(op::ALU | op::ADD | op::X, 0)]);
                }
                out.extend([step(op::TAX, 0), step(code + op::ABS_TO_IND, base)]);
            }
        }
        Ok(())
    }
}

fn scratch(free: u32) -> Result<u32, Problem> {
    if free < SCRATCH { Ok(free) } else { Err(Problem::TooDeep) }
}

/// The kernel refuses constant shifts of a whole word or more; from a register they are taken.
fn fits(operator: Operator, k: u32) -> bool {
    !matches!(operator, Operator::ShiftLeft | Operator::ShiftRight) || k < 32
}

fn operation(operator: Operator) -> u16 {
    match operator {
        Operator::Add => op::ADD,
        Operator::Subtract => op::SUB,
        Operator::Multiply => op::MUL,
        Operator::Divide => op::DIV,
        Operator::Modulo => op::MOD,
        Operator::And => op::AND,
        Operator::Or => op::OR,
        Operator::Xor => op::XOR,
        Operator::ShiftLeft => op::LSH,
        Operator::ShiftRight => op::RSH,
    }
}

fn step(code: u16, k: u32) -> Instruction {
    Instruction { code, jt: 0, jf: 0, k }
}

fn load(code: u16, offset: u32) -> Vec<Instruction> {
    vec![step(code, offset)]
}

fn masked(mut load: Vec<Instruction>, mask: u32) -> Vec<Instruction> {
    if mask != u32::MAX {
        load.push(step(op::ALU | op::AND, mask));
    }
    load
}

fn test(load: Vec<Instruction>, jump: u16, k: u32) -> Node {
    Node::Test(Test { load, jump, k })
}

fn equal(load: Vec<Instruction>, k: u32) -> Node {
    test(load, op::JEQ, k)
}

fn set(load: Vec<Instruction>, bits: u32) -> Node {
    test(load, op::JSET, bits)
}

fn and(left: Node, right: Node) -> Node {
    Node::And(Box::new(left), Box::new(right))
}

fn or(left: Node, right: Node) -> Node {
    Node::Or(Box::new(left), Box::new(right))
}

fn not(inside: Node) -> Node {
    Node::Not(Box::new(inside))
}

/// The test of one end (`true` is the source) put together for both.
fn ends(dir: Dir, end: impl Fn(bool) -> Node) -> Node {
    match dir {
        Dir::Src => end(true),
        Dir::Dst => end(false),
        Dir::Either => or(end(true), end(false)),
        Dir::Both => and(end(true), end(false)),
    }
}

fn port_offset(source: bool) -> u32 {
    if source { 0 } else { 2 }
}

fn within(load: Vec<Instruction>, low: u16, high: u16) -> Node {
    if low == high {
        return equal(load, u32::from(low));
    }
    let above = test(load.clone(), op::JGE, u32::from(low));
    and(above, not(test(load, op::JGT, u32::from(high))))
}

fn mac(offset: u32, address: &[u8; 6]) -> Node {
    let [a, b, c, d, e, f] = *address;
    let last = equal(load(op::LD_W_ABS, offset + 2), u32::from_be_bytes([c, d, e, f]));
    and(last, equal(load(op::LD_H_ABS, offset), u32::from(u16::from_be_bytes([a, b]))))
}

fn outgoing() -> Node {
    equal(load(op::LD_W_ABS, beside::PKTTYPE), OUTGOING)
}

fn tag_present() -> Node {
    not(equal(load(op::LD_W_ABS, beside::VLAN_TAG_PRESENT), 0))
}
