//! A short command in a pod: its whole output at once.
//!
//! Owns: starting it by the API server's exec and reading how it ended. Does not own: roles that stream (`relay`).

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::api::{Api, AttachParams};
use tokio::io::AsyncReadExt;
use tokio::time::timeout_at;

use super::connect::Cluster;
use super::error::ClusterError;

/// How long a short command may take.
const LIMIT: Duration = Duration::from_secs(20);

impl Cluster {
    /// Runs a command in a container of a pod and returns what it wrote to stdout.
    ///
    /// # Errors
    /// [`ClusterError::Command`] with its last words when it fails, is not there or does not end.
    pub async fn exec(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        argv: &[&str],
    ) -> Result<Vec<u8>, ClusterError> {
        let failed = |said: String| ClusterError::Command {
            command: argv.join(" "),
            pod: format!("{namespace}/{pod}"),
            said,
        };
        let run = self.run(namespace, pod, container, argv);
        match timeout_at((Instant::now() + LIMIT).into(), run).await {
            Ok(Ok((stdout, _, true))) => Ok(stdout),
            Ok(Ok((_, said, false))) => Err(failed(said)),
            Ok(Err(error)) => Err(failed(super::error::words(&error))),
            Err(_) => Err(failed(format!("it has not ended within {} s", LIMIT.as_secs()))),
        }
    }

    /// Stdout, what there is to say, and whether it ended well.
    async fn run(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        argv: &[&str],
    ) -> kube::Result<(Vec<u8>, String, bool)> {
        let api: Api<Pod> = Api::namespaced(self.client(), namespace);
        let params = AttachParams::default().container(container).stdin(false).stdout(true).stderr(true);
        let mut attached = api.exec(pod, argv.iter().copied(), &params).await?;
        let status = attached.take_status();
        let (stdout, stderr) = (attached.stdout(), attached.stderr());
        let read = async |stream: Option<_>| {
            let mut bytes = Vec::new();
            let Some(mut stream) = stream else { return Ok(bytes) };
            AsyncReadExt::read_to_end(&mut stream, &mut bytes).await.map_err(kube::Error::ReadEvents)?;
            Ok::<_, kube::Error>(bytes)
        };
        let (stdout, stderr) = tokio::try_join!(read(stdout), read(stderr))?;
        let status = match status {
            Some(status) => status.await,
            None => None,
        };
        let well = status.as_ref().is_some_and(|status| status.status.as_deref() == Some("Success"));
        Ok((stdout, last_words(&stderr, status.as_ref()), well))
    }
}

/// The last line of stderr, else what the API server says.
fn last_words(stderr: &[u8], status: Option<&Status>) -> String {
    let text = String::from_utf8_lossy(stderr);
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty());
    let message = status.and_then(|status| status.message.as_deref());
    line.or(message).unwrap_or("the connection to the API server ended").to_owned()
}
