//! `labctl schema`: the JSON schema of lab files.

use crate::exit::Exit;
use crate::failure::Outcome;
use crate::ui::Ui;

/// Print the JSON schema of lab files, for editors.
///
/// With the YAML language server: labctl schema > lab.schema.json, and as the lab file's first line
/// "# yaml-language-server: $schema=lab.schema.json".
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

impl Args {
    pub(crate) fn exec(self, ui: &Ui) -> Outcome {
        ui.text(&labctl_model::schema())?;
        Ok(Exit::Ok)
    }
}
