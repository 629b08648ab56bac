//! The program that goes into images and nodes: this one.
//!
//! Owns: reading it and refusing one that would not run there. It must be static: the image has nothing but it.

use std::env;
use std::fs;
use std::io;
use std::path::PathBuf;

use bytes::Bytes;
use sha2::{Digest, Sha256};

/// Names another file than the running program.
const OVERRIDE: &str = "LABCTL_AGENT_BINARY";
/// The child of a link to a file that was replaced since still reads the file that runs.
const THIS_PROGRAM: &str = "/proc/self/exe";

/// Why the program cannot be put into nodes.
#[derive(Debug, thiserror::Error)]
pub enum BinaryError {
    /// It cannot be read.
    #[error("read the program for the nodes, {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// It is no program of this kind of machine.
    #[error("use {} in the nodes: it is no 64-bit ELF program", path.display())]
    NotElf {
        /// The file.
        path: PathBuf,
    },
    /// It needs libraries that an empty image does not have.
    #[error(
        "use {} in the nodes: it is dynamically linked, and their image has no libraries; it needs the static build: \
         make build, then target/labctl (or LABCTL_AGENT_BINARY=target/labctl)",
        path.display()
    )]
    Dynamic {
        /// The file.
        path: PathBuf,
    },
}

/// The program as bytes; clones share them.
#[derive(Clone, Debug)]
pub(crate) struct AgentBinary {
    /// The file's content.
    pub(crate) bytes: Bytes,
    /// Lower-case hexadecimal SHA-256 of it.
    pub(crate) digest: String,
}

impl AgentBinary {
    /// This program, or the one that `LABCTL_AGENT_BINARY` names.
    pub(crate) fn read() -> Result<Self, BinaryError> {
        Self::read_from(env::var_os(OVERRIDE).filter(|p| !p.is_empty()).map(PathBuf::from))
    }

    /// The program in this file, or this program.
    pub(crate) fn read_from(path: Option<PathBuf>) -> Result<Self, BinaryError> {
        let shown = path.clone().or_else(|| env::current_exe().ok()).unwrap_or_else(|| THIS_PROGRAM.into());
        let bytes = fs::read(path.unwrap_or_else(|| THIS_PROGRAM.into()))
            .map_err(|source| BinaryError::Read { path: shown.clone(), source })?;
        match interpreter(&bytes) {
            None => Err(BinaryError::NotElf { path: shown }),
            Some(true) => Err(BinaryError::Dynamic { path: shown }),
            Some(false) => Ok(Self::of(bytes)),
        }
    }

    /// A program that is known to be static.
    pub(crate) fn of(bytes: Vec<u8>) -> Self {
        let digest = hex(&Sha256::digest(&bytes));
        Self { bytes: bytes.into(), digest }
    }
}

/// Lower-case hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether an ELF file asks for an interpreter (a `PT_INTERP` program header, elf(5)); `None` if it is no
/// 64-bit little-endian ELF file.
fn interpreter(bytes: &[u8]) -> Option<bool> {
    const PT_INTERP: u32 = 3;
    if !bytes.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let word = |at: usize| Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    let start = usize::try_from(u64::from_le_bytes(*bytes.get(32..)?.first_chunk()?)).ok()?;
    let (size, count) = (usize::from(word(54)?), usize::from(word(56)?));
    let kind = |number: usize| {
        let header = bytes.get(start.checked_add(number * size)?..)?;
        Some(u32::from_le_bytes(*header.first_chunk()?))
    };
    Some((0..count).any(|number| kind(number) == Some(PT_INTERP)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elf(kinds: &[u32]) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[32] = 64;
        bytes[54] = 56;
        bytes[56] = kinds.len() as u8;
        for kind in kinds {
            bytes.extend(kind.to_le_bytes());
            bytes.extend([0; 52]);
        }
        bytes
    }

    #[test]
    fn dynamic_programs_are_told_from_static_ones() {
        assert_eq!(interpreter(&elf(&[6, 3, 1])), Some(true));
        assert_eq!(interpreter(&elf(&[6, 1])), Some(false));
        assert_eq!(interpreter(b"#!/bin/sh"), None);
        assert_eq!(interpreter(&elf(&[])[..40]), None, "cut in the header");
    }
}
