//! `labctl node cluster-ready`: the readiness probe of the node agent.

use crate::exit::Exit;
use crate::failure::Outcome;
use crate::ui::Ui;

/// Say by the exit code whether this container's agent has set up the node.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

impl Args {
    pub(crate) fn exec(self, ui: &Ui) -> Outcome {
        if labctl_agent::is_ready() {
            return Ok(Exit::Ok);
        }
        ui.say("the agent has not set up the node yet");
        Ok(Exit::LabNotUp)
    }
}
