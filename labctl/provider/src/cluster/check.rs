//! Whether a lab in a cluster still is as `up` left it.
//!
//! Owns: comparing what `up` made with Docker and the cluster. Does not own: the datapath on the nodes, whose status is a
//! role's (`labctl node agent-status`).

use std::fmt::Display;

use labctl_model::Plan;

use crate::blocking;
use crate::docker::Engine;
use crate::kind::names;
use crate::kubernetes::{Access, Cluster, ClusterError, manifests};
use crate::lab::Lab;
use crate::netns::Problem;
use crate::store::Store;

/// What differs.
pub(crate) fn lab(lab: &Lab) -> Vec<Problem> {
    blocking::run(problems(lab))
}

async fn problems(lab: &Lab) -> Vec<Problem> {
    let mut problems = Vec::new();
    match client(lab.name()).await {
        Ok(found) => problems.extend(found),
        Err(error) => problems.push(no_answer(&error)),
    }
    let store = lab.dir().parent().map(Store::in_dir);
    let access = store.and_then(|store| store.read(lab.name()).ok()?).map(|record| record.access);
    match access {
        Some(access) => match not_ready(&access, lab).await {
            Ok(late) => problems.extend(late),
            Err(error) => problems.push(no_answer(&error)),
        },
        None => problems.push(no_answer(&"its state file cannot be read")),
    }
    problems
}

fn no_answer(error: &dyn Display) -> Problem {
    Problem::NoAnswer { reason: error.to_string() }
}

async fn client(lab: &str) -> Result<Option<Problem>, crate::docker::EngineError> {
    let container = names::client(lab);
    let found = Engine::connect().await?.containers(&[]).await?;
    Ok(match found.into_iter().find(|found| found.name == container) {
        None => Some(Problem::ContainerMissing { container }),
        Some(found) if !found.is_running() => {
            Some(Problem::ContainerStopped { container, state: found.state })
        }
        Some(_) => None,
    })
}

/// Capture pods, agents and backends that Kubernetes does not call ready.
async fn not_ready(access: &Access, lab: &Lab) -> Result<Vec<Problem>, ClusterError> {
    let (asked, plan) = (lab.asked(), lab.plan());
    let cluster = Cluster::connect(access).await?;
    let namespace = manifests::namespace(asked);
    let late = |what: String| Problem::NotReady { what };
    let mut wanted = vec![(manifests::capture_labels(asked), "the capture pod")];
    if !asked.datapath.external {
        wanted.push((manifests::agent_labels(asked), "the agent"));
    }
    let mut problems = Vec::new();
    for (labels, what) in wanted {
        let pods = cluster.pods(&namespace, &labels).await?;
        let is_on = |node: &str| pods.iter().any(|pod| pod.node.as_deref() == Some(node) && pod.ready);
        let lacking = plan.nodes.iter().filter(|node| !is_on(&node.name));
        problems.extend(lacking.map(|node| late(format!("{what} on {}", node.name))));
    }
    let missing = missing_backends(asked, plan);
    if missing > 0 {
        problems.push(late(format!("{missing} of {} backends", asked.backends().count())));
    }
    Ok(problems)
}

/// Of our own; somebody else's Service may have as many as it likes, but one.
fn missing_backends(asked: &Plan, plan: &Plan) -> usize {
    let wanted = if asked.service.foreign.is_some() { 1 } else { asked.backends().count() };
    wanted.saturating_sub(plan.backends().count())
}
