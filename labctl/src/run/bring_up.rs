//! Bringing a lab up: the order of the steps, and their undo.
//!
//! Owns: lock, look at what is there, preflight, network, datapath and backends, first answer; and taking
//! everything away again when one of them fails or a signal comes. Does not own: any of the steps.

use std::thread;
use std::time::Duration;

use labctl_model::{ExpectedStatus, Plan, ProviderKind};
use labctl_provider::{
    ClusterOptions, ClusterUpError, KindUpError, Lab, LabLock, LabState, Labs, LockError, StateError,
    Step as Part, StepEvent, UpError,
};
use labctl_wire::Exchange;

use super::complete;
use super::datapath::statuses;
use super::interrupt::Interrupt;
use super::launch::{launch, listening};
use super::traffic::{FIRST_ANSWER, Fetch, first_request};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::ui::{Progress, Step, Ui};

/// What `up` works with.
pub(crate) struct BringUp<'a> {
    /// Every provider.
    pub(crate) labs: &'a Labs,
    /// What to make; its provider makes it.
    pub(crate) plan: &'a Plan,
    /// Which cluster, for the provider cluster; the others need none.
    pub(crate) cluster: Option<&'a ClusterOptions>,
    /// Leave a failed lab as it is, to look into.
    pub(crate) keep: bool,
    /// Signals.
    pub(crate) interrupt: &'a Interrupt,
    /// Steps are shown here.
    pub(crate) progress: &'a Progress,
    /// Talk.
    pub(crate) ui: &'a Ui,
}

/// What `up` did.
#[derive(Debug)]
pub(crate) enum Up {
    /// The same plan was up and answers; nothing was changed.
    Already(Box<Lab>),
    /// The lab was made.
    Made {
        /// It.
        lab: Box<Lab>,
        /// How much of the time other programs took, which labctl only waited for.
        foreign: Duration,
    },
}

/// What a lab of the wanted name is, before `up` does anything.
enum Found {
    Nothing,
    Healthy(Box<Lab>),
    /// The same plan, but not whole: says why.
    Damaged(String),
}

