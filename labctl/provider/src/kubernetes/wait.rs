//! Waiting for what the cluster makes of a manifest, by watching it.
//!
//! Owns: the conditions and the deadlines. Does not own: why a pod is not ready (`trouble`). A wait that is over
//! names each object that is missing, in the cluster's own words.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::pin::pin;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::Api;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{Config, Event, watcher};
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::time::{timeout, timeout_at};

use super::connect::Cluster;
use super::error::ClusterError;
use super::nodes::{self, ClusterNode};
use super::pods;
use super::trouble;

/// Objects of one kind, by name.
pub(super) type Seen<K> = BTreeMap<String, K>;

impl Cluster {
    /// Waits until every node that the cluster has is Ready. There must be one at least.
    ///
    /// # Errors
    /// [`ClusterError::TimedOut`] with what each node that is not says.
    pub async fn wait_nodes_ready(&self, deadline: Instant) -> Result<(), ClusterError> {
        const AWAITED: &str = "every node to be Ready";
        let began = Instant::now();
        let mut seen = Seen::new();
        let ready =
            |nodes: &Seen<Node>| !nodes.is_empty() && nodes.values().all(|node| nodes::describe(node).ready);
        let api: Api<Node> = Api::all(self.client());
        let watched = watch(api, Config::default(), &mut seen, ready);
        match timeout_at(deadline.into(), watched).await {
            Ok(()) => Ok(()),
            Err(_) => {
                let nodes = seen.values().map(nodes::describe).filter(|node| !node.ready);
                Err(timed_out(AWAITED, began, nodes.map(not_ready).collect()))
            }
        }
    }

    /// Waits until the DaemonSet has a ready pod of its latest version on every node that it wants.
    ///
    /// # Errors
    /// [`ClusterError::TimedOut`] with what keeps each pod, [`ClusterError::Crashing`] when one ends again and
    /// again.
    pub async fn wait_daemon_set(
        &self,
        namespace: &str,
        name: &str,
        deadline: Instant,
    ) -> Result<(), ClusterError> {
        let awaited = format!("DaemonSet {namespace}/{name} to be ready on every node");
        let api: Api<DaemonSet> = Api::namespaced(self.client(), namespace);
        let set = self.ask(&format!("read DaemonSet {namespace}/{name}"), || api.get(name)).await?;
        let selector = set.spec.and_then(|spec| spec.selector.match_labels).unwrap_or_default();
        let config = Config::default().fields(&format!("metadata.name={name}"));
        let ready = |sets: &Seen<DaemonSet>| sets.values().any(daemon_set_is_ready);
        let waiting =
            Waiting { cluster: self, awaited, namespace, labels: &pods::selector(&selector), deadline };
        waiting.watch(api, config, ready).await
    }

    /// Waits until every Deployment of the namespace that the label selector chooses has all its replicas
    /// ready. None at all counts as ready.
    ///
    /// # Errors
    /// [`ClusterError::TimedOut`] with what keeps each pod, [`ClusterError::Crashing`] when one ends again and
    /// again.
    pub async fn wait_deployments(
        &self,
        namespace: &str,
        labels: &str,
        deadline: Instant,
    ) -> Result<(), ClusterError> {
        let awaited = format!("the Deployments of namespace {namespace} with {labels} to be ready");
        let api: Api<Deployment> = Api::namespaced(self.client(), namespace);
        let config = Config::default().labels(labels);
        let ready = |all: &Seen<Deployment>| all.values().all(deployment_is_ready);
        let waiting = Waiting { cluster: self, awaited, namespace, labels, deadline };
        waiting.watch(api, config, ready).await
    }

    /// Waits until one of the pods that the label selector chooses is ready, and then at most `moment` for the others:
    /// somebody else's pods may have been waiting for a network, and one that never gets ready is their matter. Without
    /// any pod there is nothing to wait for.
    ///
    /// # Errors
    /// [`ClusterError::TimedOut`] with what keeps each pod.
    pub async fn wait_pods(
        &self,
        namespace: &str,
        labels: &str,
        deadline: Instant,
        moment: Duration,
    ) -> Result<(), ClusterError> {
        let api: Api<Pod> = Api::namespaced(self.client(), namespace);
        let began = Instant::now();
        let serves = |pod: &Pod| pods::is_ready(pod) && !pods::is_leaving(pod);
        let one = |pods: &Seen<Pod>| pods.is_empty() || pods.values().any(serves);
        if timeout_at(deadline.into(), watch_all(api.clone(), labels, one)).await.is_err() {
            let awaited = format!("a pod of namespace {namespace} with {labels} to be ready");
            return Err(timed_out(&awaited, began, self.trouble(namespace, labels).await));
        }
        let all = |pods: &Seen<Pod>| pods.values().all(|pod| pods::is_leaving(pod) || serves(pod));
        // Those that are ready suffice.
        let _in_time = timeout(moment, watch_all(api, labels, all)).await;
        Ok(())
    }
}

/// A wait for pods, whatever makes them.
struct Waiting<'a> {
    cluster: &'a Cluster,
    awaited: String,
    namespace: &'a str,
    /// Selects the pods.
    labels: &'a str,
    deadline: Instant,
}

