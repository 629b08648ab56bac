//! Removing what killed commands left: `labctl gc`.
//!
//! Owns: deciding which kind labs nobody would miss. Does not own: removing one (`sweep`).

use std::collections::BTreeSet;

use labctl_model::ProviderKind;

use super::sweep::{self, images_in_use};
use super::{check, names};
use crate::docker::{Engine, EngineError, LAB_LABEL, STATE_LABEL};
use crate::netns::state::Phase;
use crate::netns::{GcError, GcReport, GcSweep, LabLock, LockError};
use crate::store::{Record, Store};

pub(super) async fn run(store: &Store) -> Result<GcReport, GcError> {
    let mut report = GcReport::default();
    let listed = store.names().map_err(|source| GcError::Search { path: store.root().to_owned(), source })?;
    let engine = match Engine::connect().await {
        Ok(engine) => engine,
        // Without Docker there is nothing, unless a state file says so.
        Err(EngineError::Missing { .. }) if listed.is_empty() => return Ok(report),
        Err(error) => return Err(error.into()),
    };
    let mut labs: BTreeSet<String> = listed.into_iter().collect();
    labs.extend(labelled(&engine, store).await?);
    for lab in labs {
        if is_of_another_provider(store, &lab) {
            continue;
        }
        match store.lock(&lab) {
            Ok(lock) => look(store, &engine, lock, &mut report).await?,
            Err(LockError::Busy { lab, pid }) => report.busy.push((lab, pid)),
            // A label that is no lab's name is not ours to remove.
            Err(LockError::Name { .. }) => {}
            Err(other) => return Err(other.into()),
        }
    }
    unused_images(&engine, store, &mut report).await?;
    Ok(report)
}

/// Labs that have something in Docker, also without a state file.
async fn labelled(engine: &Engine, store: &Store) -> Result<Vec<String>, EngineError> {
    let state = store.root().display().to_string();
    let containers = engine.containers(&[format!("{STATE_LABEL}={state}")]).await?;
    let networks = engine.networks().await?;
    let networks = networks.into_iter().map(|network| network.labels);
    let labels = containers.into_iter().map(|container| container.labels).chain(networks);
    Ok(labels
        .filter(|labels| labels.get(STATE_LABEL) == Some(&state))
        .filter_map(|labels| labels.get(LAB_LABEL).cloned())
        .collect())
}

fn is_of_another_provider(store: &Store, lab: &str) -> bool {
    let record = store.read(lab).ok().flatten();
    record.is_some_and(|record| record.asked.provider != ProviderKind::Kind)
}

async fn look(
    store: &Store,
    engine: &Engine,
    lock: LabLock,
    report: &mut GcReport,
) -> Result<(), EngineError> {
    let lab = lock.lab().to_owned();
    let record = store.read(&lab);
    let reason = match record {
        Ok(Some(record)) if record.phase == Phase::Ready => missing(engine, store, &record).await?,
        Ok(None)
            if sweep::containers(engine, &lab, store.root()).await?.is_empty()
                && engine.networks_named(&names::cluster(&lab)).await?.is_empty() =>
        {
            // An empty folder that a command which only asked leaves behind goes with the lock.
            return Ok(());
        }
        Ok(_) => Some("the command that made or removed it was killed".to_owned()),
        Err(error) => Some(error.to_string()),
    };
    match reason {
        None => report.kept.push(lab),
        Some(reason) => {
            let outcome = sweep::sweep(store, &lock, &mut |_| {}).await;
            report.swept.push(GcSweep { lab, reason, outcome });
        }
    }
    Ok(())
}

/// A container that the lab cannot be without and that is gone.
async fn missing(engine: &Engine, store: &Store, record: &Record) -> Result<Option<String>, EngineError> {
    let there = sweep::containers(engine, &record.lab, store.root()).await?;
    let wanted = check::wanted(&record.asked);
    let gone = wanted.into_iter().find(|name| !there.iter().any(|container| container.name == *name));
    Ok(gone.map(|name| format!("container {name} is gone")))
}

async fn unused_images(engine: &Engine, store: &Store, report: &mut GcReport) -> Result<(), EngineError> {
    let used = images_in_use(store, None);
    for image in engine.own_images().await?.into_iter().filter(|image| !used.contains(image)) {
        if engine.remove_image(&image).await? {
            report.removed.push(format!("image {image}"));
        }
    }
    Ok(())
}
