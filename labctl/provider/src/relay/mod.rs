//! A command in a container or a pod as if it ran here: streams and exit status pass through.
//!
//! Owns: moving bytes both ways at the reader's pace, the end of either side, and what a signal means to a
//! command that is somewhere else. Does not own: what runs (the roles), nor how Docker (`container`) and
//! Kubernetes (`pod`) start it. A host's [`crate::Host::role`] starts a process that does nothing but this,
//! so that callers need not know where a role runs.
//!
//! The end of stdin reaches the other side, and what the command still says after it comes back: a capture
//! that is stopped so delivers its last packets. When this process is killed, the connection breaks, and the
//! other side finds its stdin at the end too.

mod container;
mod frame;
mod pod;

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use tokio::io::AsyncWriteExt;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout_at};

use crate::docker::EngineError;
use crate::host::Place;

pub use frame::unframe;

/// Bytes of stdin that are read at once.
const CHUNK: usize = 64 * 1024;

/// How long a command may still run after a signal has closed its stdin.
const GRACE: Duration = Duration::from_secs(3);

/// Why a command could not be run somewhere else. Reads well after "failed to ".
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// A namespace is entered, not relayed to.
    #[error("relay to {name}: a network namespace of this machine needs no relay")]
    Namespace {
        /// Its name.
        name: String,
    },
    /// Docker cannot be used.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Docker refused.
    #[error("run a role in container {container}: {source}; is it running? `docker ps` lists containers")]
    Docker {
        /// The container.
        container: String,
        /// Docker's words.
        source: Box<bollard::errors::Error>,
    },
    /// The API server does not answer, or refused.
    #[error("run a role in pod {pod}: {source}")]
    Kubernetes {
        /// `namespace/pod`.
        pod: String,
        /// The client's words.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The program is not there.
    #[error("run {program} in {place}: {reason}; take the lab down and up again")]
    NoProgram {
        /// The program.
        program: String,
        /// Container or pod.
        place: String,
        /// The runtime's words.
        reason: String,
    },
    /// The connection ended and nobody said how the command did.
    #[error("learn how the role in {place} ended: {reason}")]
    NoStatus {
        /// Container or pod.
        place: String,
        /// What was said instead.
        reason: String,
    },
    /// A stream of this process failed.
    #[error("pass the streams of a role on: {0}")]
    Stream(#[from] io::Error),
    /// A signal came, and the command went on regardless.
    #[error("end the role in {place}: it still runs {} s after a signal", GRACE.as_secs())]
    Interrupted {
        /// Container or pod.
        place: String,
    },
}

/// This side's ends of a command's three streams.
#[derive(Debug)]
pub struct Streams {
    /// What the command reads.
    pub stdin: OwnedFd,
    /// What it says.
    pub stdout: OwnedFd,
    /// What it says to people.
    pub stderr: OwnedFd,
}

impl Streams {
    /// The streams of this process.
    ///
    /// # Errors
    /// Out of file descriptors.
    pub fn of_this_process() -> io::Result<Self> {
        Ok(Self {
            stdin: io::stdin().as_fd().try_clone_to_owned()?,
            stdout: io::stdout().as_fd().try_clone_to_owned()?,
            stderr: io::stderr().as_fd().try_clone_to_owned()?,
        })
    }
}

/// Runs `argv` (program and arguments) there and returns its exit status, 128 + signal if one ended it.
/// SIGINT, SIGTERM and SIGHUP close its stdin; it then has three seconds to end.
///
/// # Errors
/// [`RelayError`]; a command that ran and failed is none.
pub fn relay(to: &Place, argv: &[String], streams: Streams) -> Result<i64, RelayError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let status = runtime.block_on(async {
        let this_side = ThisSide::new(streams)?;
        match to {
            Place::Namespace { name } => Err(RelayError::Namespace { name: name.clone() }),
            Place::Container { name, .. } => container::run(name, argv, this_side).await,
            Place::Pod { kubeconfig, context, namespace, pod, container, .. } => {
                let target =
                    pod::Target { kubeconfig, context: context.as_deref(), namespace, pod, container };
                pod::run(&target, argv, this_side).await
            }
        }
    });
    // Whatever a writer or a lookup still waits for ends with this process.
    runtime.shutdown_background();
    status
}