impl Waiting<'_> {
    /// Watches the objects until they are ready, and their pods for one that never will be.
    async fn watch<K>(
        self,
        api: Api<K>,
        config: Config,
        ready: impl FnMut(&Seen<K>) -> bool,
    ) -> Result<(), ClusterError>
    where
        K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    {
        let began = Instant::now();
        let mut seen = Seen::new();
        let either = async {
            tokio::select! {
                () = watch(api, config, &mut seen, ready) => None,
                crash = self.crash() => Some(crash),
            }
        };
        match timeout_at(self.deadline.into(), either).await {
            Ok(None) => Ok(()),
            Ok(Some(trouble)) => Err(ClusterError::Crashing { awaited: self.awaited, trouble }),
            Err(_) => {
                let missing = self.cluster.trouble(self.namespace, self.labels).await;
                Err(timed_out(&self.awaited, began, missing))
            }
        }
    }

    /// Returns when a container has ended again and again.
    async fn crash(&self) -> String {
        let api: Api<Pod> = Api::namespaced(self.cluster.client(), self.namespace);
        let mut seen = Seen::new();
        let mut found = None;
        let crashes = |pods: &Seen<Pod>| {
            found = pods.values().find_map(trouble::crash);
            found.is_some()
        };
        watch(api, Config::default().labels(self.labels), &mut seen, crashes).await;
        found.unwrap_or_default()
    }
}

/// Watches the objects that a label selector chooses until `done`.
pub(super) async fn watch_all<K>(api: Api<K>, labels: &str, done: impl FnMut(&Seen<K>) -> bool)
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    watch(api, Config::default().labels(labels), &mut Seen::new(), done).await;
}

/// Keeps `seen` in step with the cluster until `done` says that it is enough. Connections that break are made
/// anew: only the caller's deadline ends it.
async fn watch<K>(api: Api<K>, config: Config, seen: &mut Seen<K>, mut done: impl FnMut(&Seen<K>) -> bool)
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut events = pin!(watcher(api, config).default_backoff());
    let mut listing = Seen::new();
    // The stream never ends, and an error is followed by another attempt.
    while let Some(event) = events.next().await {
        match event {
            // Until the list is complete nothing can be said of it, and least of all that it is empty.
            Ok(Event::Init) => {
                listing.clear();
                continue;
            }
            Ok(Event::InitApply(object)) => {
                listing.insert(object.name_any(), object);
                continue;
            }
            Ok(Event::InitDone) => *seen = std::mem::take(&mut listing),
            Ok(Event::Apply(object)) => {
                seen.insert(object.name_any(), object);
            }
            Ok(Event::Delete(object)) => {
                seen.remove(&object.name_any());
            }
            Err(_) => continue,
        }
        if done(seen) {
            return;
        }
    }
}

/// A controller that has not seen the latest version yet says nothing of it.
fn daemon_set_is_ready(set: &DaemonSet) -> bool {
    let Some(status) = &set.status else { return false };
    let wanted = status.desired_number_scheduled;
    status.observed_generation >= set.metadata.generation
        && wanted > 0
        && status.updated_number_scheduled.unwrap_or(0) == wanted
        && status.number_ready == wanted
}

fn deployment_is_ready(deployment: &Deployment) -> bool {
    let Some(status) = &deployment.status else { return false };
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    status.observed_generation >= deployment.metadata.generation
        && status.updated_replicas.unwrap_or(0) == wanted
        && status.ready_replicas.unwrap_or(0) == wanted
        && status.replicas.unwrap_or(0) == wanted
}

fn not_ready(node: ClusterNode) -> String {
    if node.message.is_empty() {
        format!("node {} has said nothing yet", node.name)
    } else {
        format!("node {}: {}", node.name, node.message)
    }
}

fn timed_out(awaited: &str, began: Instant, missing: Vec<String>) -> ClusterError {
    let seconds = began.elapsed().as_secs_f64().round() as u64;
    ClusterError::TimedOut { awaited: awaited.to_owned(), seconds, missing }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn daemon_set(observed: i64, wanted: i32, updated: i32, ready: i32) -> DaemonSet {
        serde_json::from_value(json!({
            "metadata": {"name": "a", "generation": 2},
            "status": {
                "observedGeneration": observed, "desiredNumberScheduled": wanted, "currentNumberScheduled": wanted,
                "numberMisscheduled": 0, "updatedNumberScheduled": updated, "numberReady": ready
            }
        }))
        .unwrap()
    }

    #[test]
    fn a_daemon_set_is_ready_on_every_node_and_in_its_latest_version() {
        assert!(daemon_set_is_ready(&daemon_set(2, 3, 3, 3)));
        assert!(!daemon_set_is_ready(&daemon_set(1, 3, 3, 3)), "the controller has not seen the change");
        assert!(!daemon_set_is_ready(&daemon_set(2, 0, 0, 0)), "no node has been counted yet");
        assert!(!daemon_set_is_ready(&daemon_set(2, 3, 2, 3)), "an old pod is left");
        assert!(!daemon_set_is_ready(&daemon_set(2, 3, 3, 2)));
        assert!(!daemon_set_is_ready(&DaemonSet::default()));
    }

    #[test]
    fn a_deployment_is_ready_without_old_pods() {
        let with = |replicas: i32, updated: i32, ready: i32| -> Deployment {
            serde_json::from_value(json!({
                "metadata": {"name": "a", "generation": 1},
                "spec": {"replicas": 2, "selector": {}, "template": {}},
                "status": {
                    "observedGeneration": 1, "replicas": replicas, "updatedReplicas": updated, "readyReplicas": ready
                }
            }))
            .unwrap()
        };
        assert!(deployment_is_ready(&with(2, 2, 2)));
        assert!(!deployment_is_ready(&with(3, 2, 2)), "an old pod is still ending");
        assert!(!deployment_is_ready(&with(2, 2, 1)));
    }
}
