//! `labctl node observe`: what this network namespace is made of, as one JSON line.

use crate::exit::Exit;
use crate::failure::{Failure, Outcome};
use crate::run::observe;
use crate::ui::Ui;

/// Print interfaces, neighbours and attached programs of this namespace as one JSON line.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

impl Args {
    pub(crate) fn exec(self, ui: &Ui) -> Outcome {
        let facts = observe::here()
            .map_err(|error| Failure::because(Exit::SetupFailed, "observe this host", &error))?;
        super::line(ui, &facts)
            .map_err(|error| Failure::because(Exit::SetupFailed, "say what this host is", &error))?;
        Ok(Exit::Ok)
    }
}
