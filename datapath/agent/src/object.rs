//! The embedded eBPF objects.

/// The ELF object that `build.rs` built, aligned as the ELF parser wants it.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/datapath.o"));

/// The ELF object of the program that watches what the kernel drops.
pub(crate) static DROPS_OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/drops.o"));

/// Whether the object was built with feature `mutations`.
pub const fn supports_mutations() -> bool {
    cfg!(feature = "mutations")
}
