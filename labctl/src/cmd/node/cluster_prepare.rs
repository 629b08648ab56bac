//! `labctl node cluster-prepare`: what a node needs before its agent can do without privileges.

use std::path::PathBuf;

use crate::exit::Exit;
use crate::failure::{Failure, Outcome};
use crate::ui::Ui;

/// Mount a bpffs if there is none, switch forwarding on, make strict reverse path filters loose.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where the bpffs belongs.
    #[arg(long, default_value = "/sys/fs/bpf", value_name = "DIR")]
    bpffs: PathBuf,
}

impl Args {
    pub(crate) fn exec(self, _ui: &Ui) -> Outcome {
        labctl_agent::prepare(&self.bpffs)
            .map_err(|error| Failure::because(Exit::SetupFailed, "prepare the node", &error))?;
        Ok(Exit::Ok)
    }
}
