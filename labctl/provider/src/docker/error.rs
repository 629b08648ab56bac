//! What can be wrong with Docker, and what to do about it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why Docker did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// There is no socket.
    #[error(
        "reach Docker: {} does not exist; install Docker (https://docs.docker.com/engine/install) and start it, \
         or point DOCKER_HOST at its socket",
        socket.display()
    )]
    Missing {
        /// Where it was looked for.
        socket: PathBuf,
    },
    /// There is a socket and nobody listens.
    #[error("reach Docker at {}: nothing listens there; start it: systemctl start docker", socket.display())]
    NotRunning {
        /// The socket.
        socket: PathBuf,
    },
    /// The socket may not be opened.
    #[error(
        "reach Docker at {}: permission denied; run as root, or join its group: usermod -aG docker $USER, then \
         log in again",
        socket.display()
    )]
    Permission {
        /// The socket.
        socket: PathBuf,
    },
    /// The socket cannot be opened for another reason.
    #[error("reach Docker at {}: {source}", socket.display())]
    Socket {
        /// The socket.
        socket: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// `DOCKER_HOST` names an engine that is not this machine's.
    #[error(
        "reach Docker at {host}: labs need the engine of this machine; unset DOCKER_HOST or set it to \
         unix:///var/run/docker.sock"
    )]
    Elsewhere {
        /// The value of `DOCKER_HOST`.
        host: String,
    },
    /// It took the connection and said nothing.
    #[error(
        "reach Docker at {}: no answer within {} s; look at its log: journalctl -u docker",
        socket.display(),
        waited.as_secs()
    )]
    NoAnswer {
        /// The socket.
        socket: PathBuf,
        /// How long was waited.
        waited: Duration,
    },
    /// A request was refused.
    #[error("{action}: Docker says: {source}")]
    Request {
        /// What was asked: `make network labctl-dsr`.
        action: String,
        /// Docker's words.
        source: bollard::errors::Error,
    },
    /// The connection broke while data was sent or received.
    #[error("{action}: {source}")]
    Stream {
        /// What was asked.
        action: String,
        /// The system's words.
        source: io::Error,
    },
}

impl EngineError {
    pub(super) fn request<'a>(
        action: impl Into<String> + 'a,
    ) -> impl FnOnce(bollard::errors::Error) -> Self + 'a {
        move |source| Self::Request { action: action.into(), source }
    }

    /// HTTP status of Docker's refusal.
    pub(crate) fn status(&self) -> Option<u16> {
        match self {
            Self::Request { source, .. } => status(source),
            _ => None,
        }
    }
}

/// HTTP status of a refusal.
pub(super) fn status(error: &bollard::errors::Error) -> Option<u16> {
    match error {
        bollard::errors::Error::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}

/// Turns "there is no such thing" into `None`.
pub(super) fn found<T>(
    answer: Result<T, bollard::errors::Error>,
    action: impl Into<String>,
) -> Result<Option<T>, EngineError> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(error) if status(&error) == Some(404) => Ok(None),
        Err(source) => Err(EngineError::Request { action: action.into(), source }),
    }
}
