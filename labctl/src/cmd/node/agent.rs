//! `labctl node agent`: makes this node's datapath what the state on stdin says, and ends. The datapath
//! lives on in its pins.

use std::path::PathBuf;

use datapath_agent::NodeState;

use crate::exit::Exit;
use crate::failure::{Failure, Outcome};
use crate::ui::Ui;

/// Apply the node state that comes as JSON on stdin, print what is attached as one JSON line.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder on a bpffs that holds this node's pins.
    #[arg(long, value_name = "DIR")]
    pin_dir: PathBuf,
}

impl Args {
    pub(crate) fn exec(self, ui: &Ui) -> Outcome {
        let state: NodeState = super::options_from_stdin("the node state")?;
        let applied = datapath_agent::apply(&state, &self.pin_dir).map_err(|error| {
            Failure::because(Exit::SetupFailed, format_args!("set up the datapath of {}", state.node), &error)
        })?;
        super::line(ui, &applied)
            .map_err(|error| Failure::because(Exit::SetupFailed, "say that the datapath is ready", &error))?;
        Ok(Exit::Ok)
    }
}
