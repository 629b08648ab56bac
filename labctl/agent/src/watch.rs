//! Watching the API server: nodes, services and endpoint slices, each in a store that outlives outages.
//!
//! Owns: the client, the choice of the EndpointSlice version, reconnecting. Does not own: what follows from the
//! objects. While the API server is away the stores keep what they had, so the node goes on as it is.

use std::error::Error;
use std::fmt::Debug;
use std::time::Duration;

use futures_util::stream::{BoxStream, SelectAll};
use futures_util::{Stream, StreamExt as _};
use k8s_openapi::api::core::v1::{Node, Service};
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::{WatchStreamExt as _, reflector, reflector::Store, watcher};
use kube::{Client, Config};

use crate::view::{ClusterView, cluster_node, slice};

/// API group of EndpointSlices.
const DISCOVERY: &str = "discovery.k8s.io";
/// Longest wait before the API server is asked again.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// The API server cannot be watched at all.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The address is no URL.
    #[error("use {url} as the API server's URL")]
    Url {
        /// As given.
        url: String,
        /// Why not.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// There are no credentials.
    #[error("find this pod's service account; it needs automountServiceAccountToken")]
    Account {
        /// What is missing.
        #[source]
        source: Box<kube::config::InClusterError>,
    },
    /// The client cannot be made.
    #[error("make a client for {url}")]
    Client {
        /// The API server.
        url: String,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
    /// The cluster has no EndpointSlices.
    #[error("find {DISCOVERY}/v1 or v1beta1 in this cluster; Kubernetes 1.17 or newer has it")]
    NoSlices,
}

/// A client with this container's service account, at the given address: the API's ClusterIP does not work before
/// this agent does.
///
/// # Errors
/// [`WatchError`].
pub(crate) fn connect(url: &str) -> Result<Client, WatchError> {
    let not_a_url = |source| WatchError::Url { url: url.to_owned(), source };
    let mut config =
        Config::incluster_dns().map_err(|source| WatchError::Account { source: Box::new(source) })?;
    config.cluster_url =
        url.parse().map_err(|error| not_a_url(Box::<dyn Error + Send + Sync>::from(error)))?;
    Client::try_from(config)
        .map_err(|source| WatchError::Client { url: url.to_owned(), source: Box::new(source) })
}

/// The newest EndpointSlices that the cluster has; v1 since 1.21, v1beta1 until 1.24.
///
/// # Errors
/// [`WatchError::NoSlices`]; while the API server does not answer it waits and says so with `complain`.
pub(crate) async fn slice_resource(
    client: &Client,
    complain: &mut impl FnMut(&str, &dyn Error),
) -> Result<ApiResource, WatchError> {
    let mut wait = Duration::from_millis(200);
    let groups = loop {
        match client.list_api_groups().await {
            Ok(groups) => break groups,
            Err(error) => complain("ask the API server for its API groups", &error),
        }
        pause(wait).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    };
    let group = groups.groups.into_iter().find(|group| group.name == DISCOVERY);
    let versions = group.map(|group| group.versions).unwrap_or_default();
    let has = |version: &&str| versions.iter().any(|served| served.version == **version);
    let version = ["v1", "v1beta1"].into_iter().find(has).ok_or(WatchError::NoSlices)?;
    let kind = GroupVersionKind::gvk(DISCOVERY, version, "EndpointSlice");
    Ok(ApiResource::from_gvk_with_plural(&kind, "endpointslices"))
}

/// Waits before the next try.
async fn pause(wait: Duration) {
    let _elapsed = tokio::time::timeout(wait, std::future::pending::<()>()).await;
}

/// What the API server said last.
pub(crate) struct Watches {
    nodes: Store<Node>,
    services: Store<Service>,
    slices: Store<DynamicObject>,
    events: SelectAll<BoxStream<'static, Result<(), watcher::Error>>>,
}

impl Watches {
    /// Starts to watch; nothing is asked before [`Self::changed`].
    pub(crate) fn start(client: &Client, slices: &ApiResource) -> Self {
        let (node_store, node_writer) = reflector::store();
        let (service_store, service_writer) = reflector::store();
        let slice_writer = reflector::store::Writer::new(slices.clone());
        let slice_store = slice_writer.as_reader();
        let mut events = SelectAll::new();
        events.push(watch(Api::<Node>::all(client.clone()), node_writer));
        events.push(watch(Api::<Service>::all(client.clone()), service_writer));
        events.push(watch(Api::<DynamicObject>::all_with(client.clone(), slices), slice_writer));
        Self { nodes: node_store, services: service_store, slices: slice_store, events }
    }

    /// Waits for the next change, or for what keeps the API server from telling one.
    pub(crate) async fn changed(&mut self) -> Result<(), watcher::Error> {
        self.events.next().await.expect("a watch does not end")
    }

    /// All objects, once each kind has been listed; the API server is never half read.
    pub(crate) fn view(&self) -> Option<ClusterView> {
        if !(is_listed(&self.nodes) && is_listed(&self.services) && is_listed(&self.slices)) {
            return None;
        }
        let slices = self.slices.state();
        let mut view = ClusterView {
            nodes: self.nodes.state().iter().filter_map(|node| cluster_node(node)).collect(),
            services: self.services.state(),
            slices: slices.iter().filter_map(|object| slice(object)).collect(),
        };
        // Stores have no order.
        view.nodes.sort_by(|a, b| a.name.cmp(&b.name));
        Some(view)
    }
}

fn is_listed<K>(store: &Store<K>) -> bool
where
    K: reflector::Lookup + Clone + 'static,
    K::DynamicType: Eq + std::hash::Hash + Clone,
{
    futures_util::FutureExt::now_or_never(store.wait_until_ready()).is_some()
}

/// Watches one kind into its store. Every item is a change of the store or a failure; after a failure it tries
/// again, a little later each time.
fn watch<K>(
    api: Api<K>,
    writer: reflector::store::Writer<K>,
) -> BoxStream<'static, Result<(), watcher::Error>>
where
    K: kube::Resource + Clone + Debug + Send + Sync + serde::de::DeserializeOwned + 'static,
    K::DynamicType: Eq + std::hash::Hash + Clone + Send + Sync,
{
    let stream = watcher(api, watcher::Config::default()).default_backoff();
    settled(reflector(writer, stream)).boxed()
}

/// Leaves out what changes nothing yet: the objects of a list that is not complete.
fn settled<K: Send + 'static>(
    events: impl Stream<Item = Result<watcher::Event<K>, watcher::Error>> + Send + 'static,
) -> impl Stream<Item = Result<(), watcher::Error>> + Send {
    events.filter_map(|event| async move {
        match event {
            Ok(watcher::Event::Init | watcher::Event::InitApply(_)) => None,
            Ok(_) => Some(Ok(())),
            // 410 Gone: the watch was interrupted for too long, and is about to list anew.
            Err(watcher::Error::WatchError(status)) if status.code == 410 => None,
            Err(error) => Some(Err(error)),
        }
    })
}
