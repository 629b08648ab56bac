//! One file per subcommand: its arguments and what it does, in the order of its steps.

use clap::ValueEnum;
use labctl_model::ProviderKind;

pub(crate) mod capture;
pub(crate) mod completions;
pub(crate) mod doctor;
pub(crate) mod down;
pub(crate) mod export;
mod form;
pub(crate) mod gc;
pub(crate) mod judge;
pub(crate) mod list;
pub(crate) mod man;
pub(crate) mod node;
pub(crate) mod schema;
mod self_test;
pub(crate) mod status;
pub(crate) mod up;
pub(crate) mod validate;
pub(crate) mod verify;

/// Providers of this build.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Provider {
    /// Network namespaces on this machine.
    Netns,
    /// A kind cluster: Docker and kind, no root.
    Kind,
    /// A cluster that is there already.
    Cluster,
}

impl From<Provider> for ProviderKind {
    fn from(provider: Provider) -> Self {
        match provider {
            Provider::Netns => Self::Netns,
            Provider::Kind => Self::Kind,
            Provider::Cluster => Self::Cluster,
        }
    }
}

/// How a result is printed, for commands that have no other forms.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(crate) enum ResultFormat {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}
