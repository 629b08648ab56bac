//! The flow hash that indexes Maglev tables. Every node must compute the same value, so that a flow
//! which moves to another ingress node (ECMP) still reaches its backend.

/// A round of 64-bit mixing with good avalanche (the finaliser of MurmurHash3, public domain).
#[inline(always)]
pub const fn mix(mut h: u64) -> u64 {
    h ^= h >> 33;
    h = h.wrapping_mul(0xff51_afd7_ed55_8ccd);
    h ^= h >> 33;
    h = h.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ (h >> 33)
}

/// Hash of a flow as the client sent it. The frontend *address* stays out: the same client port
/// through another node's NodePort must find the same backend, or a flow could not survive a move.
#[inline(always)]
pub const fn flow_hash(client: u32, client_port: u16, vport: u16, proto: u8) -> u32 {
    // Big-endian value of the packet bytes, so that the result does not depend on the machine.
    let ports = ((client_port.to_be() as u64) << 24) | ((vport.to_be() as u64) << 8) | proto as u64;
    mix(((client.to_be() as u64) << 32) ^ mix(ports)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_is_stable() {
        // A change here moves every flow of a running lab to another backend.
        let a = flow_hash(
            u32::from_ne_bytes([172, 18, 0, 1]),
            u16::from_ne_bytes([0xa8, 0xca]),
            u16::from_ne_bytes([0x7d, 0x00]),
            crate::PROTO_TCP,
        );
        assert_eq!(a, 0x48fb_dde5, "got {a:#x}");
    }

    #[test]
    fn every_field_counts() {
        let base = flow_hash(1, 2, 3, 6);
        assert_ne!(base, flow_hash(2, 2, 3, 6));
        assert_ne!(base, flow_hash(1, 3, 3, 6));
        assert_ne!(base, flow_hash(1, 2, 4, 6));
        assert_ne!(base, flow_hash(1, 2, 3, 17));
    }
}
