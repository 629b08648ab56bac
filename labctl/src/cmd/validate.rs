//! `labctl validate`: every mistake of every file, with its line.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use labctl_model::{Diagnostic, LabFileError, Plan, builtin_names};
use serde::Serialize;

use crate::exit::Exit;
use crate::failure::{Failure, Outcome};
use crate::pick::{LabFile, project_files};
use crate::ui::{Paint, Tone, Ui, github};

/// Check lab files; exits with 2 if one of them has a mistake.
///
/// Without files: every file in ./labs, or the built-in labs where there is no such folder.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Lab files; - is stdin.
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// How to print the mistakes.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
    /// As annotations of a GitHub workflow.
    Github,
}

/// The JSON of `labctl validate`.
#[derive(Serialize)]
struct Report<'a> {
    schema: &'static str,
    valid: bool,
    files: Vec<FileReport<'a>>,
}

#[derive(Serialize)]
struct FileReport<'a> {
    file: &'a str,
    valid: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    lab: Option<&'a str>,
    errors: &'a [Diagnostic],
}

/// One file with what came out.
struct Checked {
    origin: String,
    result: Result<Plan, LabFileError>,
}

impl Args {
    pub(crate) fn exec(self, ui: &Ui) -> Outcome {
        let checked: Vec<Checked> = self
            .lab_files()?
            .into_iter()
            .map(|file| Checked { result: file.plan(), origin: file.origin })
            .collect();
        let valid = checked.iter().all(|file| file.result.is_ok());
        match self.format {
            Format::Text => ui.text(&text(&checked, ui.paint()))?,
            Format::Json => ui.json(&report(&checked, valid))?,
            Format::Github => ui.text(&annotations(&checked))?,
        }
        Ok(if valid { Exit::Ok } else { Exit::Usage })
    }

    fn lab_files(&self) -> Result<Vec<LabFile>, Failure> {
        let read = |paths: &[PathBuf]| paths.iter().map(|path| LabFile::read(Path::new(path))).collect();
        if !self.files.is_empty() {
            return read(&self.files);
        }
        match project_files() {
            files if files.is_empty() => Ok(builtin_names().filter_map(LabFile::built_in).collect()),
            files => read(&files),
        }
    }
}

fn text(checked: &[Checked], paint: Paint) -> String {
    let mut text = String::new();
    for file in checked {
        match &file.result {
            Ok(plan) => {
                let (nodes, backends) = (plan.nodes.len(), plan.backends().count());
                text.push_str(&format!(
                    "{} {}: lab {}, mode {}, {nodes} nodes, {backends} backends\n",
                    paint.tone(Tone::Good, "ok"),
                    file.origin,
                    plan.lab,
                    plan.mode,
                ));
            }
            Err(error) => text.push_str(&format!("{}: {error}\n\n", paint.tone(Tone::Bad, "error"))),
        }
    }
    text
}

fn report(checked: &[Checked], valid: bool) -> Report<'_> {
    let files = checked
        .iter()
        .map(|file| FileReport {
            file: &file.origin,
            valid: file.result.is_ok(),
            lab: file.result.as_ref().ok().map(|plan| plan.lab.as_str()),
            errors: file.result.as_ref().err().map_or(&[], LabFileError::diagnostics),
        })
        .collect();
    Report { schema: "labctl.validate/v1", valid, files }
}

fn annotations(checked: &[Checked]) -> String {
    let mut text = String::new();
    for (file, error) in checked.iter().filter_map(|f| Some((&f.origin, f.result.as_ref().err()?))) {
        for mistake in error.diagnostics() {
            let place = &mistake.place;
            let message = match &mistake.help {
                Some(help) => format!("{}; {help}", mistake.message),
                None => mistake.message.clone(),
            };
            text.push_str(&github::error(file, place.line, place.column, &message));
        }
    }
    text
}