impl BringUp<'_> {
    /// Makes the lab, or finds that it is up.
    ///
    /// # Errors
    /// [`Exit::Usage`] for another plan under the same name, [`Exit::HostUnfit`] from the preflight,
    /// [`Exit::Interrupted`] after a signal, otherwise [`Exit::SetupFailed`]. Nothing is left behind unless
    /// [`BringUp::keep`] says so.
    pub(crate) fn run(&self) -> Result<Up, Failure> {
        self.is_only()?;
        let mut lock = self.lock()?;
        match self.look()? {
            Found::Nothing => {}
            Found::Healthy(lab) => return Ok(Up::Already(lab)),
            Found::Damaged(why) => {
                self.ui.say(&format!("{} is up but damaged: {why}; making it anew", self.plan.lab));
                self.remove(lock)?;
                lock = self.lock()?;
            }
        }
        let (lab, foreign) = match self.plan.provider {
            ProviderKind::Netns => {
                self.preflight()?;
                (self.network(&lock)?, Duration::ZERO)
            }
            ProviderKind::Kind | ProviderKind::Cluster => self.in_cluster(&lock)?,
        };
        match self.start(&lab) {
            Ok(()) => Ok(Up::Made { lab: Box::new(lab), foreign }),
            Err(failure) => Err(self.undo(lock, failure)),
        }
    }

    /// A name belongs to one lab, whatever its provider: commands name labs and nothing else.
    fn is_only(&self) -> Result<(), Failure> {
        let lab = &self.plan.lab;
        match self.labs.provider_of(lab).map_err(|error| Failure::failed(Exit::SetupFailed, &error))? {
            Some(other) if other != self.plan.provider => {
                let message =
                    format!("lab {lab} is up on provider {other}, and names belong to one lab only");
                Err(Failure::new(Exit::Usage, message)
                    .hint(format!("labctl down {lab}\nor bring this one up beside it: --name {lab}-2")))
            }
            _ => Ok(()),
        }
    }

    fn lock(&self) -> Result<LabLock, Failure> {
        self.labs.lock(self.plan.provider, &self.plan.lab).map_err(|error| lock_failure(&error))
    }

    /// What is there under the wanted name.
    fn look(&self) -> Result<Found, Failure> {
        match self.labs.find(self.plan.provider, &self.plan.lab) {
            Ok(None) => Ok(Found::Nothing),
            Ok(Some(lab)) if lab.asked() != self.plan => Err(self.other_plan()),
            Ok(Some(_)) if self.is_elsewhere()? => Err(self.other_plan()),
            Ok(Some(lab)) => match self.damage(&lab) {
                // A look that was cut short says nothing about the lab: it stays.
                _ if self.interrupt.is_raised() => Err(Failure::interrupted()),
                None => Ok(Found::Healthy(Box::new(lab))),
                Some(why) => Ok(Found::Damaged(why)),
            },
            Err(StateError::Observe { reason, .. }) => self.blind(reason),
            // The provider removes the leftovers of a killed command itself. Busy means this command: it
            // holds the lock.
            Err(StateError::Incomplete { .. } | StateError::Busy { .. }) => Ok(Found::Nothing),
            Err(error) => Err(Failure::failed(Exit::SetupFailed, &error)),
        }
    }

    /// Whether the lab of this name is in another cluster than the one that is meant.
    fn is_elsewhere(&self) -> Result<bool, Failure> {
        let Some(options) = self.cluster else { return Ok(false) };
        let known = self.labs.cluster.access(&self.plan.lab);
        let known = known.map_err(|error| Failure::failed(Exit::SetupFailed, &error))?;
        let meant = options.access.pinned().map_err(|error| Failure::failed(Exit::Usage, &error))?;
        Ok(known.is_some_and(|known| known != meant))
    }

    /// A lab that cannot be looked into: a part that does not run, or a Docker that does not. If it is the one that is
    /// wanted, it is damaged; without Docker its removal will say so and change nothing.
    fn blind(&self, why: String) -> Result<Found, Failure> {
        let known = self.labs.list().map_err(|error| Failure::failed(Exit::SetupFailed, &error))?;
        let is_wanted = known
            .iter()
            .filter(|lab| lab.name == self.plan.lab)
            .any(|lab| matches!(&lab.state, LabState::Ready(lab) if lab.asked() == self.plan));
        if is_wanted && !self.is_elsewhere()? { Ok(Found::Damaged(why)) } else { Err(self.other_plan()) }
    }

    fn other_plan(&self) -> Failure {
        let lab = &self.plan.lab;
        Failure::new(Exit::Usage, format!("lab {lab} is up with another plan than this lab file's"))
            .hint(format!("labctl down {lab}\nor bring this one up beside it: labctl up --name {lab}-2 ..."))
    }

    /// The first thing that is not as `up` left it; a request has the last word.
    fn damage(&self, lab: &Lab) -> Option<String> {
        if !complete::is_marked(lab) {
            return Some("its up was killed".to_owned());
        }
        // Side by side: in a cluster each is a question to somebody else.
        let fetch = Fetch::start(lab);
        let (problems, datapaths, accepting) = thread::scope(|scope| {
            let problems = scope.spawn(|| lab.check());
            let datapaths = scope.spawn(|| statuses(lab, self.interrupt));
            let accepting = listening(lab, self.interrupt);
            (joined(problems), joined(datapaths), accepting)
        });
        if let Some(problem) = problems.first() {
            return Some(problem.to_string());
        }
        for (node, status) in datapaths {
            match status {
                Ok(status) if status.programs.is_empty() => {
                    return Some(format!("no program is attached on {node}"));
                }
                Ok(status) => {
                    if let Some(detached) = status.programs.iter().find(|program| !program.attached) {
                        let datapath_agent::ProgramStatus { program, interface, .. } = detached;
                        return Some(format!("{program} is no longer attached to {node}:{interface}"));
                    }
                }
                Err(error) => return Some(format!("the datapath of {node}: {error}")),
            }
        }
        if let Some((pod, _)) = accepting.iter().find(|(_, accepts)| !accepts) {
            return Some(format!("backend {} does not accept connections", pod.name));
        }
        if self.expects_silence() {
            return None;
        }
        let asked = fetch
            .map_err(Into::into)
            .and_then(|fetch| first_request(lab, fetch, Duration::ZERO, self.interrupt));
        asked.err().map(|error| error.to_string())
    }

    fn preflight(&self) -> Result<(), Failure> {
        let step = self.progress.begin("preflight", "privileges, kernel, names");
        self.labs.netns.preflight(self.plan).map_err(|error| {
            Failure::failed(Exit::HostUnfit, &error)
                .hint("labctl doctor names what is missing and its remedy")
        })?;
        step.done("this machine can run it");
        Ok(())
    }

    fn network(&self, lock: &LabLock) -> Result<Lab, Failure> {
        let step = self.progress.begin("network", "namespaces and links");
        let mut on_step = |event: StepEvent| match event {
            StepEvent::Began(part) => step.doing(&part.to_string()),
            StepEvent::Ended(part, time) => self.progress.note(format!("network: {part}"), time),
            StepEvent::Did(..) => {}
        };
        let lab = self
            .labs
            .netns
            .up(lock, self.plan, &self.interrupt.cancel(), &mut on_step)
            .map_err(|error| up_failure(&error))?;
        step.done(&format!("{} namespaces on {}", lab.hosts().len(), self.plan.network));
        Ok(lab)
    }

    /// A cluster up to backends that are ready, and how much of the time was its maker's own. Each part is a line as
    /// it ends: some of them run side by side.
    fn in_cluster(&self, lock: &LabLock) -> Result<(Lab, Duration), Failure> {
        let step = self.progress.begin("cluster", "looking at this machine");
        let mut parts = Parts::new(&step, self.ui);
        let cancel = self.interrupt.cancel();
        let mut on_step = |event| parts.take(event);
        let lab = match self.cluster {
            None => self.labs.kind.up(lock, self.plan, &cancel, &mut on_step).map_err(|e| kind_failure(&e)),
            Some(options) => {
                let made = self.labs.cluster.up(options, lock, self.plan, &cancel, &mut on_step);
                made.map_err(|error| cluster_failure(&error))
            }
        }?;
        let foreign = parts.foreign;
        step.vanish();
        Ok((lab, foreign))
    }

    /// What makes a network or a cluster a lab: processes, where the provider does not start them, and an answer.
    fn start(&self, lab: &Lab) -> Result<(), Failure> {
        let fetch = match self.plan.provider {
            ProviderKind::Netns => self.start_processes(lab)?,
            ProviderKind::Kind | ProviderKind::Cluster => {
                Fetch::start(lab).map_err(|e| Failure::because(Exit::SetupFailed, "start the client", &e))?
            }
        };
        let step = self.progress.begin("first answer", "waiting for the service");
        if self.expects_silence() {
            drop(fetch);
            step.done("not asked for: this lab expects `handshake` to fail");
            return self.complete(lab);
        }
        let first = first_request(lab, fetch, FIRST_ANSWER, self.interrupt)
            .map_err(|e| Failure::because(Exit::SetupFailed, "get a first answer", &e))?;
        step.done(&answer(&first));
        self.complete(lab)
    }

    /// Whether the lab file says that no request gets through: what disturbs it may stop the first one too.
    fn expects_silence(&self) -> bool {
        self.plan.expect.get("handshake") == Some(&ExpectedStatus::Fail)
    }

    fn complete(&self, lab: &Lab) -> Result<(), Failure> {
        complete::mark(lab)
            .map_err(|e| Failure::because(Exit::SetupFailed, "note that the lab is complete", &e))?;
        if self.interrupt.is_raised() { Err(Failure::interrupted()) } else { Ok(()) }
    }

    /// Agents and backends of a netns lab, and the client, which waits for its requests.
    fn start_processes(&self, lab: &Lab) -> Result<Fetch, Failure> {
        let doing = |what: &str| {
            let what = what.to_owned();
            move |error: &(dyn std::error::Error + 'static)| Failure::because(Exit::SetupFailed, what, error)
        };
        let launched = launch(lab).and_then(|launched| Ok((launched, Fetch::start(lab)?)));
        let (mut launched, fetch) = launched.map_err(|e| doing("start the lab's processes")(&e))?;

        let step = self.progress.begin("backends", "waiting for their ready lines");
        let ready = launched.backends_ready(self.interrupt).map_err(|e| doing("start the backends")(&e))?;
        step.done(&format!("{} listening on port {}", ready.len(), self.plan.service.target_port));

        let step = self.progress.begin("datapath", "loading and attaching programs");
        let applied = launched.datapath_ready(self.interrupt).map_err(|e| doing("start the datapath")(&e))?;
        let attached: usize = applied.iter().map(|node| node.attached.len()).sum();
        let kind = applied.first().map_or_else(String::new, |node| format!(" by {}", node.kind));
        step.done(&format!("mode {}, {attached} programs on {} nodes{kind}", self.plan.mode, applied.len()));

        Ok(fetch)
    }

    /// Takes a half-made lab away, or says how to look into it.
    fn undo(&self, lock: LabLock, failure: Failure) -> Failure {
        let lab = &self.plan.lab;
        if self.keep && !self.interrupt.is_raised() {
            let look = match self.plan.provider {
                ProviderKind::Netns => "ip netns list".to_owned(),
                ProviderKind::Kind | ProviderKind::Cluster => format!("docker ps --filter name=labctl-{lab}"),
            };
            return failure.hint(format!("kept as it is: {look}; then labctl down {lab}"));
        }
        match self.remove(lock) {
            Ok(()) if self.interrupt.is_raised() => Failure::interrupted(),
            Ok(()) => failure,
            Err(left) => {
                self.ui.warn(left.message());
                failure.hint(format!("labctl down {lab}"))
            }
        }
    }

    fn remove(&self, lock: LabLock) -> Result<(), Failure> {
        self.labs
            .down(self.plan.provider, lock, &mut |_| {})
            .map(drop)
            .map_err(|error| Failure::failed(Exit::SetupFailed, &error))
    }
}

