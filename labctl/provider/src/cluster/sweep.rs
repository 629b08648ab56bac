//! Taking a lab out of a cluster, whole or in pieces: the undo of `up`, the work of `down` and of `gc`.
//!
//! Owns: the order. The agents end first, then the nodes are cleaned through the capture pods of what the agents
//! pinned there, then the namespace goes, then the image on the nodes, the client, and the state file last.

use std::time::{Duration, Instant};

use futures_util::future::join_all;

use crate::docker::{Engine, EngineError};
use crate::kind::names;
use crate::kubernetes::{Cluster, ClusterError, manifests};
use crate::netns::{DownError, DownReport, LabLock};
use crate::steps::{Step, StepEvent};
use crate::store::{self, Record, Store};

/// How long pods and a namespace may take to end.
const ENDED: Duration = Duration::from_secs(90);
/// A cluster that is there answers at once.
const API: Duration = Duration::from_secs(10);

type OnStep<'a> = dyn FnMut(StepEvent) + 'a;

pub(super) async fn down(
    store: &Store,
    lock: LabLock,
    on_step: &mut OnStep<'_>,
) -> Result<DownReport, DownError> {
    let known = store.has_file(lock.lab());
    store.begin_removal(&lock);
    let report = sweep(store, &lock, on_step).await?;
    if !known && report.removed.is_empty() {
        return Err(DownError::NotUp { lab: report.lab });
    }
    Ok(report)
}

/// Removes everything of the lab but its folder, which goes with the lock.
pub(super) async fn sweep(
    store: &Store,
    lock: &LabLock,
    on_step: &mut OnStep<'_>,
) -> Result<DownReport, DownError> {
    let lab = lock.lab();
    let failed = |source| DownError::Engine { lab: lab.to_owned(), source };
    let engine = Engine::connect().await.map_err(failed)?;
    let record = store.read(lab).ok().flatten();
    let mut sweep = Sweep {
        engine: &engine,
        lab,
        on_step,
        left: Vec::new(),
        report: DownReport { lab: lab.to_owned(), ..DownReport::default() },
    };
    let began = Instant::now();
    if let Some(record) = &record {
        sweep.cluster(record).await;
    }
    sweep.client(store).await.map_err(failed)?;
    if let Some(record) = &record {
        sweep.images(store, record).await.map_err(failed)?;
    }
    if sweep.left.is_empty() {
        sweep.left = store::empty(lock.dir());
    }
    let Sweep { left, mut report, .. } = sweep;
    if !left.is_empty() {
        return Err(DownError::Remains { lab: lab.to_owned(), left });
    }
    report.took = began.elapsed();
    Ok(report)
}

struct Sweep<'a, 'b> {
    engine: &'a Engine,
    lab: &'a str,
    on_step: &'a mut OnStep<'b>,
    left: Vec<String>,
    report: DownReport,
}

impl Sweep<'_, '_> {
    fn removed(&mut self, step: Step, what: String) {
        (self.on_step)(StepEvent::Did(step, what.clone()));
        self.report.removed.push(what);
    }

    /// What the lab has in the cluster. A cluster that is gone has taken it along.
    async fn cluster(&mut self, record: &Record) {
        let began = Instant::now();
        (self.on_step)(StepEvent::Began(Step::RemoveDeployed));
        let namespace = manifests::namespace(&record.asked);
        match record.access.pinned() {
            Err(error @ ClusterError::Kubeconfig { .. }) => self.report.notes.push(format!(
                "what was in namespace {namespace} is taken to be gone with its cluster, which cannot be found: {error}"
            )),
            Err(error) => self.left.push(error.to_string()),
            Ok(_) => match undeploy(record, &namespace).await {
                Ok(true) => self.removed(Step::RemoveDeployed, format!("namespace {namespace}")),
                Ok(false) => {}
                Err(error) => self.left.push(format!(
                    "{error}; if the cluster is gone for good, take its context out of {} and try again",
                    record.access.kubeconfig.display()
                )),
            },
        }
        (self.on_step)(StepEvent::Ended(Step::RemoveDeployed, began.elapsed()));
    }

