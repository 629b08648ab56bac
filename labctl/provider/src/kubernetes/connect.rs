//! Reaching a cluster: kubeconfig, context, a client, and how long to be patient with it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use http::Request;
use k8s_openapi::api::core::v1::Endpoints;
use kube::api::Api;
use kube::client::ClientBuilder;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use serde::{Deserialize, Serialize};
use tokio::time::{MissedTickBehavior, interval, timeout_at};

use super::error::{ClusterError, code, is_transient, words};

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(5);
/// How long one request may take, with its repetitions.
const REQUEST: Duration = Duration::from_secs(15);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(100);

/// How to reach a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// The kubeconfig; several files joined by colons are merged, as kubectl does with `$KUBECONFIG`.
    pub kubeconfig: PathBuf,
    /// Context of the kubeconfig; `None` is its current one.
    pub context: Option<String>,
}

impl Access {
    /// The kubeconfig itself.
    ///
    /// # Errors
    /// [`ClusterError::Kubeconfig`] when a file cannot be read.
    pub(super) fn read(&self) -> Result<Kubeconfig, ClusterError> {
        let files: Vec<_> =
            std::env::split_paths(&self.kubeconfig).filter(|p| !p.as_os_str().is_empty()).collect();
        let several = files.len() > 1;
        // Of a list kubectl leaves out what is not there; a single file must be.
        let files = files.into_iter().filter(|path| !several || path.exists());
        let merged =
            files.map(Kubeconfig::read_from).try_fold(Kubeconfig::default(), |all, one| all.merge(one?));
        merged.map_err(|source| self.unusable(source))
    }

    /// The same cluster, whatever becomes of the kubeconfig's current context: one absolute file and a context.
    ///
    /// # Errors
    /// [`ClusterError::Kubeconfig`] when a file cannot be read or has no such context.
    pub fn pinned(&self) -> Result<Self, ClusterError> {
        let context = self.context_name()?;
        let merged = self.read()?;
        if !merged.contexts.iter().any(|known| known.name == context) {
            return Err(self.unusable(KubeconfigError::LoadContext(context)));
        }
        let has = |path: &PathBuf| {
            let file = Kubeconfig::read_from(path).ok();
            file.is_some_and(|file| file.contexts.iter().any(|known| known.name == context))
        };
        let file = std::env::split_paths(&self.kubeconfig).find(has);
        let kubeconfig = file.unwrap_or_else(|| self.kubeconfig.clone());
        let kubeconfig = std::path::absolute(&kubeconfig).unwrap_or(kubeconfig);
        Ok(Self { kubeconfig, context: Some(context) })
    }

    /// Name of the context that is meant: the one given, else the kubeconfig's current one.
    ///
    /// # Errors
    /// [`ClusterError::Kubeconfig`] when a file cannot be read or names no current context.
    pub fn context_name(&self) -> Result<String, ClusterError> {
        let given = match &self.context {
            Some(context) => Some(context.clone()),
            None => self.read()?.current_context.filter(|name| !name.is_empty()),
        };
        given.ok_or_else(|| self.unusable(KubeconfigError::CurrentContextNotSet))
    }

    pub(super) fn unusable(&self, source: KubeconfigError) -> ClusterError {
        ClusterError::Kubeconfig { path: self.kubeconfig.clone(), source: Box::new(source) }
    }
}

/// A cluster that can be asked. Belongs to the tokio runtime that it was made in.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    server: String,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("server", &self.server).finish_non_exhaustive()
    }
}

impl Cluster {
    /// A client for the cluster; nothing is sent yet.
    ///
    /// # Errors
    /// An unusable kubeconfig.
    pub async fn connect(access: &Access) -> Result<Self, ClusterError> {
        let options = KubeConfigOptions { context: access.context.clone(), ..KubeConfigOptions::default() };
        let mut config = Config::from_custom_kubeconfig(access.read()?, &options)
            .await
            .map_err(|source| access.unusable(source))?;
        config.connect_timeout = Some(CONNECT);
        let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let client = ClientBuilder::try_from(config)
            .map_err(|source| ClusterError::Client { server: server.clone(), cause: Box::new(source) })?
            .build();
        Ok(Self { client, server })
    }

