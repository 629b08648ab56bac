//! Applying and deleting manifests, whatever kinds they hold.
//!
//! Owns: server-side apply under labctl's own field manager. Does not own: what the manifests say (`manifests`).

use std::time::Instant;

use kube::api::{Api, DeleteParams, Patch, PatchParams, PropagationPolicy};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use serde_json::Value;
use tokio::time::{interval, timeout_at};

use super::connect::Cluster;
use super::error::{ClusterError, code};

/// Owner of the fields that labctl sets.
const FIELD_MANAGER: &str = "labctl";
/// Between two looks whether an object is gone.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

/// An object of a manifest, and where the API server keeps it.
struct Object {
    api: Api<DynamicObject>,
    name: String,
    /// `DaemonSet labctl/labctl-agent`
    title: String,
    body: DynamicObject,
}

impl Cluster {
    /// Makes every object of the YAML text as it says, in its order, or changes it to that. Fields that others
    /// own are taken over.
    ///
    /// # Errors
    /// The first object that is none, or that the API server refuses; those before it are made.
    pub async fn apply(&self, yaml: &str) -> Result<(), ClusterError> {
        let params = PatchParams::apply(FIELD_MANAGER).force();
        for object in self.objects(yaml)? {
            let patch = Patch::Apply(&object.body);
            let doing = format!("apply {}", object.title);
            self.ask(&doing, || object.api.patch(&object.name, &params, &patch)).await?;
        }
        Ok(())
    }

    /// Deletes every object of the YAML text, the last first. Objects that are not there are no error; those
    /// that take time to end go on ending: see [`Cluster::wait_gone`].
    ///
    /// # Errors
    /// The first object that the API server will not delete.
    pub async fn delete(&self, yaml: &str) -> Result<(), ClusterError> {
        let params = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Background),
            ..DeleteParams::default()
        };
        for object in self.objects(yaml)?.iter().rev() {
            let doing = format!("delete {}", object.title);
            let delete = || async {
                match object.api.delete(&object.name, &params).await {
                    Err(error) if code(&error) == Some(404) => Ok(()),
                    answer => answer.map(drop),
                }
            };
            self.ask(&doing, delete).await?;
        }
        Ok(())
    }

    /// Waits until no object of the YAML text is there any more.
    ///
    /// # Errors
    /// [`ClusterError::TimedOut`] with those that still are.
    pub async fn wait_gone(&self, yaml: &str, deadline: Instant) -> Result<(), ClusterError> {
        let began = Instant::now();
        for object in self.objects(yaml)? {
            let gone = timeout_at(deadline.into(), self.gone(&object)).await;
            gone.map_err(|_| ClusterError::TimedOut {
                awaited: format!("the end of {}", object.title),
                seconds: began.elapsed().as_secs(),
                missing: vec![format!("{} is still there", object.title)],
            })??;
        }
        Ok(())
    }

    async fn gone(&self, object: &Object) -> Result<(), ClusterError> {
        let mut looks = interval(PAUSE);
        let doing = format!("look for {}", object.title);
        loop {
            looks.tick().await;
            if self.ask(&doing, || object.api.get_metadata_opt(&object.name)).await?.is_none() {
                return Ok(());
            }
        }
    }

    /// Every object of the YAML text with its place.
    fn objects(&self, yaml: &str) -> Result<Vec<Object>, ClusterError> {
        documents(yaml)?.into_iter().map(|document| self.object(document)).collect()
    }

    fn object(&self, document: Value) -> Result<Object, ClusterError> {
        let body: DynamicObject = serde_json::from_value(document)
            .map_err(|error| ClusterError::Manifest { reason: error.to_string() })?;
        let lacks = |field| ClusterError::Manifest { reason: format!("an object has no {field}") };
        let types = body.types.clone().ok_or_else(|| lacks("kind"))?;
        let name = body.metadata.name.clone().ok_or_else(|| lacks("name"))?;
        let kind = GroupVersionKind::try_from(&types)
            .map_err(|error| ClusterError::Manifest { reason: error.to_string() })?;
        // Every kind of our manifests has a regular plural: no discovery is needed.
        let resource = ApiResource::from_gvk(&kind);
        // Our manifests write the namespace of everything that has one.
        let (api, title) = match &body.metadata.namespace {
            Some(namespace) => (
                Api::namespaced_with(self.client(), namespace, &resource),
                format!("{} {namespace}/{name}", kind.kind),
            ),
            None => (Api::all_with(self.client(), &resource), format!("{} {name}", kind.kind)),
        };
        Ok(Object { api, name, title, body })
    }
}

/// The documents of a YAML text, empty ones left out.
fn documents(yaml: &str) -> Result<Vec<Value>, ClusterError> {
    let all: Vec<Value> = serde_saphyr::from_multiple(yaml)
        .map_err(|error| ClusterError::Manifest { reason: error.to_string() })?;
    Ok(all.into_iter().filter(|document| !document.is_null()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_told_apart() {
        let found = documents("---\nkind: A\n---\n# nothing\n---\nkind: B\nn: 32000\n").unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found[1]["n"], 32000);
        assert!(documents("a: [").is_err());
    }
}
