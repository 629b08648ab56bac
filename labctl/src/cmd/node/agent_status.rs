//! `labctl node agent-status`: what the datapath that is pinned on this node is and has done.

use std::path::PathBuf;

use crate::exit::Exit;
use crate::failure::{Failure, Outcome};
use crate::ui::Ui;

/// Print programs, map fill, counters and drops as one JSON line.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder on a bpffs that holds this node's pins.
    #[arg(long, value_name = "DIR")]
    pin_dir: PathBuf,
}

impl Args {
    pub(crate) fn exec(self, ui: &Ui) -> Outcome {
        let status = datapath_agent::status(&self.pin_dir)
            .map_err(|error| Failure::failed(Exit::SetupFailed, &error))?;
        super::line(ui, &status)
            .map_err(|error| Failure::because(Exit::SetupFailed, "say what the datapath is", &error))?;
        Ok(Exit::Ok)
    }
}
