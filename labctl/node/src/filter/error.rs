//! What can be wrong with a filter expression.
//!
//! Owns: the problems and how they read. Does not own: finding them.

use thiserror::Error;

/// A filter that cannot be compiled. Reads well after "failed to compile the filter: ".
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{problem}, at character {} of '{filter}'", self.column())]
pub struct FilterError {
    filter: String,
    offset: usize,
    problem: Problem,
}

impl FilterError {
    pub(super) fn new(filter: &str, offset: usize, problem: Problem) -> Self {
        Self { filter: filter.to_owned(), offset, problem }
    }

    /// What is wrong.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// Character at which it is noticed, from 1; one past the end if something is missing there.
    pub fn column(&self) -> usize {
        self.filter[..self.offset].chars().count() + 1
    }

    /// Two lines without a final newline: the filter, and a caret below the place.
    pub fn excerpt(&self) -> String {
        format!("{}\n{:>width$}", self.filter, '^', width = self.column())
    }
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Problem {
    /// A character that no word has.
    #[error("the character {0:?} means nothing in a filter")]
    Character(char),
    /// Digits that make no number.
    #[error("{0:?} is neither a number nor an address")]
    Number(String),
    /// Another word was needed.
    #[error("found {found} where {expected} is needed")]
    Unexpected {
        /// What stands there.
        found: String,
        /// What would be right.
        expected: &'static str,
    },
    /// A word that is a name.
    #[error(
        "{0:?} is no word of the filter language, and names are not resolved; write the number or address"
    )]
    Name(String),
    /// A word of pcap-filter(7) that this compiler leaves out.
    #[error("{0:?} is not supported here; byte tests such as ether[12:2] = 0x8847 may say the same")]
    Unsupported(String),
    /// A number or address without a word before it that says what it is.
    #[error("{0} needs a word that says what it is: host, net, port, portrange or proto")]
    Unqualified(String),
    /// Qualifiers that do not go together.
    #[error("'{modifier}' cannot be applied to {subject}")]
    Modifier {
        /// The qualifier.
        modifier: &'static str,
        /// What it stands before.
        subject: &'static str,
    },
    /// A value that its field cannot hold.
    #[error("the {what} {value} is larger than {max}")]
    TooLarge {
        /// Field.
        what: &'static str,
        /// Value.
        value: u32,
        /// Largest possible value.
        max: u32,
    },
    /// A network address with host bits.
    #[error("{0} has bits set outside of its mask; write the network's own address")]
    HostBits(String),
    /// A mask after something else than a network.
    #[error("only a net has a mask; write net instead of host")]
    MaskOfHost,
    /// A size in `proto[offset:size]`.
    #[error("the size of a field is 1, 2 or 4 bytes, not {0}")]
    FieldSize(u32),
    /// A constant division.
    #[error("this divides by zero")]
    DivisionByZero,
    /// Brackets in brackets in brackets.
    #[error("this is nested too deeply")]
    TooDeep,
    /// The kernel takes 4,096 instructions.
    #[error("the filter compiles to {0} instructions and the kernel takes 4096; use fewer terms")]
    TooLong(usize),
}
