//! Removing what killed commands left in clusters: `labctl gc`.
//!
//! Owns: deciding which labs nobody would miss. Does not own: removing one (`sweep`).

use labctl_model::ProviderKind;

use super::sweep;
use crate::docker::Engine;
use crate::kind::names;
use crate::kubernetes::{Cluster, ClusterError, manifests};
use crate::netns::state::Phase;
use crate::netns::{GcError, GcReport, GcSweep, LabLock, LockError};
use crate::store::{Record, Store};

pub(super) async fn run(store: &Store) -> Result<GcReport, GcError> {
    let mut report = GcReport::default();
    let listed = store.names().map_err(|source| GcError::Search { path: store.root().to_owned(), source })?;
    for lab in listed {
        // One that cannot be read is the kind provider's to judge: it sweeps by labels.
        let record = store.read(&lab).ok().flatten();
        let Some(record) = record.filter(|record| record.asked.provider == ProviderKind::Cluster) else {
            continue;
        };
        match store.lock(&lab) {
            Ok(lock) => look(store, lock, &record, &mut report).await?,
            Err(LockError::Busy { lab, pid }) => report.busy.push((lab, pid)),
            Err(other) => return Err(other.into()),
        }
    }
    Ok(report)
}

async fn look(
    store: &Store,
    lock: LabLock,
    record: &Record,
    report: &mut GcReport,
) -> Result<(), crate::docker::EngineError> {
    let reason = if record.phase == Phase::Ready {
        missing(record).await?
    } else {
        Some("the command that made or removed it was killed".to_owned())
    };
    let lab = record.lab.clone();
    match reason {
        None => report.kept.push(lab),
        Some(reason) => {
            let outcome = sweep::sweep(store, &lock, &mut |_| {}).await;
            report.swept.push(GcSweep { lab, reason, outcome });
        }
    }
    Ok(())
}

/// What the lab cannot be without and that is gone. A cluster that does not answer may come back.
async fn missing(record: &Record) -> Result<Option<String>, crate::docker::EngineError> {
    let client = names::client(&record.lab);
    if !Engine::connect().await?.has_container(&client).await? {
        return Ok(Some(format!("container {client} is gone")));
    }
    let namespace = manifests::namespace(&record.asked);
    Ok(match has_namespace(record, &namespace).await {
        Ok(false) => Some(format!("namespace {namespace} is gone")),
        Ok(true) => None,
        Err(error @ ClusterError::Kubeconfig { .. }) => Some(error.to_string()),
        Err(_) => None,
    })
}

async fn has_namespace(record: &Record, namespace: &str) -> Result<bool, ClusterError> {
    let cluster = Cluster::connect(&record.access.pinned()?).await?;
    Ok(cluster.owner_of(namespace).await?.is_some())
}
