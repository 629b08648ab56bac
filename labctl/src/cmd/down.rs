//! `labctl down`: takes a lab away, whole or half-made.

use labctl_model::ProviderKind;
use labctl_provider::{DownError, DownReport, Labs, ProvidedLab, StepEvent};

use crate::exit::Exit;
use crate::failure::{Failure, Outcome};
use crate::pick::{lab_up, require_for};
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
        // A signal does not stop the removal half-way: it does not take long, and its end is what is wanted.
        let _interrupt = Interrupt::take_over()?;
        let labs = Labs::new();
        let known = labs.list().map_err(|error| Failure::failed(Exit::SetupFailed, &error))?;
        if self.all {
            return every(&labs, &known, ui);
        }
        let names: Vec<String> = known.iter().map(|lab| lab.name.clone()).collect();
        let name = match &self.name {
            Some(name) => name.as_str(),
            None => lab_up(None, &names, "down")?,
        };
        match known.iter().find(|lab| lab.name == name) {
            Some(lab) => one(&labs, lab.provider, name, ui)?,
            None => nameless(&labs, name, &names, ui)?,
        }
        Ok(Exit::Ok)
    }
}

/// Takes every lab down; one that fails does not keep the others up.
fn every(labs: &Labs, known: &[ProvidedLab], ui: &Ui) -> Outcome {
    if known.is_empty() {
        ui.say("no lab is up");
    }
    let mut failed = None;
    for lab in known {
        if let Err(failure) = one(labs, lab.provider, &lab.name, ui) {
            ui.failure(&failure);
            failed = Some(failure.exit());
        }
    }
    Ok(failed.unwrap_or(Exit::Ok))
}

/// A lab whose folder is lost may still have namespaces or containers: a name that was typed is always tried where this
/// user may look.
fn nameless(labs: &Labs, name: &str, names: &[String], ui: &Ui) -> Result<(), Failure> {
    for provider in [ProviderKind::Netns, ProviderKind::Kind] {
        if require_for(provider, "labctl down").is_err() {
            continue;
        }
        match one(labs, provider, name, ui) {
            // Without Docker there is nothing of the lab in it.
            Err(failure) if provider == ProviderKind::Kind || failure.exit() == Exit::LabNotUp => {}
            ended => return ended,
        }
    }
    lab_up(Some(name), names, "down").map(drop)
}

fn one(labs: &Labs, provider: ProviderKind, name: &str, ui: &Ui) -> Result<(), Failure> {
    require_for(provider, &format!("labctl down {name}"))?;
    let lock = labs.lock(provider, name).map_err(|error| lock_failure(&error))?;
    let progress = ui.progress();
    let step = (provider != ProviderKind::Netns).then(|| progress.begin("down", "removing"));
    let mut on_step = |event: StepEvent| {
        if let (Some(step), StepEvent::Began(part)) = (&step, event) {
            step.doing(&part.to_string());
        }
    };
    let report = labs.down(provider, lock, &mut on_step).map_err(|error| match error {
        DownError::NotUp { .. } => Failure::new(Exit::LabNotUp, format!("lab \"{name}\" is not up")),
        error => Failure::failed(Exit::SetupFailed, &error),
    });
    if let Some(step) = step {
        step.vanish();
    }
    tell(&report?, ui);
    Ok(())
}

fn tell(report: &DownReport, ui: &Ui) {
    ui.say(&format!("{} is down: {} removed in {}", report.lab, removed(report), milliseconds(report.took)));
    report.notes.iter().for_each(|note| ui.warn(note));
    for process in &report.spared {
        ui.warn(&format!(
            "process {} ({}) still runs in a namespace of the lab",
            process.pid, process.command
        ));
    }
}

/// "6 namespaces, 2 processes", or "4 containers, 1 network": what there was to remove.
pub(crate) fn removed(report: &DownReport) -> String {
    if report.removed.is_empty() {
        return format!("{} namespaces, {} processes", report.namespaces.len(), report.processes.len());
    }
    let mut kinds: Vec<(&str, usize)> = Vec::new();
    for kind in report.removed.iter().filter_map(|thing| thing.split(' ').next()) {
        match kinds.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, count)) => *count += 1,
            None => kinds.push((kind, 1)),
        }
    }
    let words = kinds.iter().map(|(kind, count)| match count {
        1 => format!("1 {kind}"),
        count => format!("{count} {kind}s"),
    });
    words.collect::<Vec<_>>().join(", ")
}
