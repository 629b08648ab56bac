//! A filter as its author meant it.
//!
//! Owns: the meaning of each term, with names turned into numbers and qualifiers resolved. Does not own:
//! packet offsets (`lower`).

use std::net::Ipv6Addr;

/// A filter or a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expr {
    /// Joined from left to right; flat, so that a list of a thousand hosts is no recursion of a thousand.
    Chain(Box<Expr>, Vec<(Join, Expr)>),
    Not(Box<Expr>),
    Term(Term),
}

/// How a part is joined to everything on its left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Join {
    And,
    Or,
}

/// Which ends of a packet a term looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dir {
    Src,
    Dst,
    Either,
    Both,
}

/// Which headers an IPv4 address is looked for in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AddressIn {
    Any,
    Ip,
    Arp,
    Rarp,
}

/// Which version of IP a protocol number is looked for in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    Any,
    V4,
    V6,
}

/// One test that a reader would call one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Term {
    EtherType(u16),
    Protocol {
        version: Version,
        number: u8,
    },
    Host4 {
        within: AddressIn,
        dir: Dir,
        address: u32,
        mask: u32,
    },
    Host6 {
        dir: Dir,
        address: Ipv6Addr,
        prefix: u8,
    },
    Mac {
        dir: Dir,
        address: [u8; 6],
    },
    /// Ports from `low` to `high`; every transport that has ports if there is no `protocol`.
    Ports {
        protocol: Option<u8>,
        dir: Dir,
        low: u16,
        high: u16,
    },
    EtherMulticast,
    IpMulticast,
    Ip6Multicast,
    Inbound,
    Outbound,
    Vlan(Option<u16>),
    Compare {
        left: Arith,
        relation: Relation,
        right: Arith,
    },
}

/// How two numbers are compared; all numbers are unsigned 32-bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Relation {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Equal,
    NotEqual,
}

/// A number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Arith {
    Constant(u32),
    /// Bytes of the frame.
    Length,
    /// `size` bytes, big-endian, at `offset` of a header.
    Field {
        header: Header,
        offset: Box<Arith>,
        size: u8,
    },
    Negative(Box<Arith>),
    Binary {
        operator: Operator,
        left: Box<Arith>,
        right: Box<Arith>,
    },
}

/// Where a field's offset counts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Header {
    /// The frame's first byte.
    Link,
    /// The network header of frames with this EtherType.
    Network(u16),
    /// The transport header of IPv4 packets with this protocol that are no later fragment.
    Transport4(u8),
    /// The header right behind the IPv6 header, with this protocol.
    Transport6(u8),
}

/// An operator of arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    Modulo,
    And,
    Or,
    Xor,
    ShiftLeft,
    ShiftRight,
}
