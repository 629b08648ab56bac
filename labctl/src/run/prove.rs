//! One run of `verify`: captures, canaries, traffic, counters, judgement, evidence.
//!
//! Owns: the order, which is what makes the evidence worth something. Captures are ready before anything is
//! sent; canaries go before and after the traffic, so each capture is proven live around it; captures stop
//! last. Does not own: any check.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use datapath_agent::{DatapathStatus, ProgramStatus};
use labctl_model::Plan;
use labctl_provider::{Host, Lab};
use labctl_verdict::{
    Canaries as SentCanaries, Evidence, Explained, KernelDrops, Observed, OwnProgram, Report,
    judge_and_explain, view,
};
use labctl_wire::facts::HostFacts;
use labctl_wire::{CaptureFile, Exchange};

use super::canary::Canaries;
use super::captures::Captures;
use super::datapath::statuses;
use super::drops::Drops as Watch;
use super::interrupt::Interrupt;
use super::observe;
use super::record::{self, Record};
use super::run_dir::{EvidenceError, RunDir};
use super::traffic::{Fetch, Questions};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::ui::{Progress, Ui};

/// How long the captures go on after the last answer: a reset that comes late, or a packet that goes round, is seen.
const AFTERMATH: Duration = Duration::from_millis(300);

/// Drop counters of each node that tells, by reason.
type Drops = BTreeMap<String, BTreeMap<String, u64>>;

/// What `verify` works with.
pub(crate) struct Prove<'a> {
    /// The lab, up.
    pub(crate) lab: &'a Lab,
    /// Its plan with what the command line overrides of the traffic.
    pub(crate) plan: &'a Plan,
    /// Whether every node is asked, not only the one that the plan names.
    pub(crate) all_nodes: bool,
    /// Signals.
    pub(crate) interrupt: &'a Interrupt,
    /// Steps are shown here.
    pub(crate) progress: &'a Progress,
    /// Talk.
    pub(crate) ui: &'a Ui,
}

/// A judged run and where its evidence lies.
#[derive(Debug)]
pub(crate) struct Proven {
    /// The report.
    pub(crate) report: Report,
    /// What it was judged by.
    pub(crate) evidence: Evidence,
    /// The run's folder.
    pub(crate) folder: PathBuf,
}

/// What a run has gathered.
struct Gathered {
    capture: CaptureFile,
    exchanges: Vec<Exchange>,
    refusals: Vec<Exchange>,
    drops: Drops,
    canaries: SentCanaries,
    hosts: BTreeMap<String, Observed>,
    kernel_drops: KernelDrops,
}

