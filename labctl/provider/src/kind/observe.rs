//! A kind lab as it came out: nodes, pods and addresses, asked of Docker, of the nodes and of the cluster.
//!
//! Owns: the questions, all at once. Does not own: what the answers mean for the plan.

use futures_util::future::try_join_all;
use labctl_model::Plan;

use super::names;
use crate::docker::{Engine, EngineError};
use crate::host::Place;
use crate::inspect::Inspection;
use crate::kubernetes::observe::{self, SeenNode, Sight};
use crate::kubernetes::{Access, Cluster, ClusterError, SightError};
use crate::store::Observed;

/// Where the nodes have labctl.
pub(crate) const NODE_PROGRAM: &str = "/usr/local/bin/labctl";
/// Where our image has it.
pub(crate) const IMAGE_PROGRAM: &str = "/labctl";

/// Why a lab cannot be looked into.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// Docker does not run the look.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The cluster does not answer.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// What was seen is not the lab.
    #[error(transparent)]
    Sight(#[from] SightError),
    /// The look failed.
    #[error("look into {container}: {said}")]
    Inspect {
        /// The container.
        container: String,
        /// The last words of `labctl node inspect`.
        said: String,
    },
}

/// Asks everybody. Switches offloads off where the plan says so.
pub(super) async fn observe(engine: &Engine, access: &Access, plan: &Plan) -> Result<Observed, ObserveError> {
    let containers: Vec<_> = names::nodes(plan);
    let client = names::client(&plan.lab);
    let looks = containers.iter().map(|(_, container)| inspect(engine, container, NODE_PROGRAM, plan));
    let deployed = async { Ok(Cluster::connect(access).await?.deployed(plan).await?) };
    let (inspections, client_inspection, deployed) =
        tokio::try_join!(try_join_all(looks), inspect(engine, &client, IMAGE_PROGRAM, plan), deployed)?;
    let place = |container: &str, program: &str| Place::Container {
        name: container.to_owned(),
        program: program.to_owned(),
    };
    let seen = |((name, container), inspection): (&(String, String), Inspection)| SeenNode {
        name: name.clone(),
        cluster_name: container.clone(),
        place: place(container, NODE_PROGRAM),
        inspection,
    };
    let sight = Sight {
        deployed,
        nodes: containers.iter().zip(inspections).map(seen).collect(),
        client: place(&client, IMAGE_PROGRAM),
        client_inspection,
        via: plan.traffic.via.clone(),
    };
    Ok(observe::observe(plan, &sight)?)
}

/// Runs `labctl node inspect` in a container.
async fn inspect(
    engine: &Engine,
    container: &str,
    program: &str,
    plan: &Plan,
) -> Result<Inspection, ObserveError> {
    let offloads = if plan.offloads { "keep" } else { "off" };
    let argv = [program, "node", "inspect", "--lab", &plan.lab, "--offloads", offloads];
    let output = engine.exec(container, &argv, None).await?;
    let failed = |said: String| ObserveError::Inspect { container: container.to_owned(), said };
    if !output.is_success() {
        return Err(failed(output.complaint()));
    }
    serde_json::from_slice(&output.stdout).map_err(|e| failed(format!("its answer cannot be read: {e}")))
}
