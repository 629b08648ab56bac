//! Fields and enumerators of this kernel, from its BTF (Documentation/bpf/btf.rst).
//!
//! Owns: reading /sys/kernel/btf/vmlinux. Does not own: what they are for. aya parses the same file and shows neither members
//! nor enumerators; btf-rs shows them and needs 170 ms for its index of all names, a third of a whole `verify`.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

const VMLINUX: &str = "/sys/kernel/btf/vmlinux";
const MAGIC: u16 = 0xeb9f;
/// Bytes of `struct btf_type`.
const TYPE: usize = 12;

// Kinds from include/uapi/linux/btf.h.
const INT: u32 = 1;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const TYPEDEF: u32 = 8;
const VOLATILE: u32 = 9;
const CONST: u32 = 10;
const FUNC_PROTO: u32 = 13;
const VAR: u32 = 14;
const DATASEC: u32 = 15;
const DECL_TAG: u32 = 17;
const ENUM64: u32 = 19;

/// Nested anonymous members are a few levels deep; a file that says otherwise is damaged.
const DEEPEST: usize = 16;

/// The types of the running kernel.
pub(crate) struct KernelTypes {
    data: Vec<u8>,
    strings: usize,
    /// Where each type begins; number 0 is `void` and has no bytes.
    types: Vec<usize>,
}

impl KernelTypes {
    /// Reads them.
    ///
    /// # Errors
    /// When the kernel has no BTF, or it cannot be understood.
    pub(crate) fn read() -> io::Result<Self> {
        Self::parse(std::fs::read(Path::new(VMLINUX))?)
            .ok_or_else(|| io::Error::other("it is no BTF of this machine"))
    }

    /// The bytes that they were read from, for others that parse them.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.data
    }

    fn parse(data: Vec<u8>) -> Option<Self> {
        if u16_at(&data, 0)? != MAGIC {
            return None;
        }
        // Lengths and offsets are from the end of the header on.
        let header = u32_at(&data, 4)? as usize;
        let (start, len) = (u32_at(&data, 8)? as usize, u32_at(&data, 12)? as usize);
        let strings = header.checked_add(u32_at(&data, 16)? as usize)?;
        let (mut at, end) = (header.checked_add(start)?, header.checked_add(start)?.checked_add(len)?);
        let mut types = vec![0];
        while at < end {
            types.push(at);
            at = at.checked_add(size(&data, at)?)?;
        }
        Some(Self { data, strings, types })
    }

    /// Offset in bytes of a member of a structure, through members without names; `path` is one name for each structure.
    pub(crate) fn offset(&self, structure: &str, path: &[&str]) -> Option<u32> {
        let mut of = self.find(STRUCT, structure)?;
        let mut bits = 0;
        for (depth, name) in path.iter().enumerate() {
            let (at, member) = self.member(of, name, DEEPEST)?;
            bits += at;
            if depth + 1 < path.len() {
                of = self.structure(member)?;
            }
        }
        Some(bits / 8)
    }

    /// Names of an enumeration's values.
    pub(crate) fn enumerators(&self, name: &str) -> BTreeMap<u32, String> {
        let mut found = BTreeMap::new();
        let Some(at) = self.find(ENUM, name) else { return found };
        for index in 0..self.count(at) {
            let entry = at + TYPE + index * 8;
            if let (Some(name), Some(value)) = (u32_at(&self.data, entry), u32_at(&self.data, entry + 4)) {
                found.insert(value, self.name(name).to_owned());
            }
        }
        found
    }

    fn find(&self, kind: u32, name: &str) -> Option<usize> {
        let is_it = |at: &&usize| {
            self.kind(**at) == Some(kind)
                && self.count(**at) > 0
                && u32_at(&self.data, **at).is_some_and(|offset| self.name(offset) == name)
        };
        self.types.iter().skip(1).find(is_it).copied()
    }

    /// A member of a structure, with its offset in bits and the number of its type.
    fn member(&self, at: usize, name: &str, depth: usize) -> Option<(u32, u32)> {
        // The upper bit of a structure's own word says that offsets hold a bit field's size too.
        let with_sizes = u32_at(&self.data, at + 4)? >> 31 == 1;
        for index in 0..self.count(at) {
            let entry = at + TYPE + index * 12;
            let (own, kind) = (u32_at(&self.data, entry)?, u32_at(&self.data, entry + 4)?);
            let offset = u32_at(&self.data, entry + 8)? & if with_sizes { 0x00ff_ffff } else { u32::MAX };
            if own != 0 && self.name(own) == name {
                return Some((offset, kind));
            }
            if own == 0
                && depth > 0
                && let Some(inner) = self.structure(kind)
                && let Some((more, kind)) = self.member(inner, name, depth - 1)
            {
                return Some((offset + more, kind));
            }
        }
        None
    }

    /// The structure or union behind a type's number.
    fn structure(&self, number: u32) -> Option<usize> {
        let mut at = *self.types.get(number as usize).filter(|_| number > 0)?;
        for _ in 0..DEEPEST {
            match self.kind(at)? {
                STRUCT | UNION => return Some(at),
                TYPEDEF | CONST | VOLATILE => {
                    at = *self.types.get(u32_at(&self.data, at + 8)? as usize)?;
                }
                _ => return None,
            }
        }
        None
    }

    fn kind(&self, at: usize) -> Option<u32> {
        Some((u32_at(&self.data, at + 4)? >> 24) & 0x1f)
    }

    fn count(&self, at: usize) -> usize {
        u32_at(&self.data, at + 4).map_or(0, |info| (info & 0xffff) as usize)
    }

    fn name(&self, offset: u32) -> &str {
        let from = self.data.get(self.strings + offset as usize..).unwrap_or_default();
        let end = from.iter().position(|byte| *byte == 0).unwrap_or(0);
        std::str::from_utf8(&from[..end]).unwrap_or_default()
    }
}

/// Bytes of a type with what follows it.
fn size(data: &[u8], at: usize) -> Option<usize> {
    let info = u32_at(data, at + 4)?;
    let count = (info & 0xffff) as usize;
    Some(
        TYPE + match (info >> 24) & 0x1f {
            INT | VAR | DECL_TAG => 4,
            ARRAY => 12,
            STRUCT | UNION | DATASEC | ENUM64 => 12 * count,
            ENUM | FUNC_PROTO => 8 * count,
            _ => 0,
        },
    )
}

fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*data.get(at..)?.first_chunk()?))
}

fn u16_at(data: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*data.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_types_are_refused_or_empty() {
        assert!(KernelTypes::parse(Vec::new()).is_none());
        assert!(KernelTypes::parse(vec![0; 64]).is_none());
        // A header that promises more than there is.
        let mut data = MAGIC.to_ne_bytes().to_vec();
        data.extend([1, 0]);
        for word in [24u32, 0, 1000, 1000, 10] {
            data.extend(word.to_ne_bytes());
        }
        assert!(KernelTypes::parse(data).is_none());
    }

    #[test]
    fn this_kernels_fields_are_where_the_compiler_put_them() {
        let Ok(types) = KernelTypes::read() else {
            assert!(!Path::new(VMLINUX).exists(), "this kernel has BTF, and it was not understood");
            return;
        };
        // The first members are where the C standard puts them.
        assert_eq!(types.offset("list_head", &["next"]), Some(0));
        assert_eq!(types.offset("list_head", &["prev"]), Some(size_of::<usize>() as u32));
        assert_eq!(types.offset("list_head", &["nothing"]), None);
        let reasons = types.enumerators("skb_drop_reason");
        assert_eq!(reasons.get(&1).map(String::as_str), Some("SKB_CONSUMED"));
    }
}
