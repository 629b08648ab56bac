//! Internet checksum arithmetic (RFC 1071) and its incremental update (RFC 1624).
//!
//! All sums run over 16-bit words *as they stand in memory*: one's complement addition is independent
//! of byte order (RFC 1071 section 2 B), so nothing is swapped on either kind of machine.

/// Adds a 32-bit word to a running one's complement sum.
#[inline(always)]
pub const fn add32(sum: u64, word: u32) -> u64 {
    sum + word as u64
}

/// Adds the one's complement of a 32-bit word: takes an old value out of a sum.
#[inline(always)]
pub const fn sub32(sum: u64, word: u32) -> u64 {
    sum + !word as u64
}

/// Folds a running sum to 16 bits.
#[inline(always)]
pub const fn fold(sum: u64) -> u16 {
    let s = (sum & 0xffff_ffff) + (sum >> 32);
    let s = (s & 0xffff) + (s >> 16);
    let s = (s & 0xffff) + (s >> 16);
    let s = (s & 0xffff) + (s >> 16);
    s as u16
}

/// RFC 1624 equation 3: the new checksum field from the old field and the sum of `~old + new` words.
#[inline(always)]
pub const fn update(field: u16, delta: u64) -> u16 {
    !fold(!field as u64 + delta)
}

/// Folds a sum of differences to the 32-bit form that `bpf_l4_csum_replace` takes as `to`.
#[inline(always)]
pub const fn fold32(sum: u64) -> u32 {
    let s = (sum & 0xffff_ffff) + (sum >> 32);
    let s = (s & 0xffff_ffff) + (s >> 32);
    s as u32
}

/// The checksum of `bytes`, an odd last byte padded with zero, starting from `seed`.
pub fn of(bytes: &[u8], seed: u64) -> u16 {
    let (words, rest) = bytes.as_chunks::<2>();
    let mut sum = seed;
    for word in words {
        sum += u16::from_ne_bytes(*word) as u64;
    }
    if let [last] = rest {
        sum += u16::from_ne_bytes([*last, 0]) as u64;
    }
    !fold(sum)
}

/// Sum of the pseudo header of TCP or UDP (RFC 9293 section 3.1), a seed for [`of`].
/// `src` and `dst` in packet order, `len` the length of header and payload in bytes.
pub const fn pseudo_header(src: u32, dst: u32, proto: u8, len: u16) -> u64 {
    add32(add32(0, src), dst) + (proto as u16).to_be() as u64 + len.to_be() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc_1071_example() {
        // RFC 1071 section 3: the words 0001 f203 f4f5 f6f7 add up to ddf2.
        let sum = of(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7], 0);
        assert_eq!((!sum).to_be(), 0xddf2);
    }

    #[test]
    fn update_equals_recomputation() {
        let mut seed = 0x9e37_79b9_7f4a_7c15u64;
        for _ in 0..10_000 {
            seed = crate::mix(seed.wrapping_add(1));
            let mut bytes = [0u8; 24];
            for (i, b) in bytes.iter_mut().enumerate() {
                *b = crate::mix(seed + i as u64) as u8;
            }
            let before = of(&bytes, 0);
            let old = u32::from_ne_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
            let new = crate::mix(seed ^ 0xabcd) as u32;
            bytes[8..12].copy_from_slice(&new.to_ne_bytes());
            assert_eq!(update(before, add32(sub32(0, old), new)), of(&bytes, 0));
        }
    }

    #[test]
    fn rfc_1624_corner() {
        // RFC 1624 section 4: field DD2F, word 5555 becomes 3285, result is 0000 and not FFFF.
        let delta = !0x5555u16 as u64 + 0x3285u64;
        assert_eq!(update(0xdd2f, delta), 0x0000);
    }
}
