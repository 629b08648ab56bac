//! The root of the command line: global options and the list of commands.
//!
//! Each command's own arguments live beside its code in [`crate::cmd`]. Doc comments here are the help
//! text and the manual.

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Parser, Subcommand, ValueEnum};

use crate::cmd;
use crate::failure::Outcome;
use crate::ui::Ui;

/// Quiet colours: bold headings, nothing that a light terminal cannot show.
const STYLES: Styles =
    Styles::styled().header(AnsiColor::Green.on_default().bold()).literal(AnsiColor::Cyan.on_default());

/// What `--help` and the manual end with.
const AFTER_HELP: &str = "\
Exit codes: 0 done or passed, 1 a check failed, 2 usage or lab file, 3 host unfit (see labctl doctor),
4 lab not up, 5 set-up failed or timed out, 6 inconclusive, 130 interrupted and cleaned up.

Start with: labctl doctor, then labctl up dsr && labctl verify";

/// Stands up multi-node load-balancing labs and proves from packets how they behave.
///
/// labctl builds a small cluster of network namespaces, loads an eBPF NodePort load balancer into it,
/// sends real requests, captures on every host and judges the path of every packet: does the backend
/// see the client's address, do replies go straight back, in one hop?
#[derive(Debug, Parser)]
#[command(name = "labctl", version, styles = STYLES, after_help = AFTER_HELP, max_term_width = 100)]
#[command(arg_required_else_help = true, propagate_version = true)]
pub(crate) struct Cli {
    /// When to use colours; NO_COLOR switches them off too.
    #[arg(long, global = true, value_enum, default_value_t, value_name = "WHEN")]
    pub(crate) color: ColorChoice,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// When to use colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ColorChoice {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Every command.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Up(cmd::up::Args),
    Down(cmd::down::Args),
    List(cmd::list::Args),
    Status(cmd::status::Args),
    Verify(cmd::verify::Args),
    Judge(cmd::judge::Args),
    Export(cmd::export::Args),
    Capture(cmd::capture::Args),
    Doctor(cmd::doctor::Args),
    Validate(cmd::validate::Args),
    Schema(cmd::schema::Args),
    Gc(cmd::gc::Args),
    Completions(cmd::completions::Args),
    Man(cmd::man::Args),
    #[command(hide = true)]
    Node(cmd::node::Args),
}

impl Command {
    /// Runs the command.
    pub(crate) fn exec(self, ui: &Ui) -> Outcome {
        match self {
            Self::Up(args) => args.exec(ui),
            Self::Down(args) => args.exec(ui),
            Self::List(args) => args.exec(ui),
            Self::Status(args) => args.exec(ui),
            Self::Verify(args) => args.exec(ui),
            Self::Judge(args) => args.exec(ui),
            Self::Export(args) => args.exec(ui),
            Self::Capture(args) => args.exec(ui),
            Self::Doctor(args) => args.exec(ui),
            Self::Validate(args) => args.exec(ui),
            Self::Schema(args) => args.exec(ui),
            Self::Gc(args) => args.exec(ui),
            Self::Completions(args) => args.exec(ui),
            Self::Man(args) => args.exec(ui),
            Self::Node(args) => args.exec(ui),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
