//! Taking a kind lab away, whole or in pieces: the undo of `up`, the work of `down` and of `gc`.
//!
//! Owns: finding everything in Docker that belongs to one lab, and the order of its removal. It trusts Docker more than
//! the state file, so it works after a kill at any moment, without the `kind` program, and twice in a row.

use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::future::join_all;

use super::kernel;
use super::names::{self, CLUSTER_LABEL, KIND_LOG};
use crate::docker::{Container, Engine, EngineError};
use crate::netns::processes;
use crate::netns::state::Phase;
use crate::netns::{DownError, DownReport, LabLock};
use crate::steps::{Step, StepEvent};
use crate::store::{self, Record, Store};

/// Rounds of removing: a kind that was killed may have asked Docker for one more container.
const ROUNDS: usize = 5;
/// How long Docker may go on making a node for a kind that was ended meanwhile: nothing tells when it has given up.
const IN_FLIGHT: Duration = Duration::from_secs(4);
/// Between two looks at what nothing announces.
const PAUSE: Duration = Duration::from_millis(100);

type OnStep<'a> = dyn FnMut(StepEvent) + 'a;

pub(super) async fn down(
    store: &Store,
    lock: LabLock,
    on_step: &mut OnStep<'_>,
) -> Result<DownReport, DownError> {
    let known = store.has_file(lock.lab());
    let report = sweep(store, &lock, on_step).await?;
    if !known && report.removed.is_empty() {
        return Err(DownError::NotUp { lab: report.lab });
    }
    Ok(report)
}

/// How many nodes a kind that was ended may still be about to get from Docker, by the lab's file as `up` left it.
fn coming(record: Option<&Record>, lock: &LabLock) -> usize {
    let begun = store::log_dir(lock.dir()).join(KIND_LOG).exists();
    record.filter(|record| record.phase != Phase::Ready && begun).map_or(0, |record| record.asked.nodes.len())
}

/// Removes everything of the lab but its folder, which goes with the lock.
pub(super) async fn sweep(
    store: &Store,
    lock: &LabLock,
    on_step: &mut OnStep<'_>,
) -> Result<DownReport, DownError> {
    let lab = lock.lab();
    let coming = coming(store.begin_removal(lock).as_ref(), lock);
    let failed = |source| DownError::Engine { lab: lab.to_owned(), source };
    let engine = Engine::connect().await.map_err(failed)?;
    let mut sweep = Sweep {
        engine: &engine,
        lab,
        state_dir: store.root(),
        on_step,
        left: Vec::new(),
        report: DownReport { lab: lab.to_owned(), ..DownReport::default() },
    };
    let began = Instant::now();
    sweep.containers(coming).await.map_err(failed)?;
    sweep.networks().await.map_err(failed)?;
    sweep.image(store).await.map_err(failed)?;
    sweep.kernel(lock.dir()).await.map_err(failed)?;
    sweep.files(lock);
    let Sweep { left, mut report, .. } = sweep;
    if !left.is_empty() {
        return Err(DownError::Remains { lab: lab.to_owned(), left });
    }
    report.took = began.elapsed();
    Ok(report)
}

/// Every container of the lab: the client by our labels, nodes by kind's label and our network.
pub(super) async fn containers(
    engine: &Engine,
    lab: &str,
    state_dir: &Path,
) -> Result<Vec<Container>, EngineError> {
    let mut found = engine.containers(&names::label_filters(lab, state_dir)).await?;
    let cluster = names::cluster(lab);
    let networks = engine.networks_named(&cluster).await?;
    if networks.iter().any(|network| names::is_own_network(network, lab, state_dir)) {
        let nodes = engine.containers(&[format!("{CLUSTER_LABEL}={cluster}")]).await?;
        found.extend(nodes.into_iter().filter(|node| names::is_on(node, &cluster)));
    }
    Ok(found)
}

struct Sweep<'a, 'b> {
    engine: &'a Engine,
    lab: &'a str,
    state_dir: &'a Path,
    on_step: &'a mut OnStep<'b>,
    left: Vec<String>,
    report: DownReport,
}

impl Sweep<'_, '_> {
    fn began(&mut self, step: Step) -> Instant {
        (self.on_step)(StepEvent::Began(step));
        Instant::now()
    }

    fn ended(&mut self, step: Step, began: Instant) {
        let took: Duration = began.elapsed();
        (self.on_step)(StepEvent::Ended(step, took));
    }

    fn removed(&mut self, step: Step, what: String) {
        (self.on_step)(StepEvent::Did(step, what.clone()));
        self.report.removed.push(what);
    }

