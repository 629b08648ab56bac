//! Numbers as people write them.

use std::fmt::Display;

/// `1 connection`, `2 connections`.
pub(crate) fn plural(count: impl Display + PartialEq + From<u8>, noun: &str) -> String {
    if count == 1.into() { format!("1 {noun}") } else { format!("{count} {noun}s") }
}
