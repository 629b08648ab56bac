//! `labctl gc`: removes what killed commands left.

use labctl_provider::{DownReport, LabState, LockError, NetnsProvider};

use crate::exit::Exit;
use crate::failure::{Failure, Outcome};
use crate::host::require_privileges;
use crate::run::{Interrupt, complete};
use crate::ui::Ui;

/// Remove what killed commands left behind; labs that are up stay.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// What has been removed so far, and whether something could not be.
#[derive(Default)]
struct Tally {
    removed: usize,
    failed: bool,
}

impl Args {
    pub(crate) fn exec(self, ui: &Ui) -> Outcome {
        require_privileges("labctl gc")?;
        // A signal does not stop the removal half-way: it takes milliseconds, and its end is what is wanted.
        let _interrupt = Interrupt::take_over()?;
        let provider = NetnsProvider::new();
        let mut tally = Tally::default();
        unfinished(&provider, ui, &mut tally)?;
        let report = provider.gc().map_err(|error| Failure::failed(Exit::SetupFailed, &error))?;
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
        if tally.removed == 0 && !tally.failed {
            ui.say("nothing to remove");
        }
        Ok(if tally.failed { Exit::SetupFailed } else { Exit::Ok })
    }
}

/// Labs whose network is complete and whose `up` was killed before they answered: for the provider they
/// look whole.
fn unfinished(provider: &NetnsProvider, ui: &Ui, tally: &mut Tally) -> Result<(), Failure> {
    let labs = provider.list().map_err(|error| Failure::failed(Exit::SetupFailed, &error))?;
    for entry in labs {
        let LabState::Ready(lab) = entry.state else { continue };
        if complete::is_marked(&lab) {
            continue;
        }
        match provider.lock(lab.name()) {
            // Between the list and the lock its `up` may have come to its end.
            Ok(_) if complete::is_marked(&lab) => {}
            Ok(lock) => match provider.down(lock, &mut |_| {}) {
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
        ui.say(&format!(
            "removed {}: {reason} ({} namespaces, {} processes)",
            report.lab,
            report.namespaces.len(),
            report.processes.len()
        ));
    }

    fn kept(&mut self, ui: &Ui, failure: &Failure) {
        self.failed = true;
        ui.failure(failure);
    }
}
