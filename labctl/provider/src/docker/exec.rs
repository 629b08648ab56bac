//! Commands in containers.

use std::io;
use std::time::Duration;

use bollard::Docker;
use bollard::container::LogOutput;
use bollard::exec::{CreateExecOptions, StartExecResults};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::io::AsyncWriteExt;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::engine::Engine;
use super::error::{self, EngineError};

/// How long Docker may take to note an exit status after the streams have ended.
const NOTED: Duration = Duration::from_secs(5);

/// What the streams of a command that is over have to bring their last words.
const MOMENT: Duration = Duration::from_secs(2);

/// What Docker says of a command whose streams have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Its exit status.
    Status(i64),
    /// It ended before it had read all of its stdin: Docker calls that a failed attachment and forgets the command
    /// with its status (`ContainerExecStart` in moby's daemon/exec.go).
    Forgotten,
    /// It runs on without its streams.
    StillRuns,
}

/// What Docker knows of the end of a command; `None` while it knows of none.
async fn noted_end(docker: &Docker, exec: &str) -> Result<Option<Ended>, bollard::errors::Error> {
    match docker.inspect_exec(exec).await {
        Ok(found) => {
            let over = found.running == Some(false);
            Ok(found.exit_code.filter(|_| over).map(Ended::Status))
        }
        Err(gone) if error::status(&gone) == Some(404) => Ok(Some(Ended::Forgotten)),
        Err(error) => Err(error),
    }
}

/// How a command ended. Docker notes that a moment after it has closed the streams.
pub(crate) async fn ended(docker: &Docker, exec: &str) -> Result<Ended, bollard::errors::Error> {
    let mut looks = interval(Duration::from_millis(5));
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let noted = async {
        loop {
            looks.tick().await;
            if let Some(ended) = noted_end(docker, exec).await? {
                return Ok(ended);
            }
        }
    };
    timeout(NOTED, noted).await.unwrap_or(Ok(Ended::StillRuns))
}

/// Returns when Docker has known for a moment that the command is over, whatever becomes of its streams.
async fn has_ended(docker: &Docker, exec: &str) {
    let mut looks = interval(MOMENT);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut known = false;
    loop {
        looks.tick().await;
        let over = matches!(noted_end(docker, exec).await, Ok(Some(_)));
        if over && known {
            return;
        }
        known = over;
    }
}

/// What a command left.
#[derive(Clone, Debug)]
pub(crate) struct ExecOutput {
    /// Exit status; 126 or 127 where the program cannot be run or is not there, `None` where Docker does not know it.
    pub(crate) status: Option<i64>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl ExecOutput {
    /// Whether it ended well.
    pub(crate) fn is_success(&self) -> bool {
        self.status == Some(0)
    }

    /// The last words of a command that failed.
    pub(crate) fn complaint(&self) -> String {
        let said = if self.stderr.trim().is_empty() {
            String::from_utf8_lossy(&self.stdout).into_owned()
        } else {
            self.stderr.clone()
        };
        let how = match self.status {
            Some(status) => format!("exit status {status}"),
            None => "it ended before it had read all that it was given".to_owned(),
        };
        let lines: Vec<_> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        match lines.as_slice() {
            [] => how,
            [.., last] => format!("{last} ({how})"),
        }
    }
}

impl Engine {
    /// Runs a command in a container to its end, with these bytes as its stdin.
    ///
    /// # Errors
    /// When Docker cannot run it. A command that fails is no error: see [`ExecOutput::status`].
    pub(crate) async fn exec(
        &self,
        container: &str,
        argv: &[&str],
        stdin: Option<Bytes>,
    ) -> Result<ExecOutput, EngineError> {
        let action = format!("run `{}` in {container}", argv.join(" "));
        let options = CreateExecOptions {
            attach_stdin: Some(stdin.is_some()),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            cmd: Some(argv.iter().map(|&word| word.to_owned()).collect()),
            ..CreateExecOptions::default()
        };
        let made = self.docker.create_exec(container, options).await;
        let id = made.map_err(EngineError::request(&action))?.id;
        let started = self.docker.start_exec(&id, None).await.map_err(EngineError::request(&action))?;
        let StartExecResults::Attached { mut output, mut input } = started else {
            unreachable!("the exec was not asked to detach");
        };
        let feed = async {
            // A command that ends without reading all is judged by its status, not by the broken pipe.
            if let Some(bytes) = stdin {
                let _ = input.write_all(&bytes).await;
            }
            let _ = input.shutdown().await;
            std::future::pending::<()>().await;
        };
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let collect = async {
            while let Some(piece) = output.next().await {
                match piece? {
                    LogOutput::StdErr { message } => stderr.extend_from_slice(&message),
                    LogOutput::StdOut { message } | LogOutput::Console { message } => {
                        stdout.extend_from_slice(&message);
                    }
                    LogOutput::StdIn { .. } => {}
                }
            }
            Ok(())
        };
        // Docker keeps the streams of a command that left its stdin unread, and takes no more of it either.
        let collected = tokio::select! {
            collected = collect => collected,
            () = feed => Ok(()),
            () = has_ended(&self.docker, &id) => Ok(()),
        };
        collected.map_err(EngineError::request(&action))?;
        let status = match ended(&self.docker, &id).await.map_err(EngineError::request(&action))? {
            Ended::Status(status) => Some(status),
            Ended::Forgotten => None,
            Ended::StillRuns => {
                let source = io::Error::other("it runs on, though its streams have ended");
                return Err(EngineError::Stream { action, source });
            }
        };
        Ok(ExecOutput { status, stdout, stderr: String::from_utf8_lossy(&stderr).into_owned() })
    }

    /// Capabilities that programs in a running container can have at all, as a bit set of the kernel's numbers.
    pub(crate) async fn bounding_set(&self, container: &str) -> Result<u64, EngineError> {
        let read = self.exec(container, &["cat", "/proc/1/status"], None).await?;
        let status = String::from_utf8_lossy(&read.stdout).into_owned();
        let digits = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
        let set = digits.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok());
        let unread = || EngineError::Stream {
            action: format!("read the capabilities of {container}"),
            source: io::Error::other(read.complaint()),
        };
        set.ok_or_else(unread)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_failed_is_quoted_even_when_docker_has_forgotten_it() {
        let full = |status| ExecOutput {
            status,
            stdout: Vec::new(),
            stderr: "unpacking\nctr: no space left on device\n".to_owned(),
        };
        assert_eq!(full(Some(1)).complaint(), "ctr: no space left on device (exit status 1)");
        let forgotten = full(None);
        assert!(!forgotten.is_success());
        assert_eq!(
            forgotten.complaint(),
            "ctr: no space left on device (it ended before it had read all that it was given)"
        );
    }
}
