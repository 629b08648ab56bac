//! Taking a lab's namespace out of somebody else's cluster.
//!
//! Owns: the order that makes it quick. A namespace that is deleted with pods in it waits for half of their longest
//! grace period before it looks again, so the pods go first, and those who would make them anew before them.

use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{Api, DeleteParams, ListParams, PropagationPolicy};
use serde::de::DeserializeOwned;
use tokio::time::timeout_at;

use super::connect::Cluster;
use super::error::ClusterError;
use super::manifests::LAB_LABEL;
use super::wait::watch_all;

/// Seconds that a pod has to end when its lab goes, and then none: its containers have ended long before some
/// kubelets say so (1.20: up to a minute).
const GRACE: [u32; 2] = [1, 0];
/// How long a kubelet has to say that a pod has ended before its word is not waited for any more.
const WORD: Duration = Duration::from_secs(5);

impl Cluster {
    /// The lab that a namespace is of, by its label; `None` without such a namespace, `Some(None)` for one that is
    /// not labctl's.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn owner_of(&self, namespace: &str) -> Result<Option<Option<String>>, ClusterError> {
        let api: Api<Namespace> = Api::all(self.client());
        let found = self.ask(&format!("look for namespace {namespace}"), || api.get_opt(namespace)).await?;
        Ok(found.map(|found| found.metadata.labels.and_then(|mut labels| labels.remove(LAB_LABEL))))
    }

    /// The namespace and lab of every DaemonSet of this name that labctl made.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn daemon_sets(&self, name: &str) -> Result<Vec<(String, String)>, ClusterError> {
        let api: Api<DaemonSet> = Api::all(self.client());
        let params = ListParams::default().labels(LAB_LABEL).fields(&format!("metadata.name={name}"));
        let found = self.ask("list the DaemonSets", || api.list(&params)).await?;
        let place = |set: DaemonSet| {
            let lab = set.metadata.labels.and_then(|mut labels| labels.remove(LAB_LABEL));
            (set.metadata.namespace.unwrap_or_default(), lab.unwrap_or_default())
        };
        Ok(found.items.into_iter().map(place).collect())
    }

    /// Whether the cluster runs a DaemonSet of this name, whoever made it.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn has_daemon_set(&self, namespace: &str, name: &str) -> Result<bool, ClusterError> {
        let api: Api<DaemonSet> = Api::namespaced(self.client(), namespace);
        let doing = format!("look for DaemonSet {namespace}/{name}");
        Ok(self.ask(&doing, || api.get_opt(name)).await?.is_some())
    }

    /// Ends the pods that a DaemonSet made, and the DaemonSet.
    ///
    /// # Errors
    /// When the API server refuses, or the pods have not ended at the deadline.
    pub async fn end_daemon_set(
        &self,
        namespace: &str,
        name: &str,
        labels: &str,
        deadline: Instant,
    ) -> Result<(), ClusterError> {
        self.delete_all::<DaemonSet>(namespace, &format!("metadata.name={name}")).await?;
        self.end_pods(namespace, labels, deadline).await
    }

    /// Ends everything in a namespace, and the namespace; returns when it is gone.
    ///
    /// # Errors
    /// When the API server refuses, or something is still there at the deadline.
    pub async fn remove_namespace(&self, namespace: &str, deadline: Instant) -> Result<(), ClusterError> {
        self.delete_all::<Deployment>(namespace, "").await?;
        self.delete_all::<DaemonSet>(namespace, "").await?;
        self.end_pods(namespace, "", deadline).await?;
        let manifest = format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {namespace}}}}}");
        self.delete(&manifest).await?;
        self.wait_gone(&manifest, deadline).await
    }

    /// Deletes every object of a kind, its dependents first: nobody makes pods anew meanwhile.
    async fn delete_all<K>(&self, namespace: &str, fields: &str) -> Result<(), ClusterError>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
        K: Clone + DeserializeOwned + std::fmt::Debug,
    {
        let api: Api<K> = Api::namespaced(self.client(), namespace);
        let params = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Foreground),
            ..DeleteParams::default()
        };
        let chosen = ListParams::default().fields(fields);
        let doing = format!("delete the {} of namespace {namespace}", K::plural(&()));
        self.ask(&doing, || api.delete_collection(&params, &chosen)).await.map(drop)
    }

    async fn end_pods(&self, namespace: &str, labels: &str, deadline: Instant) -> Result<(), ClusterError> {
        let began = Instant::now();
        let api: Api<Pod> = Api::namespaced(self.client(), namespace);
        let chosen = ListParams::default().labels(labels);
        let doing = format!("end the pods of namespace {namespace}");
        for grace in GRACE {
            let params = DeleteParams { grace_period_seconds: Some(grace), ..DeleteParams::default() };
            self.ask(&doing, || api.delete_collection(&params, &chosen)).await?;
            let limit = if grace == 0 { deadline } else { deadline.min(Instant::now() + WORD) };
            let gone = watch_all(api.clone(), labels, |pods| pods.is_empty());
            if timeout_at(limit.into(), gone).await.is_ok() {
                return Ok(());
            }
        }
        let left = self.pods(namespace, labels).await?;
        Err(ClusterError::TimedOut {
            awaited: format!("the end of the pods of namespace {namespace}"),
            seconds: began.elapsed().as_secs(),
            missing: left.iter().map(|pod| format!("pod {} is still there", pod.name)).collect(),
        })
    }
}
