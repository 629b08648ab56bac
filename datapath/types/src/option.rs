//! The 8-byte IPv4 option that carries the frontend from the ingress node to the backend's node.
//!
//! | byte | network order | Cilium on little-endian hosts |
//! |------|---------------|-------------------------------|
//! | 0    | `9a` type: copied into fragments, class 0, number 26 (RFC 791 section 3.1) | same |
//! | 1    | `08` length of the whole option | same |
//! | 2..4 | port, big-endian | port, little-endian |
//! | 4..8 | address, big-endian | address, little-endian |
//!
//! Cilium swaps values that already are in network order (`bpf/lib/dsr.h`, `dsr_set_opt4`), so what it
//! writes is reversed on x86 and arm64. For 172.18.0.3:32000: `9a 08 7d 00 ac 12 00 03` against
//! `9a 08 00 7d 03 00 12 ac`. A reader cannot tell the two apart by looking; it asks the frontend table.

/// Option type: copied flag, class 0 (control), number 26 (unassigned at IANA).
pub const TYPE: u8 = 0x80 | 0x1a;
/// Bytes of the option, also its length field.
pub const LEN: usize = 8;

/// Byte order of port and address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireOrder {
    /// Big-endian, as everything else in IP.
    Network,
    /// As Cilium writes it on little-endian hosts.
    Cilium,
}

/// Why eight bytes are not a DSR option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The type byte is another one.
    NotDsr,
    /// The type fits, the length byte is not 8.
    BadLength,
}

/// The frontend in an option: address and port in packet order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DsrFrontend {
    /// Frontend address, packet order.
    pub addr: u32,
    /// Frontend port, packet order.
    pub port: u16,
}

/// The bytes of the option for a frontend, `addr` and `port` in packet order.
#[inline(always)]
pub const fn encode(addr: u32, port: u16, order: WireOrder) -> [u8; LEN] {
    let a = addr.to_ne_bytes();
    let p = port.to_ne_bytes();
    match order {
        WireOrder::Network => [TYPE, LEN as u8, p[0], p[1], a[0], a[1], a[2], a[3]],
        WireOrder::Cilium => [TYPE, LEN as u8, p[1], p[0], a[3], a[2], a[1], a[0]],
    }
}

/// Both readings of an option: first in network order, then in Cilium's. The caller knows the
/// frontends and takes the reading that names one.
///
/// # Errors
/// [`DecodeError::NotDsr`] for another type, [`DecodeError::BadLength`] for our type with a length
/// other than 8.
#[inline(always)]
pub const fn decode(bytes: [u8; LEN]) -> Result<(DsrFrontend, DsrFrontend), DecodeError> {
    let [kind, len, p0, p1, a0, a1, a2, a3] = bytes;
    if kind != TYPE {
        return Err(DecodeError::NotDsr);
    }
    if len as usize != LEN {
        return Err(DecodeError::BadLength);
    }
    let network =
        DsrFrontend { addr: u32::from_ne_bytes([a0, a1, a2, a3]), port: u16::from_ne_bytes([p0, p1]) };
    let cilium =
        DsrFrontend { addr: u32::from_ne_bytes([a3, a2, a1, a0]), port: u16::from_ne_bytes([p1, p0]) };
    Ok((network, cilium))
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIP: u32 = u32::from_ne_bytes([172, 18, 0, 3]);
    const PORT: u16 = u16::from_ne_bytes([0x7d, 0x00]);

    #[test]
    fn golden_vectors() {
        assert_eq!(encode(VIP, PORT, WireOrder::Network), [0x9a, 8, 0x7d, 0, 0xac, 0x12, 0, 3]);
        assert_eq!(encode(VIP, PORT, WireOrder::Cilium), [0x9a, 8, 0, 0x7d, 3, 0, 0x12, 0xac]);
    }

    #[test]
    fn both_readings_come_back() {
        let frontend = DsrFrontend { addr: VIP, port: PORT };
        assert_eq!(decode(encode(VIP, PORT, WireOrder::Network)).unwrap().0, frontend);
        assert_eq!(decode(encode(VIP, PORT, WireOrder::Cilium)).unwrap().1, frontend);
    }

    #[test]
    fn foreign_options_are_told_apart() {
        assert_eq!(decode([0x94, 4, 0, 0, 0, 0, 0, 0]), Err(DecodeError::NotDsr));
        assert_eq!(decode([TYPE, 6, 0, 0, 0, 0, 0, 0]), Err(DecodeError::BadLength));
    }

    #[test]
    fn the_seed_reads_the_little_endian_dump_backwards() {
        let mut reversed = encode(VIP, PORT, WireOrder::Cilium);
        reversed[2..].reverse();
        assert_eq!(reversed[2..], [0xac, 0x12, 0x00, 0x03, 0x7d, 0x00]);
    }
}
