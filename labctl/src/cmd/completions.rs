//! `labctl completions`: the shell's completion script, made from the same definitions as the parser.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::Cli;
use crate::exit::Exit;
use crate::failure::Outcome;
use crate::ui::Ui;

/// Print a completion script for your shell
///
/// bash: labctl completions bash > /etc/bash_completion.d/labctl
/// zsh:  labctl completions zsh > "${fpath[1]}/_labctl"
/// fish: labctl completions fish > ~/.config/fish/completions/labctl.fish
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// The shell to write for.
    #[arg(value_enum)]
    shell: Shell,
}

impl Args {
    pub(crate) fn exec(self, ui: &Ui) -> Outcome {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "labctl", &mut script);
        ui.raw(&script)?;
        Ok(Exit::Ok)
    }
}
