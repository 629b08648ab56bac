//! `labctl verify`: proves from packets how a lab behaves, and says so in the form that was asked for.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use labctl_model::{MAX_REQUESTS, MAX_RESPONSE_BYTES, Plan};
use labctl_provider::{Lab, Labs};
use labctl_verdict::{Evidence, Report, SetupFailure, judge, view};

use super::form::{Form, Format, exit};
use super::self_test;
use crate::exit::Exit;
use crate::failure::{Failure, Outcome, did_you_mean};
use crate::pick::find_up;
use crate::run::{Interrupt, Prove, Proven, Record, lock_failure};
use crate::ui::Ui;

/// Send real requests, capture on every host, judge the path of every packet.
///
/// Exits with 0 if every check passed, 1 if one failed, 6 if the evidence does not suffice. The evidence
/// (flow.pcapng, evidence.json, results.json, junit.xml) stays in .labctl/LAB/run-NNNN/ under the current directory; it can be
/// judged again from there, anywhere, without root and without a lab.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The lab; may be left out when one is up.
    name: Option<String>,
    #[command(flatten)]
    form: Form,
    /// TCP requests to send, whatever the lab file says.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=i64::from(MAX_REQUESTS)))]
    requests: Option<u32>,
    /// UDP datagrams to send, whatever the lab file says.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=i64::from(MAX_REQUESTS)))]
    datagrams: Option<u32>,
    /// Bytes of each response, whatever the lab file says.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_RESPONSE_BYTES)))]
    bytes: Option<u32>,
    /// Node to ask, whatever the lab file says.
    #[arg(long, value_name = "NODE")]
    via: Option<String>,
    /// Ask no other node than the one that the traffic names; without it each other node's NodePort is asked as well, once
    /// by each protocol.
    #[arg(long)]
    only_via: bool,
    /// Judge this run again, its folder or what labctl export made of it; needs neither root nor a lab.
    #[arg(long, value_name = "RUN", conflicts_with_all = ["name", "requests", "datagrams", "bytes", "via", "only_via", "timings"])]
    from: Option<PathBuf>,
    /// Then damage the evidence N times, one place at a time, and count the damages that the judge does not notice.
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "2000", require_equals = true,
          value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    self_test: Option<u32>,
    /// Print how long each step took.
    #[arg(long)]
    timings: bool,
}

impl Args {
    pub(crate) fn exec(self, ui: &Ui) -> Outcome {
        match &self.from {
            Some(folder) => self.judge_again(folder, ui),
            None => self.run(ui),
        }
    }

    fn run(&self, ui: &Ui) -> Outcome {
        let interrupt = Interrupt::take_over()?;
        let began = Instant::now();
        let labs = Labs::new();
        let lab = find_up(&labs, self.name.as_deref(), "verify")?;
        let plan = self.plan(&lab)?;
        // Two runs at once would see each other's packets, and `down` would pull the lab away.
        let lock = labs.lock(lab.asked().provider, lab.name());
        let _lock = lock.map_err(|error| lock_failure(&error))?;
        let progress = ui.progress();
        let all_nodes = !self.only_via;
        let run = Prove { lab: &lab, plan: &plan, all_nodes, interrupt: &interrupt, progress: &progress, ui };
        let proven = run.run().inspect_err(|failure| {
            // The failure is reported anyway; a CI system must find it in its own form too.
            let _ = self.form.emit(ui, &self.set_up_failed(lab.name(), failure, began));
        })?;
        let told = self.tell(&proven.report, &proven.evidence, ui, Some(&proven));
        if self.timings {
            ui.say(&progress.timings());
        }
        told
    }

    /// The very judge of a live run, over what that run has kept.
    fn judge_again(&self, folder: &Path, ui: &Ui) -> Outcome {
        let record = Record::read(folder)
            .map_err(|error| Failure::because(Exit::Usage, "judge the run again", &error))?;
        let judgement = judge(&record.evidence);
        let report = Report::new(&record.evidence.plan, &record.run, record.duration_ms, judgement);
        self.tell(&report, &record.evidence, ui, None)
    }

