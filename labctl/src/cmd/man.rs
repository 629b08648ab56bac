//! `labctl man`: manual pages, made from the same definitions as the parser.

use std::io;
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use clap::builder::Resettable;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use crate::cli::Cli;
use crate::exit::Exit;
use crate::failure::{Failure, Outcome};
use crate::ui::Ui;

/// Print the manual page, or write one page per command.
///
/// Read it with: labctl man | man -l -
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Write labctl.1, labctl-up.1 and so on into this directory instead.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl Args {
    pub(crate) fn exec(self, ui: &Ui) -> Outcome {
        match self.dir {
            Some(dir) => {
                write_pages(&dir).map_err(|error| {
                    Failure::because(
                        Exit::SetupFailed,
                        format_args!("write manual pages to {}", dir.display()),
                        &error,
                    )
                })?;
                ui.say(&format!("manual pages written to {}", dir.display()));
            }
            None => ui
                .raw(&root_page().map_err(|error| {
                    Failure::because(Exit::SetupFailed, "render the manual page", &error)
                })?)?,
        }
        Ok(Exit::Ok)
    }
}

/// labctl(1): clap_mangen's page with our exit codes as a section of their own instead of the lines
/// that `--help` ends with.
fn root_page() -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    Man::new(built_root().after_help(Resettable::Reset)).render(&mut page)?;
    page.extend(exit_section().to_roff().into_bytes());
    Ok(page)
}

/// The command tree without hidden commands: they are not for people.
fn built_root() -> clap::Command {
    let mut root = Cli::command().disable_help_subcommand(true);
    root.build();
    root
}

fn exit_section() -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["EXIT STATUS"]);
    for (exit, meaning) in Exit::MEANINGS {
        roff.control("TP", []);
        roff.text([bold((*exit as u8).to_string())]);
        roff.text([roman(*meaning)]);
    }
    roff
}

fn write_pages(dir: &Path) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    std::fs::write(dir.join("labctl.1"), root_page()?)?;
    for command in built_root().get_subcommands().filter(|c| !c.is_hide_set()) {
        let name = format!("labctl-{}", command.get_name());
        let mut page = Vec::new();
        Man::new(command.clone()).title(name.to_uppercase()).render(&mut page)?;
        std::fs::write(dir.join(format!("{name}.1")), page)?;
    }
    Ok(())
}
