//! The client: asks, checks every byte of the answer, and reports how it went.
//!
//! Owns: what can be asked, running requests side by side, the deadline of each. Does not own: the two
//! protocols (`tcp`, `udp`), the real curl (`curl`), the words for people (`text`), or any judgement.
//! A request is tried once: a retry would hide the very loss that the verdict looks for.

mod curl;
mod progress;
mod tcp;
mod text;
mod udp;

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::num::NonZeroU32;
use std::rc::Rc;
use std::time::Duration;

use labctl_wire::{Exchange, Outcome};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{Instant, sleep_until};

use crate::dialogue::MAX_DATAGRAM;
use progress::{Progress, Trouble};

pub use text::describe;

/// Deadline of a request that names none, milliseconds.
const DEFAULT_TIMEOUT_MS: u64 = 2_000;
/// Requests under way at once when the options say nothing.
const DEFAULT_CONCURRENCY: usize = 32;

/// What to ask, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchOptions {
    /// The requests.
    pub requests: Vec<Request>,
    /// Requests under way at once, at least 1.
    #[serde(default = "default_concurrency")]
    pub concurrency: usize,
    /// Requests to begin in each second, evenly spread; without, each begins as soon as a slot is free.
    #[serde(default)]
    pub per_second: Option<NonZeroU32>,
    /// Who speaks.
    #[serde(default)]
    pub client: Client,
}

/// Who speaks HTTP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Client {
    /// This program.
    #[default]
    Builtin,
    /// The real curl, found in `PATH`; TCP only.
    Curl,
}

/// Transport of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// HTTP/1.1 over its own connection.
    Tcp,
    /// One datagram and its reply.
    Udp,
}

impl Transport {
    /// The name that [`Exchange::protocol`] uses.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// One request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Number within the run, from 1; seeds the bytes too.
    pub id: u32,
    /// Transport.
    pub protocol: Transport,
    /// Frontend to ask.
    pub remote: SocketAddrV4,
    /// Own address; the route decides if there is none.
    #[serde(default)]
    pub source_address: Option<Ipv4Addr>,
    /// Own port; the kernel decides if there is none.
    #[serde(default)]
    pub source_port: Option<u16>,
    /// Path to ask instead of the one that the sizes imply; then the body is not checked. TCP only.
    #[serde(default)]
    pub path: Option<String>,
    /// Every complete reply is one, whatever its status: the server is anybody's. TCP only.
    #[serde(default)]
    pub any_status: bool,
    /// TCP: bytes to download (0: a short JSON reply). UDP: size of the whole reply datagram, unless its
    /// first line is longer.
    #[serde(default)]
    pub response_bytes: u64,
    /// TCP: bytes to upload instead of a download. UDP: size of the whole request datagram, unless its
    /// first line is longer.
    #[serde(default)]
    pub upload_bytes: u64,
    /// Deadline of the whole exchange, milliseconds.
    #[serde(default = "default_timeout_ms")]
    pub timeout_ms: u64,
}

fn default_concurrency() -> usize {
    DEFAULT_CONCURRENCY
}

fn default_timeout_ms() -> u64 {
    DEFAULT_TIMEOUT_MS
}

impl Request {
    /// A request with everything else left open.
    pub fn new(id: u32, protocol: Transport, remote: SocketAddrV4) -> Self {
        Self {
            id,
            protocol,
            remote,
            source_address: None,
            source_port: None,
            path: None,
            any_status: false,
            response_bytes: 0,
            upload_bytes: 0,
            timeout_ms: DEFAULT_TIMEOUT_MS,
        }
    }

    /// Seed of the bytes of this exchange: neighbours differ, so crossed replies are noticed.
    pub(crate) fn seed(&self) -> u64 {
        u64::from(self.id)
    }

    /// Path and query to ask.
    pub(crate) fn target(&self) -> String {
        let (id, seed) = (self.id, self.seed());
        match &self.path {
            Some(path) => path.clone(),
            None if self.upload_bytes > 0 => format!("/sink?seed={seed}&id={id}"),
            None if self.response_bytes > 0 => format!("/bytes/{}?seed={seed}&id={id}", self.response_bytes),
            None => format!("/?id={id}"),
        }
    }

    fn validate(&self, client: Client) -> Result<(), FetchError> {
        let wrong = |problem: &'static str| Err(FetchError::Request { id: self.id, problem });
        match self.protocol {
            Transport::Tcp if self.upload_bytes > 0 && self.response_bytes > 0 => {
                wrong("asks for an upload and a download at once; split it in two")
            }
            Transport::Tcp if self.path.as_ref().is_some_and(|p| !p.starts_with('/')) => {
                wrong("has a path that does not start with /")
            }
            Transport::Udp if client == Client::Curl => wrong("is udp, which curl does not speak"),
            Transport::Udp if self.path.is_some() => wrong("has a path, which udp does not know"),
            Transport::Udp if self.response_bytes.max(self.upload_bytes) > MAX_DATAGRAM as u64 => {
                wrong("asks for a datagram of more than 65507 bytes")
            }
            _ if self.timeout_ms == 0 => wrong("has no time at all; set timeout_ms"),
            _ => Ok(()),
        }
    }
}

