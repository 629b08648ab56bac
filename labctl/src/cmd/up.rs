//! `labctl up`: from a lab file to a lab that has answered its first request.

use std::time::Duration;

use labctl_model::{Plan, ProviderKind};
use labctl_provider::{Lab, Labs};

use crate::cmd::Provider;
use crate::exit::Exit;
use crate::failure::{Failure, Outcome};
use crate::pick::{LabFile, require_for};
use crate::run::{BringUp, Interrupt, Up};
use crate::target::TargetArgs;
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
    /// Node image of the kind provider, whatever the lab file says; without either kind's own default.
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// Name of the lab, whatever the lab file says: brings a second copy up beside the first.
    #[arg(long, value_parser = lab_name)]
    name: Option<String>,
    /// Leave a lab that failed as it is, to look into.
    #[arg(long)]
    keep: bool,
    /// Print how long each step took.
    #[arg(long)]
    timings: bool,
    #[command(flatten)]
    target: TargetArgs,
}

impl Args {
    pub(crate) fn exec(self, ui: &Ui) -> Outcome {
        let plan = self.plan()?;
        // Before the signals are ours: one that comes at the question is a no.
        let cluster = self.target.agreed(&plan, ui)?;
        // Before anything else: from here on a signal means "undo", however early it comes.
        let interrupt = Interrupt::take_over()?;
        require_for(plan.provider, &format!("labctl up {}", self.lab))?;
        let progress = ui.progress();
        let mut labs = Labs::new();
        labs.kind = labs.kind.keep_failed(self.keep);
        labs.cluster = labs.cluster.keep_failed(self.keep);
        let up = BringUp {
            labs: &labs,
            plan: &plan,
            cluster: cluster.as_ref(),
            keep: self.keep,
            interrupt: &interrupt,
            progress: &progress,
            ui,
        };
        let time = |text: &str| format!("{text} {}", milliseconds(progress.elapsed()));
        match up.run()? {
            Up::Already(lab) => {
                ui.say(&time(&format!("{} is up, whole and answers; nothing to do,", lab.name())));
                if self.timings {
                    ui.say(&progress.timings());
                }
            }
            Up::Made { lab, foreign } => {
                if self.timings || !foreign.is_zero() {
                    ui.say(&progress.timings());
                }
                let shares = shares(progress.elapsed(), foreign);
                ui.say(&format!("{}{shares}", time(&format!("{} is up in", lab.name()))));
                ui.say(&next(&lab));
            }
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
        if let Some(provider) = self.provider {
            plan.provider = provider.into();
        }
        if let Some(image) = &self.image {
            plan.image = Some(image.clone());
        }
        self.target.apply(&mut plan)?;
        Ok(plan)
    }
}

/// ": kind create cluster 29.1 s, labctl's share 8.2 s"; nothing where labctl did everything itself.
fn shares(total: Duration, foreign: Duration) -> String {
    if foreign.is_zero() {
        return String::new();
    }
    let own = total.saturating_sub(foreign);
    format!(": kind create cluster {}, labctl's share {}", milliseconds(foreign), milliseconds(own))
}

/// What to type next.
fn next(lab: &Lab) -> String {
    let commands = "next: labctl verify   labctl status   labctl capture --all";
    match lab.asked().provider {
        ProviderKind::Kind => {
            let kubeconfig = lab.dir().join("kubeconfig");
            format!("{commands}\n      export KUBECONFIG={}", kubeconfig.display())
        }
        ProviderKind::Netns | ProviderKind::Cluster => commands.to_owned(),
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
