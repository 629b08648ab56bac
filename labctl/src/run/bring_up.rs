//! Bringing a lab up: the order of the steps, and their undo.
//!
//! Owns: lock, look at what is there, preflight, network, datapath and backends, first answer; and taking
//! everything away again when one of them fails or a signal comes. Does not own: any of the steps.

use std::time::Duration;

use labctl_model::Plan;
use labctl_provider::{Lab, LabLock, LockError, NetnsProvider, StateError, StepEvent, UpError};
use labctl_wire::Exchange;

use super::complete;
use super::interrupt::Interrupt;
use super::launch::{is_listening, launch};
use super::traffic::{FIRST_ANSWER, Fetch, first_request};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::ui::{Progress, Ui};

/// What `up` works with.
pub(crate) struct BringUp<'a> {
    /// Where labs live.
    pub(crate) provider: &'a NetnsProvider,
    /// What to make.
    pub(crate) plan: &'a Plan,
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
    Already(Lab),
    /// The lab was made.
    Made(Lab),
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
        let mut lock = self.lock()?;
        match self.look()? {
            Found::Nothing => {}
            Found::Healthy(lab) => return Ok(Up::Already(*lab)),
            Found::Damaged(why) => {
                self.ui.say(&format!("{} is up but damaged: {why}; making it anew", self.plan.lab));
                self.remove(lock)?;
                lock = self.lock()?;
            }
        }
        self.preflight()?;
        let lab = self.network(&lock)?;
        match self.start(&lab) {
            Ok(()) => Ok(Up::Made(lab)),
            Err(failure) => Err(self.undo(lock, failure)),
        }
    }

    fn lock(&self) -> Result<LabLock, Failure> {
        self.provider.lock(&self.plan.lab).map_err(|error| lock_failure(&error))
    }

    /// What is there under the wanted name.
    fn look(&self) -> Result<Found, Failure> {
        match self.provider.find(&self.plan.lab) {
            Ok(None) => Ok(Found::Nothing),
            Ok(Some(lab)) if lab.plan() != self.plan => Err(self.other_plan()),
            Ok(Some(lab)) => match self.damage(&lab) {
                // A look that was cut short says nothing about the lab: it stays.
                _ if self.interrupt.is_raised() => Err(Failure::interrupted()),
                None => Ok(Found::Healthy(Box::new(lab))),
                Some(why) => Ok(Found::Damaged(why)),
            },
            // The provider removes the leftovers of a killed command itself. Busy means this command: it
            // holds the lock.
            Err(StateError::Incomplete { .. } | StateError::Busy { .. }) => Ok(Found::Nothing),
            Err(error) => Err(Failure::failed(Exit::SetupFailed, &error)),
        }
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
        if let Some(problem) = lab.check().first() {
            return Some(problem.to_string());
        }
        for node in &self.plan.nodes {
            match datapath_agent::status(&lab.bpf_dir(&node.name)) {
                Ok(status) if !status.programs.is_empty() => {}
                Ok(_) => return Some(format!("no program is attached on {}", node.name)),
                Err(error) => return Some(format!("the datapath of {}: {error}", node.name)),
            }
        }
        if let Some((_, pod)) = self.plan.backends().find(|(_, pod)| !is_listening(lab, pod)) {
            return Some(format!("backend {} does not accept connections", pod.name));
        }
        let asked = Fetch::start(lab)
            .map_err(Into::into)
            .and_then(|fetch| first_request(lab, fetch, Duration::ZERO, self.interrupt));
        asked.err().map(|error| error.to_string())
    }

    fn preflight(&self) -> Result<(), Failure> {
        let step = self.progress.begin("preflight", "privileges, kernel, names");
        self.provider.preflight(self.plan).map_err(|error| {
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
            .provider
            .up(lock, self.plan, &self.interrupt.cancel(), &mut on_step)
            .map_err(|error| up_failure(&error))?;
        step.done(&format!("{} namespaces on {}", lab.hosts().len(), self.plan.network));
        Ok(lab)
    }

    /// Everything that runs inside the network, until the service answers.
    fn start(&self, lab: &Lab) -> Result<(), Failure> {
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

        let step = self.progress.begin("first answer", "waiting for the service");
        let first = first_request(lab, fetch, FIRST_ANSWER, self.interrupt)
            .map_err(|e| doing("get a first answer")(&e))?;
        step.done(&answer(&first));
        complete::mark(lab).map_err(|e| doing("note that the lab is complete")(&e))?;
        if self.interrupt.is_raised() { Err(Failure::interrupted()) } else { Ok(()) }
    }

    /// Takes a half-made lab away, or says how to look into it.
    fn undo(&self, lock: LabLock, failure: Failure) -> Failure {
        let lab = &self.plan.lab;
        if self.keep && !self.interrupt.is_raised() {
            return failure.hint(format!("kept as it is: ip netns list; then labctl down {lab}"));
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
        self.provider
            .down(lock, &mut |_| {})
            .map(drop)
            .map_err(|error| Failure::failed(Exit::SetupFailed, &error))
    }
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
        LockError::Busy { .. } | LockError::Io { .. } => Exit::SetupFailed,
    };
    match error {
        LockError::Name { .. } | LockError::Busy { .. } => Failure::new(exit, error.to_string()),
        LockError::Io { .. } => Failure::failed(exit, error),
    }
}

fn up_failure(error: &UpError) -> Failure {
    match error {
        UpError::Cancelled => Failure::interrupted(),
        UpError::Preflight(_) => Failure::failed(Exit::HostUnfit, error),
        _ => Failure::failed(Exit::SetupFailed, error),
    }
}
