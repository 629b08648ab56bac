//! `labctl node inspect`: the interfaces of a node and of every pod on it, as JSON.

use clap::ValueEnum;
use labctl_provider::{Offloads, inspect};

use crate::exit::Exit;
use crate::failure::{Failure, Outcome};
use crate::ui::Ui;

/// Print the interfaces of this namespace and of the pods below /run/netns as one JSON document.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to do about checksum and segmentation offloads of virtual links.
    #[arg(long, value_enum, default_value_t)]
    offloads: OffloadsArg,
}

/// What to do about offloads.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum OffloadsArg {
    /// Leave them as they are.
    #[default]
    Keep,
    /// Switch them off, so that a capture sees what a wire would carry.
    Off,
}

impl Args {
    pub(crate) fn exec(self, ui: &Ui) -> Outcome {
        let offloads = match self.offloads {
            OffloadsArg::Keep => Offloads::Keep,
            OffloadsArg::Off => Offloads::Off,
        };
        let seen = inspect(offloads)
            .map_err(|error| Failure::because(Exit::SetupFailed, "inspect this node", &error))?;
        ui.json(&seen)?;
        Ok(Exit::Ok)
    }
}
