//! `labctl node canary`: this host's ends of the canaries' ways.

use crate::exit::Exit;
use crate::failure::{Failure, Outcome};
use crate::ui::Ui;

/// Send and receive canaries: the ways come as the first JSON line on stdin, each further line is a round.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

impl Args {
    pub(crate) fn exec(self, ui: &Ui) -> Outcome {
        labctl_node::canary::run(std::io::stdin().lock(), ui.stdout())
            .map_err(|error| Failure::because(Exit::SetupFailed, "send canaries", &error))?;
        Ok(Exit::Ok)
    }
}