/// Why requests could not even be tried. Reads well after "failed to fetch: ".
#[derive(Debug, Error)]
pub enum FetchError {
    /// A request contradicts itself.
    #[error("request {id} {problem}")]
    Request {
        /// Its number.
        id: u32,
        /// What is wrong and how to mend it.
        problem: &'static str,
    },
    /// No curl.
    #[error("curl cannot be started: {source}; install it, or use the built-in client")]
    Curl {
        /// The operating system's words.
        source: io::Error,
    },
    /// Nothing can wait for the network.
    #[error("cannot start the event loop: {source}")]
    Runtime {
        /// The operating system's words.
        source: io::Error,
    },
    /// The reader of the results went away.
    #[error("cannot write a result: {source}")]
    Output {
        /// The operating system's words.
        source: io::Error,
    },
}

/// Sends every request and reports each exchange as it ends; returns all of them by number.
///
/// # Errors
/// A request that contradicts itself, no curl where curl was wanted, no event loop. An exchange that goes
/// wrong is no error: its [`Outcome`] says so.
pub fn fetch(
    options: &FetchOptions,
    mut each: impl FnMut(&Exchange) -> io::Result<()>,
) -> Result<Vec<Exchange>, FetchError> {
    options.requests.iter().try_for_each(|r| r.validate(options.client))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| FetchError::Runtime { source })?;
    LocalSet::new().block_on(&runtime, async {
        if options.client == Client::Curl {
            curl::probe().await.map_err(|source| FetchError::Curl { source })?;
        }
        let mut done = Vec::with_capacity(options.requests.len());
        let mut running = start(options);
        while let Some(ended) = running.join_next().await {
            let exchange = ended.expect("no task is aborted, and a panic is a defect that must show");
            each(&exchange).map_err(|source| FetchError::Output { source })?;
            done.push(exchange);
        }
        done.sort_by_key(|e: &Exchange| e.id);
        Ok(done)
    })
}

/// The role: one line of JSON per [`Exchange`] on `out`, in the order in which they end.
///
/// # Errors
/// As [`fetch`], and when `out` cannot be written.
pub fn run(options: &FetchOptions, out: &mut dyn Write) -> Result<Vec<Exchange>, FetchError> {
    fetch(options, |exchange| {
        serde_json::to_writer(&mut *out, exchange)?;
        out.write_all(b"\n")?;
        out.flush()
    })
}

fn start(options: &FetchOptions) -> JoinSet<Exchange> {
    let slots = Rc::new(Semaphore::new(options.concurrency.max(1)));
    let began = Instant::now();
    let mut running = JoinSet::new();
    for (number, request) in (0u32..).zip(&options.requests) {
        let (request, slots, client) = (request.clone(), slots.clone(), options.client);
        let begin = options.per_second.map(|rate| began + turn(number, rate));
        running.spawn_local(async move {
            if let Some(begin) = begin {
                sleep_until(begin).await;
            }
            let _slot = slots.acquire().await.expect("the semaphore is never closed");
            exchange(&request, client).await
        });
    }
    running
}

/// When a request begins after the first one.
fn turn(number: u32, per_second: NonZeroU32) -> Duration {
    Duration::from_secs_f64(f64::from(number) / f64::from(per_second.get()))
}

/// One request from its start to its end, or to its deadline.
async fn exchange(request: &Request, client: Client) -> Exchange {
    let progress = Progress::start();
    let attempt = async {
        match (request.protocol, client) {
            (Transport::Udp, _) => udp::ask(request, &progress).await,
            (Transport::Tcp, Client::Builtin) => tcp::ask(request, &progress).await,
            (Transport::Tcp, Client::Curl) => curl::ask(request, &progress).await,
        }
    };
    let outcome = match tokio::time::timeout(Duration::from_millis(request.timeout_ms), attempt).await {
        Ok(Ok(())) => Outcome::Answered,
        Ok(Err(Trouble::Failed(error))) => Outcome::Failed { error },
        Ok(Err(Trouble::Corrupt(detail))) => Outcome::Corrupt { detail },
        Ok(Err(Trouble::TimedOut(waiting_for))) => Outcome::TimedOut { waiting_for: waiting_for.into() },
        Err(_) => Outcome::TimedOut { waiting_for: progress.waiting_for().into() },
    };
    progress.finish(request, outcome)
}
