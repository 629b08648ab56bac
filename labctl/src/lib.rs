//! The command line of labctl.
//!
//! Owns: arguments, the order of steps of every command, signals, everything that is printed, and exit
//! codes. Does not own: any knowledge of packets, namespaces or eBPF; those live in the crates that this
//! one joins: model -> provider -> node roles -> wire -> verdict. Last stage of the flow.

use std::ffi::OsString;

use clap::Parser;

mod cli;
mod cmd;
mod exit;
mod failure;
mod host;
mod pick;
mod run;
mod target;
mod ui;

pub use exit::Exit;

use cli::Cli;
use ui::Ui;

/// Parses the arguments, runs the command, prints its failure if there is one.
pub fn main(args: impl IntoIterator<Item = OsString>) -> Exit {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(refusal) => return ui::show_usage(&refusal),
    };
    let ui = Ui::new(cli.color);
    match cli.command.exec(&ui) {
        Ok(exit) => exit,
        Err(failure) => {
            ui.failure(&failure);
            failure.exit()
        }
    }
}