    async fn containers(&mut self, coming: usize) -> Result<(), EngineError> {
        let began = self.began(Step::RemoveContainers);
        self.end_orphans();
        let late = Instant::now() + IN_FLIGHT;
        let mut nodes = 0;
        for round in 1..=ROUNDS {
            let found = self.next_containers((nodes < coming).then_some(late)).await?;
            if found.is_empty() {
                break;
            }
            nodes += found.iter().filter(|container| container.labels.contains_key(CLUSTER_LABEL)).count();
            let removals = found.iter().map(|c| self.engine.remove_container(&c.id, &c.name));
            let removals = join_all(removals).await;
            for (container, removal) in found.iter().zip(removals) {
                match removal {
                    Ok(true) => self.removed(Step::RemoveContainers, format!("container {}", container.name)),
                    Ok(false) => {}
                    Err(error) if round == ROUNDS => self.left.push(error.to_string()),
                    Err(_) => {}
                }
            }
        }
        self.ended(Step::RemoveContainers, began);
        Ok(())
    }

    /// Ends what a killed kind left running: `docker run` of a node, which goes on without it.
    fn end_orphans(&mut self) {
        // kind gives every node this label on the command line.
        let label = format!("{CLUSTER_LABEL}={}", names::cluster(self.lab));
        let orphans = processes::with_word(&label).unwrap_or_default();
        for stayed in processes::end(&orphans) {
            self.left.push(format!("process {} does not end: {}", stayed.pid, stayed.command));
        }
    }

    /// The lab's containers; none only when none can come any more.
    async fn next_containers(&self, late: Option<Instant>) -> Result<Vec<Container>, EngineError> {
        let mut pause = tokio::time::interval(PAUSE);
        loop {
            let found = containers(self.engine, self.lab, self.state_dir).await?;
            if !found.is_empty() || late.is_none_or(|late| Instant::now() >= late) {
                return Ok(found);
            }
            pause.tick().await;
        }
    }

    async fn networks(&mut self) -> Result<(), EngineError> {
        let began = self.began(Step::RemoveNetwork);
        for network in self.engine.networks_named(&names::cluster(self.lab)).await? {
            if !names::is_own_network(&network, self.lab, self.state_dir) {
                continue;
            }
            match self.engine.remove_network(&network.id, &network.name).await {
                Ok(true) => self.removed(Step::RemoveNetwork, format!("network {}", network.name)),
                Ok(false) => {}
                Err(error) => self.left.push(format!(
                    "{error}; disconnect what is not the lab's: docker network inspect {}",
                    network.name
                )),
            }
        }
        self.ended(Step::RemoveNetwork, began);
        Ok(())
    }

    /// The lab's image, unless another lab of this state folder or any container uses it.
    async fn image(&mut self, store: &Store) -> Result<(), EngineError> {
        let own = store.read(self.lab).ok().flatten().and_then(|record| record.image);
        let Some(image) = own else { return Ok(()) };
        let began = self.began(Step::RemoveImages);
        let used = images_in_use(store, Some(self.lab));
        if !used.contains(&image) && self.engine.remove_image(&image).await? {
            self.removed(Step::RemoveImages, format!("image {image}"));
        }
        self.ended(Step::RemoveImages, began);
        Ok(())
    }

    async fn kernel(&mut self, lab_dir: &Path) -> Result<(), EngineError> {
        let others = kubelets_run(self.engine).await?;
        let began = self.began(Step::RestoreKernel);
        match kernel::release(lab_dir, others) {
            Ok(restored) => {
                for setting in restored.settings {
                    (self.on_step)(StepEvent::Did(Step::RestoreKernel, setting));
                }
                let refused = restored.refused.into_iter();
                self.report.notes.extend(refused.map(|line| {
                    format!("a kubelet changed a kernel setting, which cannot be put back to {line}")
                }));
            }
            Err(error) => {
                self.report.notes.push(format!("kernel settings stay as kubelets set them: {error}"))
            }
        }
        self.ended(Step::RestoreKernel, began);
        Ok(())
    }

    /// Only when nothing is left to find by them.
    fn files(&mut self, lock: &LabLock) {
        if !self.left.is_empty() {
            return;
        }
        let began = self.began(Step::RemoveFiles);
        self.left = store::empty(lock.dir());
        self.ended(Step::RemoveFiles, began);
    }
}

/// Whether nodes of any kind cluster run.
pub(super) async fn kubelets_run(engine: &Engine) -> Result<bool, EngineError> {
    let nodes = engine.containers(&[CLUSTER_LABEL.to_owned()]).await?;
    Ok(nodes.iter().any(|node| node.is_running()))
}

/// Images that labs of the state folder name, one lab left out.
pub(super) fn images_in_use(store: &Store, but: Option<&str>) -> Vec<String> {
    let names = store.names().unwrap_or_default();
    let others = names.iter().filter(|name| Some(name.as_str()) != but);
    others.filter_map(|name| store.read(name).ok().flatten()?.image).collect()
}