impl Prove<'_> {
    /// Runs it all. Without a result the run's folder is removed again.
    ///
    /// # Errors
    /// [`Exit::Interrupted`] after a signal, else [`Exit::SetupFailed`] with what failed.
    pub(crate) fn run(&self) -> Result<Proven, Failure> {
        let began = Instant::now();
        let dir = RunDir::create(self.lab.name()).map_err(|e| self.not_kept("keep evidence", &e))?;
        let gathered = self.gather(&dir)?;
        let step = self.progress.begin("verdict", "judging");
        let evidence = self.evidence(gathered);
        let Explained { judgement, comments } = judge_and_explain(&evidence);
        let millis = began.elapsed().as_millis() as u64;
        let report = Report::new(self.plan, &dir.name(), millis, judgement);
        let record = Record::new(dir.name(), millis, evidence);
        self.keep(&dir, &record, &comments, &report).map_err(|e| self.not_kept("keep evidence", &e))?;
        step.done(&report.tally());
        let folder = dir.path().to_owned();
        dir.keep();
        Ok(Proven { report, evidence: record.evidence, folder })
    }

    /// Everything up to the end of the captures.
    fn gather(&self, dir: &RunDir) -> Result<Gathered, Failure> {
        let questions = Questions::new(self.plan, self.all_nodes);
        let step = self.progress.begin("captures", "waiting until each says ready");
        let before = Arc::new(self.observe()?);
        let mut captures =
            Captures::start(self.lab, &before).map_err(|e| self.failure("start the captures", &e))?;
        // Reading the kernel's types takes as long as the captures need to get ready.
        let watched = Arc::clone(&before);
        let watch = thread::spawn(move || Watch::watch(&watched));
        // The client's process starts while captures get ready, and waits.
        let fetch = Fetch::start(self.lab).map_err(|e| self.failure("start the client", &e))?;
        let run = format!("{}-{}", dir.name(), std::process::id());
        let mut canaries =
            Canaries::open(self.lab, &run).map_err(|e| self.failure("prepare canaries", &e))?;
        let points = captures.ready(self.interrupt).map_err(|e| self.failure("start the captures", &e))?;
        canaries.ready(self.interrupt).map_err(|e| self.failure("prepare canaries", &e))?;
        let watch = watch.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        self.canaries(&mut canaries)?;
        step.done(&format!("{points} interfaces, canaries sent past all of them"));

        let step = self.progress.begin("traffic", &questions.words());
        let before_traffic = drops(&self.statuses());
        let answers =
            fetch.send(&questions.options, self.interrupt).map_err(|e| self.failure("send traffic", &e))?;
        let statuses = self.statuses();
        let dropped = difference(&before_traffic, &drops(&statuses));
        let (exchanges, refusals) = questions.split(answers);
        step.done(&format!("{}, {} answered", questions.words(), answered(&exchanges)));

        let step = self.progress.begin("stop", "waiting for the captures' last packets");
        // Nothing to wait for: what is looked for is what should not come.
        self.interrupt.wait(&[], Some(Instant::now() + AFTERMATH));
        self.canaries(&mut canaries)?;
        let capture = captures.stop(self.interrupt).map_err(|e| self.failure("stop the captures", &e))?;
        let kernel_drops = watch.finish();
        let hosts = self.observed(Arc::unwrap_or_clone(before), self.observe()?, statuses);
        step.done(&format!("{} packets captured", capture.packets().len()));
        Ok(Gathered {
            capture,
            exchanges,
            refusals,
            drops: dropped,
            canaries: SentCanaries { run, rounds: canaries.rounds() },
            hosts,
            kernel_drops,
        })
    }

    /// What every host is made of now.
    fn observe(&self) -> Result<BTreeMap<String, HostFacts>, Failure> {
        observe::hosts(self.lab, self.interrupt).map_err(|e| self.failure("observe the hosts", &e))
    }

    /// Two observations as one, with what `up` made and where its programs are.
    fn observed(
        &self,
        mut before: BTreeMap<String, HostFacts>,
        after: BTreeMap<String, HostFacts>,
        mut statuses: BTreeMap<String, DatapathStatus>,
    ) -> BTreeMap<String, Observed> {
        let own = |status: DatapathStatus| {
            let program = |p: ProgramStatus| OwnProgram {
                program: p.program,
                interface: p.interface,
                id: p.id,
                attached: p.attached,
            };
            status.programs.into_iter().map(program).collect()
        };
        let made = |name: &str| {
            let host = self.lab.host(name).map_or(&[][..], |host| &host.interfaces);
            host.iter().map(|interface| interface.name.clone()).collect()
        };
        let host = |(name, after): (String, HostFacts)| {
            let observed = Observed {
                made: made(&name),
                before: before.remove(&name).unwrap_or_default(),
                after,
                programs: statuses.remove(&name).map(own).unwrap_or_default(),
            };
            (name, observed)
        };
        after.into_iter().map(host).collect()
    }

    /// Every node whose datapath tells; the verdict knows of the others that they did not.
    fn statuses(&self) -> BTreeMap<String, DatapathStatus> {
        let told = statuses(self.lab, self.interrupt).into_iter();
        told.filter_map(|(node, status)| Some((node.to_owned(), status.ok()?))).collect()
    }

    fn canaries(&self, canaries: &mut Canaries) -> Result<(), Failure> {
        let lost = canaries.round(self.interrupt).map_err(|e| self.failure("send canaries", &e))?;
        if !lost.is_empty() {
            self.ui
                .warn(&format!("a canary did not arrive: {}; checks may be inconclusive", lost.join(", ")));
        }
        Ok(())
    }

    fn evidence(&self, gathered: Gathered) -> Evidence {
        let Gathered { capture, exchanges, refusals, drops, canaries, hosts, kernel_drops } = gathered;
        let evidence = Evidence::new(self.plan.clone(), capture, exchanges, canaries);
        let kernel_drops = Some(kernel_drops);
        Evidence { refusals, drops, hosts, kernel_drops, uplinks: self.uplinks(), ..evidence }
    }

    /// Uplinks by the names that somebody else's nodes have for them.
    fn uplinks(&self) -> BTreeMap<String, String> {
        let name = |host: &Host| Some((host.name.clone(), host.uplink()?.name.clone()));
        self.lab.hosts().iter().filter_map(name).collect()
    }

    fn keep(
        &self,
        dir: &RunDir,
        record: &Record,
        comments: &BTreeMap<usize, String>,
        verdict: &Report,
    ) -> Result<(), EvidenceError> {
        let capture = &record.evidence.capture;
        let about = record.about(verdict.verdict);
        dir.write(record::PACKETS, |out| capture.write(out, &about, comments).map_err(io::Error::other))?;
        dir.write(record::FILE, |out| record.write(out))?;
        dir.write(record::JUNIT, |out| out.write_all(view::junit::render(verdict).as_bytes()))?;
        // Last: a run that has it is complete.
        dir.write(record::RESULTS, |out| out.write_all(view::json::render(verdict).as_bytes()))?;
        Ok(())
    }

    /// The failure of a step that writes evidence: most often the disk is full or not ours.
    fn not_kept(&self, doing: &str, error: &(dyn std::error::Error + 'static)) -> Failure {
        let failure = self.failure(doing, error);
        if failure.exit() == Exit::Interrupted {
            return failure;
        }
        failure.hint("evidence goes to .labctl/ in the current directory: verify where there is room and leave to write")
    }

    /// A step's failure; after a signal it is the signal's doing.
    fn failure(&self, doing: &str, error: &(dyn std::error::Error + 'static)) -> Failure {
        if self.interrupt.is_raised() {
            Failure::interrupted()
        } else {
            Failure::because(Exit::SetupFailed, doing, error)
        }
    }
}

/// Their drop counters.
fn drops(statuses: &BTreeMap<String, DatapathStatus>) -> Drops {
    statuses.iter().map(|(node, status)| (node.clone(), status.drops.clone())).collect()
}

/// What was dropped between two readings, of nodes that told both times.
fn difference(before: &Drops, after: &Drops) -> Drops {
    let node = |(name, counts): (&String, &BTreeMap<String, u64>)| {
        let earlier = before.get(name)?;
        let grown = |(reason, count): (&String, &u64)| {
            let delta = count - earlier.get(reason).copied().unwrap_or(0).min(*count);
            (delta > 0).then(|| (reason.clone(), delta))
        };
        Some((name.clone(), counts.iter().filter_map(grown).collect()))
    };
    after.iter().filter_map(node).collect()
}

fn answered(exchanges: &[Exchange]) -> usize {
    exchanges.iter().filter(|exchange| exchange.outcome == labctl_wire::Outcome::Answered).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(entries: &[(&str, u64)]) -> BTreeMap<String, u64> {
        entries.iter().map(|(reason, n)| ((*reason).to_owned(), *n)).collect()
    }

    #[test]
    fn only_what_grew_counts_and_silent_nodes_stay_silent() {
        let before = Drops::from([("worker".to_owned(), counts(&[("no-backend", 3)]))]);
        let after = Drops::from([
            ("worker".to_owned(), counts(&[("no-backend", 3), ("ttl-exceeded", 2)])),
            ("worker2".to_owned(), counts(&[("no-backend", 1)])),
        ]);
        let expected = Drops::from([("worker".to_owned(), counts(&[("ttl-exceeded", 2)]))]);
        assert_eq!(difference(&before, &after), expected);
    }
}