    async fn client(&mut self, store: &Store) -> Result<(), EngineError> {
        let began = Instant::now();
        (self.on_step)(StepEvent::Began(Step::RemoveContainers));
        for found in self.engine.containers(&names::label_filters(self.lab, store.root())).await? {
            match self.engine.remove_container(&found.id, &found.name).await {
                Ok(true) => self.removed(Step::RemoveContainers, format!("container {}", found.name)),
                Ok(false) => {}
                Err(error) => self.left.push(error.to_string()),
            }
        }
        (self.on_step)(StepEvent::Ended(Step::RemoveContainers, began.elapsed()));
        Ok(())
    }

    /// The lab's image in the nodes and in Docker, unless another lab of this state folder has it too.
    async fn images(&mut self, store: &Store, record: &Record) -> Result<(), EngineError> {
        let Some(image) = &record.image else { return Ok(()) };
        let others: Vec<_> =
            others(store, self.lab).into_iter().filter(|r| r.image.as_ref() == Some(image)).collect();
        let began = Instant::now();
        (self.on_step)(StepEvent::Began(Step::RemoveImages));
        let uses_node = |node: &&String| !others.iter().any(|other| other.loaded.contains(node));
        let nodes: Vec<_> = record.loaded.iter().filter(uses_node).collect();
        let removals = join_all(nodes.iter().map(|node| remove_from(self.engine, node, image))).await;
        let count = removals.iter().filter(|removed| **removed).count();
        if count > 0 {
            self.removed(Step::RemoveImages, format!("image {image} from {count} nodes"));
        }
        if others.is_empty() && self.engine.remove_image(image).await? {
            self.removed(Step::RemoveImages, format!("image {image}"));
        }
        (self.on_step)(StepEvent::Ended(Step::RemoveImages, began.elapsed()));
        Ok(())
    }
}

fn others(store: &Store, lab: &str) -> Vec<Record> {
    let names = store.names().unwrap_or_default();
    names.iter().filter(|name| *name != lab).filter_map(|name| store.read(name).ok().flatten()).collect()
}

/// Whether the node had it. A node that is gone, or whose runtime does not say, has lost it or keeps a few unused
/// megabytes: no reason to keep a lab half removed.
async fn remove_from(engine: &Engine, node: &str, image: &str) -> bool {
    let name = format!("docker.io/{image}");
    let argv = ["ctr", "--namespace=k8s.io", "images", "remove", &name];
    engine.exec(node, &argv, None).await.is_ok_and(|output| output.is_success())
}

/// Whether there was a namespace of the lab. One of the same name that is not the lab's stays.
async fn undeploy(record: &Record, namespace: &str) -> Result<bool, ClusterError> {
    let asked = &record.asked;
    let cluster = Cluster::connect(&record.access).await?;
    cluster.wait_for_api(Instant::now() + API).await?;
    let is_ours = cluster.owner_of(namespace).await?.flatten().as_deref() == Some(record.lab.as_str());
    let deadline = Instant::now() + ENDED;
    if is_ours {
        if !asked.datapath.external {
            let agents = manifests::agent_labels(asked);
            cluster.end_daemon_set(namespace, manifests::AGENT, &agents, deadline).await?;
            clean_nodes(&cluster, record, namespace).await?;
        }
        cluster.remove_namespace(namespace, deadline).await?;
    }
    // They are named after the namespace, but do not live in it.
    cluster.delete(&manifests::agent_roles(asked)).await?;
    Ok(is_ours)
}

/// Takes the datapath off the nodes: it lives on its pins, not on the agent.
async fn clean_nodes(cluster: &Cluster, record: &Record, namespace: &str) -> Result<(), ClusterError> {
    let pods = cluster.pods(namespace, &manifests::capture_labels(&record.asked)).await?;
    let argv =
        [manifests::PROGRAM, "node", "cluster-clean", "--lab", &record.lab, "--pin-dir", manifests::PIN_DIR];
    let ready = pods.iter().filter(|pod| pod.ready);
    let cleaned = ready.map(|pod| cluster.exec(namespace, &pod.name, manifests::CAPTURE_CONTAINER, &argv));
    join_all(cleaned).await.into_iter().try_for_each(|cleaned| cleaned.map(drop))
}
