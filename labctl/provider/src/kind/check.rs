//! Whether a kind lab still is as `up` left it.
//!
//! Owns: comparing what `up` made with Docker and the cluster. Does not own: the datapath on the nodes, whose status is a
//! role's (`labctl node agent-status`).

use std::path::Path;

use labctl_model::Plan;

use super::names;
use crate::blocking;
use crate::docker::{Container, Engine};
use crate::kubernetes::{Access, Cluster, ClusterError, manifests};
use crate::lab::Lab;
use crate::netns::Problem;
use crate::store;

/// What differs.
pub(crate) fn lab(lab: &Lab) -> Vec<Problem> {
    blocking::run(problems(lab))
}

async fn problems(lab: &Lab) -> Vec<Problem> {
    let engine = match Engine::connect().await {
        Ok(engine) => engine,
        Err(error) => return vec![no_answer(&error)],
    };
    let state_dir = lab.dir().parent().unwrap_or_else(|| Path::new("/"));
    let mut problems = match super::sweep::containers(&engine, lab.name(), state_dir).await {
        Ok(there) => wanted(lab.asked()).iter().filter_map(|name| container(name, &there)).collect(),
        Err(error) => vec![no_answer(&error)],
    };
    // An API server whose node is down would only be waited for.
    if problems.is_empty() {
        let access = Access { kubeconfig: store::kubeconfig(lab.dir()), context: None };
        match not_ready(&access, lab.asked()).await {
            Ok(late) => problems.extend(late),
            Err(error) => problems.push(no_answer(&error)),
        }
    }
    problems
}

fn no_answer(error: &dyn std::fmt::Display) -> Problem {
    Problem::NoAnswer { reason: error.to_string() }
}

/// Containers of the lab: every node's, and the client's.
pub(super) fn wanted(plan: &Plan) -> Vec<String> {
    let nodes = names::nodes(plan).into_iter().map(|(_, container)| container);
    nodes.chain([names::client(&plan.lab)]).collect()
}

fn container(name: &str, there: &[Container]) -> Option<Problem> {
    let container = name.to_owned();
    match there.iter().find(|c| c.name == name) {
        None => Some(Problem::ContainerMissing { container }),
        Some(found) if !found.is_running() => {
            Some(Problem::ContainerStopped { container, state: found.state.clone() })
        }
        Some(_) => None,
    }
}

/// Nodes, agents and backends that Kubernetes does not call ready.
async fn not_ready(access: &Access, plan: &Plan) -> Result<Vec<Problem>, ClusterError> {
    let cluster = Cluster::connect(access).await?;
    let namespace = manifests::namespace(plan);
    let (agents, backends) = (manifests::agent_labels(plan), manifests::backend_labels(plan));
    let (nodes, agents, backends) = tokio::try_join!(
        cluster.nodes(),
        cluster.pods(&namespace, &agents),
        cluster.pods(&namespace, &backends)
    )?;
    let late = |what: String| Problem::NotReady { what };
    let mut problems = Vec::new();
    for (node, container) in names::nodes(plan) {
        if !nodes.iter().any(|n| n.name == container && n.ready) {
            problems.push(late(format!("node {node}")));
        }
        if !agents.iter().any(|pod| pod.node.as_ref() == Some(&container) && pod.ready) {
            problems.push(late(format!("the agent on {node}")));
        }
        let wanted = plan.node(&node).map_or(0, |node| node.pods.len());
        let ready = backends.iter().filter(|pod| pod.node.as_ref() == Some(&container) && pod.ready).count();
        if ready < wanted {
            problems.push(late(format!("{} of {wanted} backends on {node}", wanted - ready)));
        }
    }
    Ok(problems)
}
