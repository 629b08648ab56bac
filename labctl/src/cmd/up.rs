//! `labctl up`: from a lab file to a lab that has answered its first request.

use clap::ValueEnum;
use labctl_model::{Plan, ProviderKind};
use labctl_provider::NetnsProvider;

use crate::exit::Exit;
use crate::failure::{Failure, Outcome};
use crate::host::require_privileges;
use crate::pick::LabFile;
use crate::run::{BringUp, Interrupt, Up};
use crate::ui::{Ui, milliseconds};

/// Bring a lab up; ends when the service has answered a first request.
///
/// The same lab twice is no work at all. A failed or interrupted up removes what it made.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A lab: a name (./labs/NAME.yaml, else built in: dsr, snat, hybrid, local) or the path of a lab file.
    #[arg(default_value = "dsr", value_name = "LAB")]
    lab: String,
    /// Where to run it, whatever the lab file says.
    #[arg(long, value_enum, value_name = "PROVIDER")]
    provider: Option<Provider>,
    /// Name of the lab, whatever the lab file says: brings a second copy up beside the first.
    #[arg(long, value_parser = lab_name)]
    name: Option<String>,
    /// Leave a lab that failed as it is, to look into.
    #[arg(long)]
    keep: bool,
    /// Print how long each step took.
    #[arg(long)]
    timings: bool,
}

/// Providers of this build.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Provider {
    /// Network namespaces on this machine.
    Netns,
}

impl Args {
    pub(crate) fn exec(self, ui: &Ui) -> Outcome {
        // First of all: from here on a signal means "undo", however early it comes.
        let interrupt = Interrupt::take_over()?;
        let plan = self.plan()?;
        require_privileges(&format!("labctl up {}", self.lab))?;
        let progress = ui.progress();
        let provider = NetnsProvider::new();
        let up = BringUp {
            provider: &provider,
            plan: &plan,
            keep: self.keep,
            interrupt: &interrupt,
            progress: &progress,
            ui,
        };
        let time = |text: &str| format!("{text} {}", milliseconds(progress.elapsed()));
        match up.run()? {
            Up::Already(lab) => {
                ui.say(&time(&format!("{} is up, whole and answers; nothing to do,", lab.name())))
            }
            Up::Made(lab) => {
                ui.say(&time(&format!("{} is up in", lab.name())));
                ui.say("next: labctl verify   labctl status   labctl capture --all");
            }
        }
        if self.timings {
            ui.say(&progress.timings());
        }
        Ok(Exit::Ok)
    }

    /// The lab file with what the command line overrides.
    fn plan(&self) -> Result<Plan, Failure> {
        let file = LabFile::find(&self.lab)?;
        let mut plan = file.plan().map_err(|error| Failure::failed(Exit::Usage, &error))?;
        if let Some(name) = &self.name {
            plan.lab.clone_from(name);
        }
        if let Some(Provider::Netns) = self.provider {
            plan.provider = ProviderKind::Netns;
        }
        if plan.provider != ProviderKind::Netns {
            return Err(Failure::new(
                Exit::Usage,
                format!(
                    "{} asks for provider {}, which this build does not have",
                    file.origin, plan.provider
                ),
            )
            .hint(format!("labctl up {} --provider netns", self.lab)));
        }
        Ok(plan)
    }
}

/// Lab names are part of namespace names: the same rule as in lab files.
fn lab_name(text: &str) -> Result<String, String> {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if (1..=20).contains(&text.len())
        && text.bytes().all(fits)
        && !text.starts_with('-')
        && !text.ends_with('-')
    {
        Ok(text.to_owned())
    } else {
        Err("use 1 to 20 of a-z, 0-9 and -, and no - at either end".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lab_names_follow_the_rule_of_lab_files() {
        for good in ["dsr", "dsr-2", "a", "12345678901234567890"] {
            assert!(lab_name(good).is_ok(), "{good}");
        }
        for bad in ["", "Dsr", "dsr_2", "-dsr", "dsr-", "123456789012345678901", "a/b"] {
            assert!(lab_name(bad).is_err(), "{bad}");
        }
    }
}