    /// kube's own client, for what this module has no word for.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// URL of the API server, without a slash at the end.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Waits until the API server calls itself ready.
    ///
    /// # Errors
    /// [`ClusterError::Silent`] with the last words of the connection when `deadline` passes.
    pub async fn wait_for_api(&self, deadline: Instant) -> Result<(), ClusterError> {
        let ready = || async {
            let request = Request::get("/readyz").body(Vec::new()).map_err(kube::Error::HttpError)?;
            match self.client.request_text(request).await {
                // It answers, but not whom we are: what we need of it is asked for later.
                Err(error) if matches!(code(&error), Some(401 | 403 | 404)) => Ok(()),
                answer => answer.map(drop),
            }
        };
        self.ask_until("wait for the API server", deadline, ready).await
    }

    /// Version of the API server, `v1.20.2`.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn version(&self) -> Result<String, ClusterError> {
        let version = self.ask("ask for the version", || self.client.apiserver_version()).await?;
        Ok(version.git_version)
    }

    /// URL by which nodes reach the API server without the help of any Service: the address behind the Service
    /// `default/kubernetes`.
    ///
    /// # Errors
    /// When the API server does not answer, or does not publish an address.
    pub async fn api_endpoint(&self) -> Result<String, ClusterError> {
        let api: Api<Endpoints> = Api::namespaced(self.client(), "default");
        let found = self.ask("read the endpoints of default/kubernetes", || api.get("kubernetes")).await?;
        let subset = found.subsets.into_iter().flatten().next().unwrap_or_default();
        let address = subset.addresses.into_iter().flatten().next().map(|address| address.ip);
        let port = subset.ports.into_iter().flatten().next().map(|port| port.port);
        match (address, port) {
            (Some(address), Some(port)) => Ok(format!("https://{address}:{port}")),
            _ => Err(ClusterError::Manifest {
                reason: "the endpoints of default/kubernetes are empty: the API server publishes no address"
                    .to_owned(),
            }),
        }
    }

    /// Sends a request, again while the answer is of the kind that passes. Only for requests that may be
    /// repeated.
    pub(super) async fn ask<T, F>(&self, doing: &str, request: impl Fn() -> F) -> Result<T, ClusterError>
    where
        F: Future<Output = kube::Result<T>>,
    {
        self.ask_until(doing, Instant::now() + REQUEST, request).await
    }

    async fn ask_until<T, F>(
        &self,
        doing: &str,
        deadline: Instant,
        request: impl Fn() -> F,
    ) -> Result<T, ClusterError>
    where
        F: Future<Output = kube::Result<T>>,
    {
        let (began, mut last) = (Instant::now(), None);
        let mut attempts = interval(PAUSE);
        attempts.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let answered = timeout_at(deadline.into(), async {
            loop {
                attempts.tick().await;
                match request().await {
                    Err(error) if is_transient(&error) => last = Some(error),
                    answer => return answer,
                }
            }
        });
        match answered.await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(source)) => Err(refused(doing, source)),
            Err(_) => Err(match last {
                // It did answer, and goes on saying no.
                Some(source) if code(&source).is_some() => refused(doing, source),
                last => ClusterError::Silent {
                    doing: doing.to_owned(),
                    server: self.server.clone(),
                    seconds: began.elapsed().as_secs_f64().round() as u64,
                    last: last.as_ref().map(words),
                },
            }),
        }
    }
}

fn refused(doing: &str, source: kube::Error) -> ClusterError {
    ClusterError::Refused { doing: doing.to_owned(), cause: Box::new(source) }
}