    /// Prints the verdict, or the score of the judge where that was asked for.
    fn tell(&self, report: &Report, evidence: &Evidence, ui: &Ui, live: Option<&Proven>) -> Outcome {
        let score = match self.self_test {
            Some(count) => Some(self_test::run(evidence, count, ui)?),
            None => None,
        };
        match &score {
            // One document in a form that programs read.
            Some(score) if matches!(self.form.format, Format::Json) => {
                self.form.emit(ui, &self_test::json(score))?
            }
            Some(score) => {
                self.form
                    .emit(ui, &format!("{}\n{}", self.form.render(report, ui), self_test::text(score)))?;
            }
            None => self.form.emit(ui, &self.form.render(report, ui))?,
        }
        if let Some(proven) = live {
            self.conclude(proven, ui)?;
        }
        if score.is_some_and(|score| score.missed() > 0) {
            return Ok(Exit::CheckFailed);
        }
        Ok(exit(report.verdict))
    }

    /// The lab's plan with what the command line overrides.
    fn plan(&self, lab: &Lab) -> Result<Plan, Failure> {
        let mut plan = lab.plan().clone();
        let traffic = &mut plan.traffic;
        traffic.requests = self.requests.unwrap_or(traffic.requests);
        traffic.datagrams = self.datagrams.unwrap_or(traffic.datagrams);
        traffic.response_bytes = self.bytes.unwrap_or(traffic.response_bytes);
        if let Some(via) = &self.via {
            if plan.node(via).is_none() {
                return Err(unknown_node(&plan, via));
            }
            plan.traffic.via.clone_from(via);
        }
        Ok(plan)
    }

    /// The failure in the form that was asked for; nothing for people, who read it on stderr.
    fn set_up_failed(&self, lab: &str, failure: &Failure, began: Instant) -> String {
        let error = failure.message();
        let failure = SetupFailure {
            lab: lab.to_owned(),
            step: "verify".to_owned(),
            error: error.strip_prefix("failed to ").unwrap_or(error).to_owned(),
            duration_ms: began.elapsed().as_millis() as u64,
        };
        match self.form.format {
            Format::Text | Format::Json => String::new(),
            Format::Junit => view::junit::setup_failure(&failure),
            Format::Github => view::github::setup_failure(&failure),
        }
    }

    /// Where the evidence is, and GitHub's summary page.
    fn conclude(&self, proven: &Proven, ui: &Ui) -> Result<(), Failure> {
        let folder = proven.folder.display();
        ui.say(&format!("evidence: {folder}/ (flow.pcapng, evidence.json, results.json, junit.xml)"));
        match (self.form.format, std::env::var_os("GITHUB_STEP_SUMMARY")) {
            (Format::Github, Some(page)) => append(page.into(), &view::github::summary(&proven.report)),
            _ => Ok(()),
        }
    }
}

fn append(path: PathBuf, text: &str) -> Result<(), Failure> {
    let written = || -> io::Result<()> {
        OpenOptions::new().append(true).create(true).open(&path)?.write_all(text.as_bytes())
    };
    written().map_err(|error| {
        Failure::because(
            Exit::SetupFailed,
            format_args!("add to the summary page {}", path.display()),
            &error,
        )
    })
}

fn unknown_node(plan: &Plan, typed: &str) -> Failure {
    let names: Vec<&str> = plan.nodes.iter().map(|node| node.name.as_str()).collect();
    let failure = Failure::new(Exit::Usage, format!("lab {} has no node \"{typed}\"", plan.lab));
    failure.hint(
        did_you_mean(typed, names.iter().copied()).unwrap_or_else(|| format!("nodes: {}", names.join(", "))),
    )
}
