//! How a verdict is printed, for every command that has one.
//!
//! Owns: the choice of the form, the file that it goes to, and the exit code. Does not own: the forms
//! ([`labctl_verdict::view`]).

use std::path::PathBuf;

use clap::ValueEnum;
use labctl_verdict::{Report, Verdict, view};

use crate::exit::Exit;
use crate::failure::Failure;
use crate::ui::Ui;

/// Where a verdict goes, and in which form.
#[derive(Debug, clap::Args)]
pub(super) struct Form {
    /// How to print the verdict.
    #[arg(long, value_enum, default_value_t)]
    pub(super) format: Format,
    /// Write the verdict into this file instead of to stdout.
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Forms of the verdict.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(super) enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs: labctl.verify/v1.
    Json,
    /// For CI systems that read JUnit XML.
    Junit,
    /// Annotations of a GitHub workflow, and its summary page.
    Github,
}

impl Form {
    /// The verdict as text.
    pub(super) fn render(&self, verdict: &Report, ui: &Ui) -> String {
        match self.format {
            Format::Text => view::text::render(verdict, self.output.is_none() && ui.paint().is_on()),
            Format::Json => view::json::render(verdict),
            Format::Junit => view::junit::render(verdict),
            Format::Github => view::github::commands(verdict),
        }
    }

    /// Prints it, or writes it.
    ///
    /// # Errors
    /// When the destination refuses the bytes.
    pub(super) fn emit(&self, ui: &Ui, text: &str) -> Result<(), Failure> {
        match &self.output {
            _ if text.is_empty() => Ok(()),
            None => ui.text(text),
            Some(path) => std::fs::write(path, text).map_err(|error| {
                let doing = format!("write the verdict to {}", path.display());
                Failure::because(Exit::SetupFailed, doing, &error)
            }),
        }
    }
}

/// What a verdict makes of the command.
pub(super) const fn exit(verdict: Verdict) -> Exit {
    match verdict {
        Verdict::Pass => Exit::Ok,
        Verdict::Fail => Exit::CheckFailed,
        Verdict::Inconclusive => Exit::Inconclusive,
    }
}
