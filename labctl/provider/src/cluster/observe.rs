//! A lab in a cluster as it is now: nodes, pods and addresses, asked of the API server, of the nodes and of the client.
//!
//! Owns: the questions, all at once. Does not own: what the answers mean for the plan.

use futures_util::future::try_join_all;
use labctl_model::{Plan, TrafficPolicy};

use super::placement::{self, PlacementError};
use crate::docker::{Engine, EngineError};
use crate::host::Place;
use crate::inspect::Inspection;
use crate::kind::names;
use crate::kubernetes::observe::{self, SeenNode, Sight};
use crate::kubernetes::{Access, Cluster, ClusterError, ClusterPod, SightError, manifests};
use crate::store::Observed;

/// Why a lab cannot be looked into.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// Docker does not run the look into the client.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The cluster does not answer, or a look into a node failed.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The cluster has lost nodes.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// What was seen is not the lab.
    #[error(transparent)]
    Sight(#[from] SightError),
    /// A node has no capture pod that runs.
    #[error("look into node {node}: no capture pod of the lab is ready there")]
    Blind {
        /// The node.
        node: String,
    },
    /// An answer cannot be read.
    #[error("look into {place}: {said}")]
    Inspect {
        /// Pod or container.
        place: String,
        /// What is wrong.
        said: String,
    },
}

/// Asks everybody. Changes nothing.
pub(super) async fn observe(engine: &Engine, access: &Access, asked: &Plan) -> Result<Observed, LookError> {
    let cluster = Cluster::connect(access).await?;
    let namespace = manifests::namespace(asked);
    let labels = manifests::capture_labels(asked);
    let deployed = async { Ok::<_, LookError>(cluster.deployed(asked).await?) };
    let watchers = async { Ok(cluster.pods(&namespace, &labels).await?) };
    let (deployed, watchers) = tokio::try_join!(deployed, watchers)?;
    let placed = placement::plan(asked, &deployed.nodes)?;
    let looks = placed.nodes.iter().map(|node| look(&cluster, access, &placed, &node.name, &watchers));
    let client = names::client(&asked.lab);
    let (nodes, client_inspection) =
        tokio::try_join!(try_join_all(looks), inspect_client(engine, &client, &asked.lab))?;
    let with_backend: Vec<_> = deployed.pods.iter().filter_map(|pod| pod.node.clone()).collect();
    let local_only = deployed.service.external_traffic_policy == TrafficPolicy::Local;
    let sight = Sight {
        via: placement::via(&placed, &with_backend, local_only),
        deployed,
        nodes,
        client: Place::Container { name: client, program: manifests::PROGRAM.to_owned() },
        client_inspection,
    };
    Ok(observe::observe(asked, &sight)?)
}

/// A node by its capture pod.
async fn look(
    cluster: &Cluster,
    access: &Access,
    plan: &Plan,
    node: &str,
    watchers: &[ClusterPod],
) -> Result<SeenNode, LookError> {
    let here = watchers.iter().find(|pod| pod.node.as_deref() == Some(node) && pod.ready && !pod.terminating);
    let pod = here.ok_or_else(|| LookError::Blind { node: node.to_owned() })?;
    let argv = [manifests::PROGRAM, "node", "inspect", "--lab", &plan.lab, "--offloads", "keep"];
    let said = cluster.exec(&pod.namespace, &pod.name, manifests::CAPTURE_CONTAINER, &argv).await?;
    Ok(SeenNode {
        name: node.to_owned(),
        cluster_name: node.to_owned(),
        place: place(access, pod),
        inspection: read(&said, &pod.name)?,
    })
}

fn place(access: &Access, pod: &ClusterPod) -> Place {
    Place::Pod {
        kubeconfig: access.kubeconfig.clone(),
        context: access.context.clone(),
        namespace: pod.namespace.clone(),
        pod: pod.name.clone(),
        container: manifests::CAPTURE_CONTAINER.to_owned(),
        program: manifests::PROGRAM.to_owned(),
    }
}

async fn inspect_client(engine: &Engine, container: &str, lab: &str) -> Result<Inspection, LookError> {
    let argv = [manifests::PROGRAM, "node", "inspect", "--lab", lab, "--offloads", "keep"];
    let output = engine.exec(container, &argv, None).await?;
    if !output.is_success() {
        return Err(LookError::Inspect { place: container.to_owned(), said: output.complaint() });
    }
    read(&output.stdout, container)
}

fn read(said: &[u8], place: &str) -> Result<Inspection, LookError> {
    serde_json::from_slice(said).map_err(|error| LookError::Inspect {
        place: place.to_owned(),
        said: format!("its answer cannot be read: {error}"),
    })
}
