//! What can go wrong between labctl and a cluster, in words that say where, what and what to do.

use std::error::Error as _;
use std::path::PathBuf;

use kube::config::KubeconfigError;

/// A cluster did not do what was asked. Reads well after "failed to".
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The kubeconfig cannot be used.
    #[error("read kubeconfig {}: {source}; give another with --kubeconfig, another context with --context", path.display())]
    Kubeconfig {
        /// The file, or the list of files.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<KubeconfigError>,
    },
    /// No client can be made of the kubeconfig: a certificate that cannot be read, an unknown way to log in.
    #[error("use the cluster at {server}: {}", words(cause))]
    Client {
        /// URL of the API server.
        server: String,
        /// What is wrong. No source of the error: all that it has to say to people is said.
        cause: Box<kube::Error>,
    },
    /// The API server said nothing.
    #[error(
        "{doing}: the API server at {server} has not answered within {seconds} s{}; is the cluster running, and the context the right one?",
        last.as_ref().map(|l| format!(" (last: {l})")).unwrap_or_default()
    )]
    Silent {
        /// What was wanted.
        doing: String,
        /// URL of the API server.
        server: String,
        /// How long labctl waited.
        seconds: u64,
        /// The last error of the connection, if there was one.
        last: Option<String>,
    },
    /// The API server said no, or could not be reached.
    #[error("{doing}: {}", words(cause))]
    Refused {
        /// What was wanted.
        doing: String,
        /// The API server's words. No source of the error: all that they have to say to people is said.
        cause: Box<kube::Error>,
    },
    /// A manifest is not one.
    #[error("read a manifest: {reason}")]
    Manifest {
        /// What is wrong with it.
        reason: String,
    },
    /// A command in a pod failed.
    #[error("run `{command}` in pod {pod}: {said}")]
    Command {
        /// The command.
        command: String,
        /// `namespace/pod`.
        pod: String,
        /// Its last words, or the API server's.
        said: String,
    },
    /// A wait was over before its condition held.
    #[error("wait for {awaited}: not so after {seconds} s{}", listed(missing))]
    TimedOut {
        /// The condition.
        awaited: String,
        /// How long labctl waited.
        seconds: u64,
        /// What was missing, one sentence each, with the cluster's own words.
        missing: Vec<String>,
    },
    /// A container ends again and again: waiting longer would not help.
    #[error("wait for {awaited}: {trouble}")]
    Crashing {
        /// The condition.
        awaited: String,
        /// Pod, node, exit code and the container's last words.
        trouble: String,
    },
}

impl ClusterError {
    /// Whether the API server knows no such object.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { cause, .. } if code(cause) == Some(404))
    }
}

/// HTTP status of an answer of the API server; `None` if there was no answer.
pub(super) fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

/// Whether the same request may well succeed a moment later: no answer, or one that says so. A conflict is one:
/// somebody else changed the object, or an object of the same name is about to go.
pub(super) fn is_transient(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => matches!(status.code, 409 | 429 | 500 | 502 | 503 | 504),
        kube::Error::HyperError(_) | kube::Error::Service(_) | kube::Error::ReadEvents(_) => true,
        _ => false,
    }
}

/// The API server's own message, or the reasons behind a failed connection, the deepest last.
pub(super) fn words(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        let message = if status.message.is_empty() { &status.reason } else { &status.message };
        return format!("the API server refuses: {message} ({})", status.code);
    }
    let mut parts = vec![error.to_string()];
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if parts.iter().all(|part| !part.contains(&text)) {
            parts.push(text);
        }
        cause = error.source();
    }
    parts.join(": ")
}

fn listed(missing: &[String]) -> String {
    missing.iter().map(|line| format!("\n  {line}")).collect()
}