/// The streams of this side, ready for use by one task.
struct ThisSide {
    stdin: mpsc::Receiver<Vec<u8>>,
    stdout: tokio::fs::File,
    stderr: tokio::fs::File,
}

/// What the command says.
enum Said<B> {
    /// On its stdout.
    Out(B),
    /// On its stderr.
    Err(B),
}

/// The command's stdin.
trait Input {
    /// Writes some bytes.
    async fn send(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Says that this was all. The other direction stays open.
    async fn end(&mut self) -> io::Result<()>;
}

impl ThisSide {
    fn new(streams: Streams) -> io::Result<Self> {
        let (send, stdin) = mpsc::channel(2);
        // A thread, because stdin may be a file, a terminal or a pipe; it ends with the process.
        thread::Builder::new().spawn(move || read_all(File::from(streams.stdin), &send))?;
        let file = |fd| tokio::fs::File::from_std(File::from(fd));
        Ok(Self { stdin, stdout: file(streams.stdout), stderr: file(streams.stderr) })
    }

    /// Moves bytes both ways until the command has ended, which the end of `output` says.
    async fn exchange<B: AsRef<[u8]>>(
        self,
        mut input: impl Input,
        output: impl Stream<Item = Result<Said<B>, RelayError>>,
        place: &str,
    ) -> Result<(), RelayError> {
        let Self { mut stdin, stdout, stderr } = self;
        let (closing, closed) = watch::channel(false);
        let mut signals = Signals::take_over()?;
        let mut passed_in = std::pin::pin!(pass_in(&mut stdin, &mut input, closed));
        let mut passed_out = std::pin::pin!(pass_out(output, stdout, stderr));
        let (mut is_open, mut give_up) = (true, None);
        loop {
            tokio::select! {
                ended = &mut passed_out => return ended,
                () = &mut passed_in, if is_open => is_open = false,
                () = signals.next() => {
                    closing.send_replace(true);
                    give_up.get_or_insert_with(|| Instant::now() + GRACE);
                }
                () = until(give_up) => return Err(RelayError::Interrupted { place: place.to_owned() }),
            }
        }
    }
}

/// Reads a stream to its end, no faster than the other side takes it.
fn read_all(mut stdin: File, send: &mpsc::Sender<Vec<u8>>) {
    let mut chunk = vec![0; CHUNK];
    loop {
        match stdin.read(&mut chunk) {
            Ok(0) => return,
            Ok(n) => {
                if send.blocking_send(chunk[..n].to_vec()).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A stdin that cannot be read has nothing more to say.
            Err(_) => return,
        }
    }
}

/// Writes this side's stdin to the command's and closes it at its end, or when a signal says so. A command that
/// reads no more has said why on its other streams.
async fn pass_in(
    stdin: &mut mpsc::Receiver<Vec<u8>>,
    input: &mut impl Input,
    mut closed: watch::Receiver<bool>,
) {
    loop {
        let chunk = tokio::select! {
            chunk = stdin.recv() => chunk,
            _ = closed.wait_for(|closed| *closed) => None,
        };
        let Some(chunk) = chunk else { break };
        if input.send(&chunk).await.is_err() {
            return;
        }
    }
    let _ = input.end().await;
}

/// Writes what the command says, until it has ended and everything is written.
async fn pass_out<B: AsRef<[u8]>>(
    output: impl Stream<Item = Result<Said<B>, RelayError>>,
    mut stdout: tokio::fs::File,
    mut stderr: tokio::fs::File,
) -> Result<(), RelayError> {
    let mut output = std::pin::pin!(output);
    while let Some(said) = output.next().await {
        match said? {
            Said::Out(bytes) => stdout.write_all(bytes.as_ref()).await?,
            Said::Err(bytes) => stderr.write_all(bytes.as_ref()).await?,
        }
    }
    stdout.flush().await?;
    Ok(stderr.flush().await?)
}

/// The signals that end a command of this process.
struct Signals([Signal; 3]);

impl Signals {
    fn take_over() -> io::Result<Self> {
        Ok(Self([
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        ]))
    }

    async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

/// Waits for the deadline, for ever without one.
async fn until(deadline: Option<Instant>) {
    let never = std::future::pending::<()>();
    match deadline {
        // Nothing ends it but its time.
        Some(deadline) => drop(timeout_at(deadline, never).await),
        None => never.await,
    }
}
