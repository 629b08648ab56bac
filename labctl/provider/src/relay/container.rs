//! A command in a container, through Docker's exec.
//!
//! Owns: starting it, telling its streams apart, and its exit status. Does not own: the streams of this side.

use std::io;
use std::pin::Pin;
use std::time::Duration;

use bollard::Docker;
use bollard::container::LogOutput;
use bollard::exec::{CreateExecOptions, StartExecOptions, StartExecResults};
use futures_util::StreamExt;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::docker::Engine;

use super::{CHUNK, Input, RelayError, Said, ThisSide};

/// How long Docker may take to note the exit status after the streams have ended.
const STATUS: Duration = Duration::from_secs(5);

/// What Docker says on the command's own stdout when the runtime could not start it. A role's output never
/// begins so.
const NOT_STARTED: &[u8] = b"OCI runtime exec failed";

pub(super) async fn run(container: &str, argv: &[String], this_side: ThisSide) -> Result<i64, RelayError> {
    let refused = |source| RelayError::Docker { container: container.to_owned(), source: Box::new(source) };
    let engine = Engine::connect().await?;
    let docker = engine.client();
    let options = CreateExecOptions {
        attach_stdin: Some(true),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        cmd: Some(argv.to_vec()),
        ..Default::default()
    };
    let exec = docker.create_exec(container, options).await.map_err(refused)?.id;
    let attached = StartExecOptions { output_capacity: Some(CHUNK), ..Default::default() };
    let StartExecResults::Attached { output, input } =
        docker.start_exec(&exec, Some(attached)).await.map_err(refused)?
    else {
        return Err(no_status(container, "it was started without its streams"));
    };
    let output = output.enumerate().map(|(number, said)| match said {
        Ok(words) if number == 0 && words.as_ref().starts_with(NOT_STARTED) => {
            Err(not_started(container, argv, words.as_ref()))
        }
        Ok(words @ LogOutput::StdErr { .. }) => Ok(Said::Err(words)),
        Ok(words) => Ok(Said::Out(words)),
        Err(error) => Err(refused(error)),
    });
    this_side.exchange(Stdin(input), output, container).await?;
    status(docker, &exec, container).await
}

/// The write half of the connection: shutting it down closes the command's stdin and nothing else.
struct Stdin(Pin<Box<dyn AsyncWrite + Send>>);

impl Input for Stdin {
    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes).await?;
        self.0.flush().await
    }

    async fn end(&mut self) -> io::Result<()> {
        self.0.shutdown().await
    }
}

fn not_started(container: &str, argv: &[String], words: &[u8]) -> RelayError {
    RelayError::NoProgram {
        program: argv.first().cloned().unwrap_or_default(),
        place: container.to_owned(),
        reason: String::from_utf8_lossy(words).trim().to_owned(),
    }
}

/// How it ended. Docker notes that a moment after it has closed the streams.
async fn status(docker: &Docker, exec: &str, container: &str) -> Result<i64, RelayError> {
    let mut looks = interval(Duration::from_millis(5));
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let noted = async {
        loop {
            looks.tick().await;
            let exec = docker.inspect_exec(exec).await.map_err(|source| RelayError::Docker {
                container: container.to_owned(),
                source: Box::new(source),
            })?;
            if let (Some(false), Some(code)) = (exec.running, exec.exit_code) {
                return Ok(code);
            }
        }
    };
    timeout(STATUS, noted)
        .await
        .unwrap_or_else(|_| Err(no_status(container, "docker says that it still runs")))
}

fn no_status(container: &str, reason: &str) -> RelayError {
    RelayError::NoStatus { place: container.to_owned(), reason: reason.to_owned() }
}
