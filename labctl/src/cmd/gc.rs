//! `labctl gc`: removes what killed commands left.

use std::path::Path;

use labctl_model::ProviderKind;
use labctl_provider::{DownReport, LabState, Labs, LockError, PROVIDERS};

use crate::cmd::down::removed;
use crate::exit::Exit;
use crate::failure::{Failure, Outcome};
use crate::host::require_privileges;
use crate::run::kept_runs::{self, Collected, Retention};
use crate::run::{Interrupt, complete};
use crate::ui::Ui;

/// Remove what killed commands left behind; labs that are up stay.
///
/// Of the runs under the current directory (.labctl/LAB/run-NNNN) those go whose verify was killed, and with --keep-runs or
/// --keep-size the oldest.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Keep the last N runs of each lab.
    #[arg(long, value_name = "N")]
    keep_runs: Option<usize>,
    /// Keep so much of all runs together, and in any case the last of each lab.
    #[arg(long, value_name = "MIB")]
    keep_size: Option<u32>,
}

/// What has been removed so far, and whether something could not be.
#[derive(Default)]
struct Tally {
    removed: usize,
    failed: Option<Exit>,
}

impl Args {
    pub(crate) fn exec(self, ui: &Ui) -> Outcome {
        // A signal does not stop the removal half-way: it does not take long, and its end is what is wanted.
        let _interrupt = Interrupt::take_over()?;
        let labs = Labs::new();
        let mut tally = Tally::default();
        self.runs(ui, &mut tally);
        for provider in PROVIDERS {
            match may_collect(&labs, provider) {
                Ok(true) => collect(&labs, provider, ui, &mut tally)?,
                Ok(false) => {}
                Err(failure) => tally.kept(ui, &failure),
            }
        }
        if tally.removed == 0 && tally.failed.is_none() {
            ui.say("nothing to remove");
        }
        Ok(tally.failed.unwrap_or(Exit::Ok))
    }

    /// Evidence that nobody will finish, or that is more than was asked for.
    fn runs(&self, ui: &Ui, tally: &mut Tally) {
        let bytes = self.keep_size.map(|mib| u64::from(mib) << 20);
        for run in kept_runs::collect(Path::new("."), Retention { runs: self.keep_runs, bytes }) {
            match run {
                Collected::Removed { path, why } => {
                    tally.removed += 1;
                    ui.say(&format!("removed {}: {why}", path.display()));
                }
                Collected::Kept { path, error } => {
                    let doing = format!("remove {}", path.display());
                    tally.kept(ui, &Failure::because(Exit::SetupFailed, doing, &error));
                }
            }
        }
    }
}

/// Whether to look at a provider: not at namespaces without root where there are none. Those that use Docker know
/// themselves when nobody needs it.
fn may_collect(labs: &Labs, provider: ProviderKind) -> Result<bool, Failure> {
    match provider {
        ProviderKind::Netns if labs.netns.has_traces() => require_privileges("labctl gc").map(|()| true),
        ProviderKind::Netns => Ok(require_privileges("labctl gc").is_ok()),
        ProviderKind::Kind | ProviderKind::Cluster => Ok(true),
    }
}

fn collect(labs: &Labs, provider: ProviderKind, ui: &Ui, tally: &mut Tally) -> Result<(), Failure> {
    unfinished(labs, provider, ui, tally)?;
    let report = match labs.gc(provider) {
        Ok(report) => report,
        Err(error) => {
            let failure = Failure::failed(Exit::SetupFailed, &error);
            tally.kept(ui, &failure);
            return Ok(());
        }
    };
    for sweep in report.swept {
        match sweep.outcome {
            Ok(down) => tally.removed(ui, &down, &sweep.reason),
            Err(error) => tally.kept(ui, &Failure::failed(Exit::SetupFailed, &error)),
        }
    }
    for (lab, pid) in report.busy {
        let who = pid.map_or_else(|| "a command".to_owned(), |pid| format!("process {pid}"));
        ui.say(&format!("{lab} is left alone: {who} works on it"));
    }
    Ok(())
}

/// Labs that are complete for the provider and whose `up` was killed before they answered.
fn unfinished(labs: &Labs, provider: ProviderKind, ui: &Ui, tally: &mut Tally) -> Result<(), Failure> {
    let known = labs.list().map_err(|error| Failure::failed(Exit::SetupFailed, &error))?;
    for entry in known.into_iter().filter(|entry| entry.provider == provider) {
        let LabState::Ready(lab) = entry.state else { continue };
        if complete::is_marked(&lab) {
            continue;
        }
        match labs.lock(provider, lab.name()) {
            // Between the list and the lock its `up` may have come to its end.
            Ok(_) if complete::is_marked(&lab) => {}
            Ok(lock) => match labs.down(provider, lock, &mut |_| {}) {
                Ok(report) => tally.removed(ui, &report, "its up was killed"),
                Err(error) => tally.kept(ui, &Failure::failed(Exit::SetupFailed, &error)),
            },
            // The provider's own sweep reports it.
            Err(LockError::Busy { .. }) => {}
            Err(error) => tally.kept(ui, &Failure::failed(Exit::SetupFailed, &error)),
        }
    }
    Ok(())
}

impl Tally {
    fn removed(&mut self, ui: &Ui, report: &DownReport, reason: &str) {
        self.removed += 1;
        ui.say(&format!("removed {}: {reason} ({})", report.lab, removed(report)));
    }

    fn kept(&mut self, ui: &Ui, failure: &Failure) {
        self.failed.get_or_insert(failure.exit());
        ui.failure(failure);
    }
}
