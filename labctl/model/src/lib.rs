//! Lab file to [`Plan`]: what a user wrote, checked, and turned once into what will be done.
//!
//! Owns: the lab file's grammar, its validation and its JSON schema, and the plan that every later
//! stage reads. Does not own: any I/O, any provider. First stage of the flow.
//!
//! A lab file is read in three steps, each of which reports all that it finds: `tree` (YAML), `given` with
//! the types of `file` (grammar), `resolve` (meaning, defaults).

mod builtin;
mod diagnostic;
mod file;
mod given;
pub mod plan;
mod resolve;
mod schema;
mod tree;

pub use builtin::{builtin_lab, builtin_names};
pub use diagnostic::{Diagnostic, LabFileError, Place, Related};
pub use plan::{
    Affinity, ClientPlan, DatapathPlan, ExpectedStatus, Fault, FaultPlan, FaultScope, Mode, NodePlan,
    NodeRole, Plan, PodPlan, Protocol, ProviderKind, ServicePlan, TrafficPlan, TrafficPolicy, WireFormat,
};
pub use resolve::{MAX_REQUESTS, MAX_RESPONSE_BYTES};
pub use schema::schema;

/// Names of the checks that `verify` runs, in the order of its report. Lab files name them in `expect`.
pub const CHECK_NAMES: [&str; 19] = [
    "handshake",
    "backend",
    "client-ip",
    "return-path",
    "reply-source",
    "carrier",
    "request-path",
    "ttl",
    "l2-source",
    "unaltered",
    "checksums",
    "mtu",
    "icmp",
    "no-resets",
    "loop",
    "conservation",
    "no-strangers",
    "spread",
    "affinity",
];

/// Names that checks had before, and the ones they have now. Lab files may use either.
pub const FORMER_CHECK_NAMES: [(&str, &str); 1] = [("dsr-option", "carrier")];

/// Name of the client's host in every lab; no node has it.
pub const CLIENT: &str = "client";

/// Name of the switch's host in every lab; no node has it.
pub const SWITCH: &str = "switch";

/// Reads a lab file. `source_name` is what messages call it, usually its path.
///
/// # Errors
/// Everything that is wrong with the file, as far as it can be read at all: a syntax error hides mistakes of
/// grammar, and those hide mistakes of meaning.
pub fn parse(source_name: &str, text: &str) -> Result<Plan, LabFileError> {
    let plan = || {
        let root = tree::read(text)?;
        if matches!(root.value, tree::Value::Null) {
            return Err(vec![
                Diagnostic::new(Place::FILE, "the file is empty")
                    .help("start from a built-in lab: `labctl up dsr`, or `labs/dsr.yaml` in the sources"),
            ]);
        }
        resolve::resolve(&given::read(&root)?)
    };
    plan().map_err(|found| LabFileError::new(source_name, text, found))
}

/// As [`parse`], from a file's bytes.
///
/// # Errors
/// As [`parse`], and for bytes that are not UTF-8.
pub fn parse_bytes(source_name: &str, bytes: &[u8]) -> Result<Plan, LabFileError> {
    match str::from_utf8(bytes) {
        Ok(text) => parse(source_name, text),
        Err(error) => {
            let text = String::from_utf8_lossy(bytes);
            let found = not_utf8(&bytes[..error.valid_up_to()], bytes[error.valid_up_to()]);
            Err(LabFileError::new(source_name, &text, vec![found]))
        }
    }
}

/// `before` is the text in front of the first byte that is wrong.
fn not_utf8(before: &[u8], wrong: u8) -> Diagnostic {
    let before = String::from_utf8_lossy(before);
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    Diagnostic::new(Place { line, column, length: 1 }, format!("byte {wrong:#04x} is not UTF-8"))
        .help("save the file as UTF-8")
}
