//! A command in a pod's container, through the API server's exec.
//!
//! Owns: starting it, the end of its stdin, its exit status. Does not own: the streams of this side.
//!
//! A websocket before protocol v5 (servers before 1.29) cannot close one direction alone: closing stdin would
//! cut off what the command still says. So stdin goes in frames, and the role `framed` takes them off.

use std::io;
use std::path::Path;

use futures_util::stream::{self, Stream};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::api::{Api, AttachParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::frame::{self, frame};
use super::{CHUNK, Input, RelayError, Said, ThisSide};

/// Where the command runs.
pub(super) struct Target<'a> {
    pub(super) kubeconfig: &'a Path,
    pub(super) context: Option<&'a str>,
    pub(super) namespace: &'a str,
    pub(super) pod: &'a str,
    pub(super) container: &'a str,
}

impl Target<'_> {
    fn name(&self) -> String {
        format!("{}/{}", self.namespace, self.pod)
    }

    fn refused(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> RelayError {
        RelayError::Kubernetes { pod: self.name(), source: source.into() }
    }

    async fn client(&self) -> Result<Client, RelayError> {
        let file = Kubeconfig::read_from(self.kubeconfig).map_err(|e| self.refused(e))?;
        let options =
            KubeConfigOptions { context: self.context.map(str::to_owned), ..KubeConfigOptions::default() };
        let config = Config::from_custom_kubeconfig(file, &options).await.map_err(|e| self.refused(e))?;
        Client::try_from(config).map_err(|e| self.refused(e))
    }
}

pub(super) async fn run(
    target: &Target<'_>,
    argv: &[String],
    this_side: ThisSide,
) -> Result<i64, RelayError> {
    let pods: Api<Pod> = Api::namespaced(target.client().await?, target.namespace);
    let params = AttachParams::default()
        .container(target.container)
        .stdin(true)
        .stdout(true)
        .stderr(true)
        .max_stdin_buf_size(CHUNK)
        .max_stdout_buf_size(4 * CHUNK)
        .max_stderr_buf_size(CHUNK);
    let mut attached =
        pods.exec(target.pod, framed(argv), &params).await.map_err(|error| target.refused(error))?;
    let missing = || target.refused("it was started without its streams");
    let status = attached.take_status().ok_or_else(missing)?;
    let (stdout, stderr) = (attached.stdout().ok_or_else(missing)?, attached.stderr().ok_or_else(missing)?);
    let output =
        stream::select(chunks(stdout, Said::Out as fn(_) -> _), chunks(stderr, Said::Err as fn(_) -> _));
    let stdin = Stdin(attached.stdin().ok_or_else(missing)?);
    this_side.exchange(stdin, output, &target.name()).await?;
    match status.await {
        Some(status) => exit_code(target, argv, &status),
        None => Err(RelayError::NoStatus {
            place: target.name(),
            reason: "the connection to the api server ended".to_owned(),
        }),
    }
}

/// `labctl node framed -- <command>`: the same program takes the frames off.
fn framed(argv: &[String]) -> Vec<String> {
    let program = argv.first().cloned().unwrap_or_default();
    [program.as_str(), "node", "framed", "--"]
        .into_iter()
        .map(str::to_owned)
        .chain(argv.iter().cloned())
        .collect()
}

/// A stream of what can be read.
fn chunks<'a>(
    reader: impl AsyncRead + Unpin + 'a,
    said: fn(Vec<u8>) -> Said<Vec<u8>>,
) -> impl Stream<Item = Result<Said<Vec<u8>>, RelayError>> + 'a {
    stream::unfold(reader, move |mut reader| async move {
        let mut chunk = vec![0; CHUNK];
        match reader.read(&mut chunk).await {
            Ok(0) => None,
            Ok(n) => {
                chunk.truncate(n);
                Some((Ok(said(chunk)), reader))
            }
            Err(error) => Some((Err(error.into()), reader)),
        }
    })
}

/// The command's stdin in frames; the connection itself stays open.
struct Stdin<W>(W);

impl<W: AsyncWrite + Unpin> Input for Stdin<W> {
    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(&frame(bytes)).await
    }

    async fn end(&mut self) -> io::Result<()> {
        self.0.write_all(&frame::END).await
    }
}

/// The exit status in what the API server says at the end.
fn exit_code(target: &Target<'_>, argv: &[String], status: &Status) -> Result<i64, RelayError> {
    if status.status.as_deref() == Some("Success") {
        return Ok(0);
    }
    let causes = status.details.iter().flat_map(|details| &details.causes).flatten();
    let code = causes
        .filter(|cause| cause.reason.as_deref() == Some("ExitCode"))
        .find_map(|cause| cause.message.as_deref()?.parse().ok());
    code.ok_or_else(|| RelayError::NoProgram {
        program: argv.first().cloned().unwrap_or_default(),
        place: target.name(),
        reason: status.message.clone().unwrap_or_else(|| "no reason was given".to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(status: &str) -> Result<i64, RelayError> {
        let target = Target {
            kubeconfig: Path::new(""),
            context: None,
            namespace: "labctl",
            pod: "labctl-capture-x",
            container: "capture",
        };
        exit_code(&target, &["/labctl".to_owned()], &serde_json::from_str(status).unwrap())
    }

    #[test]
    fn the_exit_status_is_among_the_causes() {
        assert_eq!(code(r#"{"metadata":{},"status":"Success"}"#).unwrap(), 0);
        let failed = r#"{"metadata":{},"status":"Failure","reason":"NonZeroExitCode",
            "message":"command terminated with non-zero exit code","details":{"causes":[{"reason":"ExitCode","message":"5"}]}}"#;
        assert_eq!(code(failed).unwrap(), 5);
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let missing =
            r#"{"metadata":{},"status":"Failure","reason":"InternalError","message":"no such file"}"#;
        assert_eq!(
            code(missing).unwrap_err().to_string(),
            "run /labctl in labctl/labctl-capture-x: no such file; take the lab down and up again"
        );
    }
}
