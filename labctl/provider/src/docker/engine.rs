//! Finding the engine.

use std::env;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bollard::{API_DEFAULT_VERSION, Docker};
use tokio::time::timeout;

use super::error::EngineError;

const DEFAULT_SOCKET: &str = "/var/run/docker.sock";
/// A healthy engine answers in milliseconds.
const ANSWER: Duration = Duration::from_secs(5);
/// Of a single request; loading an image on a busy machine is the slowest.
const REQUEST_SECONDS: u64 = 120;

/// A connection to the Docker engine of this machine; clones share it.
#[derive(Clone, Debug)]
pub struct Engine {
    pub(super) docker: Docker,
    socket: PathBuf,
}

impl Engine {
    /// Connects to `DOCKER_HOST`, else to the default socket, else to a rootless engine's, and waits a few
    /// seconds for its first answer.
    ///
    /// # Errors
    /// What is missing: Docker, its running, the right to use it.
    pub async fn connect() -> Result<Self, EngineError> {
        let socket = socket()?;
        knock(&socket)?;
        let asked = async {
            let docker =
                Docker::connect_with_unix(&socket.to_string_lossy(), REQUEST_SECONDS, API_DEFAULT_VERSION)?;
            docker.negotiate_version().await
        };
        match timeout(ANSWER, asked).await {
            Ok(Ok(docker)) => Ok(Self { docker, socket }),
            Ok(Err(source)) => Err(EngineError::Request {
                action: format!("ask Docker at {} for its version", socket.display()),
                source,
            }),
            Err(_) => Err(EngineError::NoAnswer { socket, waited: ANSWER }),
        }
    }

    /// Its client, for a conversation that is more than a request.
    pub(crate) fn client(&self) -> &Docker {
        &self.docker
    }

    /// What `DOCKER_HOST` must be for another program to use the same engine.
    pub fn host(&self) -> String {
        format!("unix://{}", self.socket.display())
    }
}

fn socket() -> Result<PathBuf, EngineError> {
    if let Some(host) = env::var("DOCKER_HOST").ok().filter(|host| !host.is_empty()) {
        return match host.strip_prefix("unix://") {
            Some(path) => Ok(path.into()),
            None => Err(EngineError::Elsewhere { host }),
        };
    }
    let default = PathBuf::from(DEFAULT_SOCKET);
    let rootless = env::var_os("XDG_RUNTIME_DIR").map(|dir| Path::new(&dir).join("docker.sock"));
    Ok(match rootless {
        Some(rootless) if !default.exists() && rootless.exists() => rootless,
        _ => default,
    })
}

/// Opens the socket once: the system's error says more than the HTTP client's.
fn knock(socket: &Path) -> Result<(), EngineError> {
    let socket = socket.to_owned();
    match UnixStream::connect(&socket) {
        Ok(_) => Ok(()),
        Err(source) => Err(match source.kind() {
            io::ErrorKind::NotFound => EngineError::Missing { socket },
            io::ErrorKind::ConnectionRefused => EngineError::NotRunning { socket },
            io::ErrorKind::PermissionDenied => EngineError::Permission { socket },
            _ => EngineError::Socket { socket, source },
        }),
    }
}