/// What a thread came to, or its panic.
fn joined<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// "web-1 on worker2 answered in 1.2 ms".
fn answer(exchange: &Exchange) -> String {
    let who =
        exchange.served_by.as_ref().map_or_else(String::new, |by| format!("{} on {} ", by.pod, by.node));
    let time = exchange.timings.total_us.unwrap_or(0) as f64 / 1e3;
    format!("{who}answered {} in {time:.1} ms", exchange.protocol)
}

/// What a lock that was not given means for the command.
pub(crate) fn lock_failure(error: &LockError) -> Failure {
    let exit = match error {
        LockError::Name { .. } => Exit::Usage,
        LockError::Busy { .. } | LockError::Io { .. } | LockError::StateDir { .. } => Exit::SetupFailed,
    };
    match error {
        LockError::Name { .. } | LockError::Busy { .. } => Failure::new(exit, error.to_string()),
        LockError::Io { .. } | LockError::StateDir { .. } => Failure::failed(exit, error),
    }
}

/// A cluster's steps as lines.
struct Parts<'a> {
    step: &'a Step<'a>,
    ui: &'a Ui,
    /// Parts under way with the last thing that each said, in the order in which they began.
    running: Vec<(Part, String)>,
    foreign: Duration,
}

impl<'a> Parts<'a> {
    fn new(step: &'a Step<'a>, ui: &'a Ui) -> Self {
        Self { step, ui, running: Vec::new(), foreign: Duration::ZERO }
    }

