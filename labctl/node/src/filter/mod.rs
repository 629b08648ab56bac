//! The capture filter: tcpdump's language, compiled to classic BPF.
//!
//! Owns: the words of pcap-filter(7) that make sense on an Ethernet-like interface, and the program that the
//! kernel runs. Does not own: the socket it is attached to (`capture`). An expression goes through `lexer` ->
//! `parser` -> `ast` -> `lower` (tests on packet fields) -> `assemble` (instructions).
//!
//! Why a compiler of our own:
//! - libpcap's archive cannot go into a static binary as distributions ship it: Debian's `libpcap.a` needs
//!   libdbus, which needs libsystemd, which has no archive at all; other distributions ship no `libpcap.a`.
//!   It also resolves names through the C library's plug-ins, which a static binary does not have.
//! - the crate pktbaffle 0.2 compiles `tcp` to IPv4 only, does not see VLAN tags that the kernel took out of
//!   the frame, and reports no position for a syntax error.
//!
//! What is the same as tcpdump, quirks included: equal precedence of `and` and `or`, qualifiers that carry
//! over (`port 80 or 443`), `tcp` for both IP versions but `tcp[..]` for IPv4 only, offsets that shift for
//! everything after `vlan`, and arithmetic in which `%` and `^` take all that follows. The tests run our
//! programs and tcpdump's over the same packets. What is missing is refused with its name: names of hosts,
//! ports and services (they would need a resolver), `gateway`, `protochain`, `ip broadcast`, MPLS, PPPoE,
//! Geneve, LLC, Wi-Fi and ATM. `net 10/8` and `ip proto tcp`, which tcpdump refuses, are understood.

mod assemble;
mod ast;
mod error;
mod lexer;
mod lower;
mod parser;

pub use error::{FilterError, Problem};

/// One classic BPF instruction, laid out as the kernel's `struct sock_filter`: operation, jump distances if
/// true and if false, operand. All fields are in the machine's byte order.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip if the condition holds.
    pub jt: u8,
    /// Instructions to skip if it does not.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// A program for an `AF_PACKET` raw socket on an Ethernet-like interface. It returns how many bytes of the
/// frame to keep, 0 for a frame that does not match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    instructions: Vec<Instruction>,
}

impl Program {
    /// The instructions, at least one, at most 4,096.
    pub fn instructions(&self) -> &[Instruction] {
        &self.instructions
    }
}

/// Compiles `expression`; an empty one matches every frame. `snaplen` is how many bytes of a matching frame
/// to keep, at least 1.
///
/// # Errors
/// What is wrong, and where in the expression.
pub fn compile(expression: &str, snaplen: u32) -> Result<Program, FilterError> {
    let at = |(offset, problem)| FilterError::new(expression, offset, problem);
    let tokens = lexer::lex(expression).map_err(at)?;
    let tree = parser::parse(&tokens, expression.len()).map_err(at)?;
    let tests = tree.as_ref().map(lower::lower).transpose().map_err(|problem| at((0, problem)))?;
    let instructions = assemble::assemble(tests.as_ref(), snaplen.max(1)).map_err(|p| at((0, p)))?;
    Ok(Program { instructions })
}
