//! `labctl node cluster-clean`: what `cluster-agent` made on a node goes.

use std::path::PathBuf;

use crate::exit::Exit;
use crate::failure::{Failure, Outcome};
use crate::ui::Ui;

/// Detach the datapath, remove its pins, the routes and the CNI configuration; the agent must have ended.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder on a bpffs that holds this node's pins.
    #[arg(long, value_name = "DIR")]
    pin_dir: PathBuf,
}

impl Args {
    pub(crate) fn exec(self, _ui: &Ui) -> Outcome {
        labctl_agent::clean(&self.pin_dir)
            .map_err(|error| Failure::because(Exit::SetupFailed, "clean the node", &error))?;
        Ok(Exit::Ok)
    }
}