    fn take(&mut self, event: StepEvent) {
        match event {
            StepEvent::Began(part) => self.running.push((part, String::new())),
            StepEvent::Did(part, what) => self.note(part, what),
            StepEvent::Ended(part, time) => self.end(part, time),
        }
        let doing = |(part, said): &(Part, String)| match said.as_str() {
            "" => part.to_string(),
            said => format!("{part}: {said}"),
        };
        self.step.doing(&self.running.iter().map(doing).collect::<Vec<_>>().join(", "));
    }

    fn note(&mut self, part: Part, what: String) {
        if let Some(warning) = what.strip_prefix("warning: ") {
            self.step.aside(|| self.ui.warn(warning));
        } else if let Some((_, said)) = self.running.iter_mut().find(|(running, _)| *running == part) {
            *said = what;
        }
    }

    fn end(&mut self, part: Part, time: Duration) {
        let at = self.running.iter().position(|(running, _)| *running == part);
        let said = at.map_or_else(String::new, |at| self.running.remove(at).1);
        if part.is_foreign() {
            self.foreign += time;
        }
        self.step.passed(&part.to_string(), &said, time);
    }
}

fn kind_failure(error: &KindUpError) -> Failure {
    match error {
        KindUpError::Cancelled => Failure::interrupted(),
        KindUpError::Preflight(lack) if lack.is_usage() => Failure::failed(Exit::Usage, error),
        KindUpError::Preflight(_) => {
            Failure::failed(Exit::HostUnfit, error).hint("labctl doctor names what is missing and its remedy")
        }
        _ => Failure::failed(Exit::SetupFailed, error),
    }
}

fn cluster_failure(error: &ClusterUpError) -> Failure {
    match error {
        ClusterUpError::Cancelled => Failure::interrupted(),
        ClusterUpError::Preflight(lack) if lack.is_usage() => Failure::failed(Exit::Usage, error),
        ClusterUpError::Preflight(_) => Failure::failed(Exit::HostUnfit, error),
        _ => Failure::failed(Exit::SetupFailed, error),
    }
}

fn up_failure(error: &UpError) -> Failure {
    match error {
        UpError::Cancelled => Failure::interrupted(),
        UpError::Preflight(_) => Failure::failed(Exit::HostUnfit, error),
        _ => Failure::failed(Exit::SetupFailed, error),
    }
}
