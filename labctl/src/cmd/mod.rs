//! One file per subcommand: its arguments and what it does, in the order of its steps.

pub(crate) mod completions;
pub(crate) mod doctor;
pub(crate) mod man;
