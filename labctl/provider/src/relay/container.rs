//! A command in a container, through Docker's exec.
//!
//! Owns: starting it, telling its streams apart, and its exit status. Does not own: the streams of this side.

use std::io;
use std::pin::Pin;

use bollard::Docker;
use bollard::container::LogOutput;
use bollard::exec::{CreateExecOptions, StartExecOptions, StartExecResults};
use futures_util::StreamExt;
use tokio::io::{AsyncWrite, AsyncWriteExt};

use crate::docker::{self, Ended, Engine};

use super::{CHUNK, Input, RelayError, Said, ThisSide};

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

async fn status(docker: &Docker, exec: &str, container: &str) -> Result<i64, RelayError> {
    let ended = docker::ended(docker, exec).await;
    let ended = ended
        .map_err(|source| RelayError::Docker { container: container.to_owned(), source: Box::new(source) })?;
    match ended {
        Ended::Status(code) => Ok(code),
        Ended::Forgotten => Err(no_status(container, "it ended before it had read all of its stdin")),
        Ended::StillRuns => Err(no_status(container, "docker says that it still runs")),
    }
}

fn no_status(container: &str, reason: &str) -> RelayError {
    RelayError::NoStatus { place: container.to_owned(), reason: reason.to_owned() }
}
