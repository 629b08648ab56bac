//! One file per subcommand: its arguments and what it does, in the order of its steps.

use clap::ValueEnum;

pub(crate) mod capture;
pub(crate) mod completions;
pub(crate) mod doctor;
pub(crate) mod down;
pub(crate) mod gc;
pub(crate) mod list;
pub(crate) mod man;
pub(crate) mod node;
pub(crate) mod schema;
pub(crate) mod status;
pub(crate) mod up;
pub(crate) mod validate;
pub(crate) mod verify;

/// How a result is printed, for commands that have no other forms.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(crate) enum ResultFormat {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}
