//! `labctl down`: takes a lab away, whole or half-made.

use labctl_provider::{DownError, DownReport, LabEntry, NetnsProvider};

use crate::exit::Exit;
use crate::failure::{Failure, Outcome};
use crate::host::require_privileges;
use crate::pick::lab_up;
use crate::run::{Interrupt, lock_failure};
use crate::ui::{Ui, milliseconds};

/// Take a lab down and remove everything of it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The lab; may be left out when one is up.
    name: Option<String>,
    /// Every lab.
    #[arg(long, conflicts_with = "name")]
    all: bool,
}

impl Args {
    pub(crate) fn exec(self, ui: &Ui) -> Outcome {
        require_privileges("labctl down")?;
        // A signal does not stop the removal half-way: it takes milliseconds, and its end is what is wanted.
        let _interrupt = Interrupt::take_over()?;
        let provider = NetnsProvider::new();
        let labs = provider.list().map_err(|error| Failure::failed(Exit::SetupFailed, &error))?;
        let names: Vec<String> = labs.into_iter().map(|entry: LabEntry| entry.name).collect();
        if self.all {
            return every(&provider, &names, ui);
        }
        // A lab whose folder is lost may still have namespaces: a name that was typed is always tried.
        let name = match &self.name {
            Some(name) => name.as_str(),
            None => lab_up(None, &names, "down")?,
        };
        let report = one(&provider, name).map_err(|failure| match failure.exit() {
            Exit::LabNotUp => lab_up(Some(name), &names, "down").err().unwrap_or(failure),
            _ => failure,
        })?;
        tell(&report, ui);
        Ok(Exit::Ok)
    }
}

/// Takes every lab down; one that fails does not keep the others up.
fn every(provider: &NetnsProvider, names: &[String], ui: &Ui) -> Outcome {
    if names.is_empty() {
        ui.say("no lab is up");
    }
    let mut failed = None;
    for name in names {
        match one(provider, name) {
            Ok(report) => tell(&report, ui),
            Err(failure) => {
                ui.failure(&failure);
                failed = Some(failure.exit());
            }
        }
    }
    Ok(failed.unwrap_or(Exit::Ok))
}

fn one(provider: &NetnsProvider, name: &str) -> Result<DownReport, Failure> {
    let lock = provider.lock(name).map_err(|error| lock_failure(&error))?;
    provider.down(lock, &mut |_| {}).map_err(|error| match error {
        DownError::NotUp { .. } => Failure::new(Exit::LabNotUp, format!("lab \"{name}\" is not up")),
        error => Failure::failed(Exit::SetupFailed, &error),
    })
}

fn tell(report: &DownReport, ui: &Ui) {
    ui.say(&format!(
        "{} is down: {} namespaces, {} processes removed in {}",
        report.lab,
        report.namespaces.len(),
        report.processes.len(),
        milliseconds(report.took)
    ));
    for process in &report.spared {
        ui.warn(&format!(
            "process {} ({}) still runs in a namespace of the lab",
            process.pid, process.command
        ));
    }
}
