//! Commands in containers.

use bollard::container::LogOutput;
use bollard::exec::{CreateExecOptions, StartExecResults};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::io::AsyncWriteExt;

use super::engine::Engine;
use super::error::EngineError;

/// What a command left.
#[derive(Clone, Debug)]
pub(crate) struct ExecOutput {
    /// Exit status; 126 or 127 where the program cannot be run or is not there.
    pub(crate) status: i64,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl ExecOutput {
    /// Whether it ended well.
    pub(crate) fn is_success(&self) -> bool {
        self.status == 0
    }

    /// The last words of a command that failed.
    pub(crate) fn complaint(&self) -> String {
        let said = if self.stderr.trim().is_empty() {
            String::from_utf8_lossy(&self.stdout).into_owned()
        } else {
            self.stderr.clone()
        };
        let lines: Vec<_> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        match lines.as_slice() {
            [] => format!("exit status {}", self.status),
            [.., last] => format!("{last} (exit status {})", self.status),
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
        };
        let collect = async {
            let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
            while let Some(piece) = output.next().await {
                match piece? {
                    LogOutput::StdErr { message } => stderr.extend_from_slice(&message),
                    LogOutput::StdOut { message } | LogOutput::Console { message } => {
                        stdout.extend_from_slice(&message);
                    }
                    LogOutput::StdIn { .. } => {}
                }
            }
            Ok((stdout, stderr))
        };
        let ((), collected) = tokio::join!(feed, collect);
        let (stdout, stderr) = collected.map_err(EngineError::request(&action))?;
        let ended = self.docker.inspect_exec(&id).await.map_err(EngineError::request(&action))?;
        Ok(ExecOutput {
            status: ended.exit_code.unwrap_or(-1),
            stdout,
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
        })
    }

    /// Capabilities that programs in a running container can have at all, as a bit set of the kernel's numbers.
    pub(crate) async fn bounding_set(&self, container: &str) -> Result<u64, EngineError> {
        let read = self.exec(container, &["cat", "/proc/1/status"], None).await?;
        let status = String::from_utf8_lossy(&read.stdout).into_owned();
        let digits = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
        let set = digits.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok());
        let unread = || EngineError::Stream {
            action: format!("read the capabilities of {container}"),
            source: std::io::Error::other(read.complaint()),
        };
        set.ok_or_else(unread)
    }
}
