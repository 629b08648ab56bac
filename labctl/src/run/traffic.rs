//! Requests of the client: the first one, which shows that a lab works, and those that `verify` sends.

use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use labctl_model::{NodePlan, Plan, Protocol, TrafficPolicy};
use labctl_node::fetch::{Client, FetchOptions, Request, Transport, describe};
use labctl_provider::Lab;
use labctl_wire::{Exchange, Outcome};

use super::interrupt::Interrupt;
use super::role::{Role, RoleError, finish, read};

/// How long one attempt of the first request may take. On links that are up an answer takes a
/// millisecond; a lost SYN would come again after one second.
const ATTEMPT: Duration = Duration::from_millis(1500);

/// How long the first answer may take altogether.
const FIRST_ANSWER: Duration = Duration::from_secs(6);

/// No service answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FirstRequestError {
    /// The client could not be run.
    #[error(transparent)]
    Role(#[from] RoleError),
    /// It asked and got no answer.
    #[error("no answer within {} s; the last attempt: {last}", FIRST_ANSWER.as_secs())]
    NoAnswer {
        /// The last attempt in words.
        last: String,
    },
}

/// The client's own process, started and waiting for its requests.
#[derive(Debug)]
pub(crate) struct Fetch(Role);

impl Fetch {
    /// Starts it; the requests follow with [`Fetch::send`].
    pub(crate) fn start(lab: &Lab) -> Result<Self, RoleError> {
        Role::spawn(lab.client(), "fetch", &lab.client().name, &lab.log_dir(), |_| {}).map(Self)
    }

    /// Sends the requests and waits for all of them to end; exchanges are in the order of their numbers.
    pub(crate) fn send(
        mut self,
        options: &FetchOptions,
        interrupt: &Interrupt,
    ) -> Result<Vec<Exchange>, RoleError> {
        const AWAITED: &str = "the end of its requests";
        self.0.hand_over(options)?;
        let output = finish(vec![self.0], interrupt, AWAITED, limit(options))?.concat();
        let exchange = |line: &str| read(line.to_owned(), "fetch on client", AWAITED);
        let mut exchanges: Vec<Exchange> = output.lines().map(exchange).collect::<Result<_, _>>()?;
        exchanges.sort_by_key(|exchange| exchange.id);
        Ok(exchanges)
    }
}

/// The longest that the requests can take: every request runs into its own deadline, in as many rounds as
/// the concurrency makes; and some time to start.
fn limit(options: &FetchOptions) -> Duration {
    let longest = options.requests.iter().map(|request| request.timeout_ms).max().unwrap_or(0);
    let rounds = options.requests.len().div_ceil(options.concurrency.max(1)) as u64;
    Duration::from_millis(longest.saturating_mul(rounds)) + Duration::from_secs(5)
}

/// Asks the service once, and again until it answers or the time is up: "up" means that it works.
pub(crate) fn first_request(
    lab: &Lab,
    fetch: Fetch,
    interrupt: &Interrupt,
) -> Result<Exchange, FirstRequestError> {
    let options = one(request(1, first_protocol(lab.plan()), first_frontend(lab.plan()), ATTEMPT));
    let deadline = Instant::now() + FIRST_ANSWER;
    let mut attempt = fetch.send(&options, interrupt)?;
    loop {
        match attempt.pop() {
            Some(exchange) if exchange.outcome == Outcome::Answered => return Ok(exchange),
            Some(exchange) if Instant::now() >= deadline => {
                return Err(FirstRequestError::NoAnswer { last: describe(&exchange) });
            }
            _ => attempt = Fetch::start(lab)?.send(&options, interrupt)?,
        }
    }
}

/// A fetch of one request.
fn one(request: Request) -> FetchOptions {
    FetchOptions { requests: vec![request], concurrency: 1, client: Client::Builtin }
}

fn request(id: u32, protocol: Protocol, remote: SocketAddrV4, limit: Duration) -> Request {
    let transport = match protocol {
        Protocol::Tcp => Transport::Tcp,
        Protocol::Udp => Transport::Udp,
    };
    Request { timeout_ms: limit.as_millis() as u64, ..Request::new(id, transport, remote) }
}

/// TCP where there is TCP: it notices more.
fn first_protocol(plan: &Plan) -> Protocol {
    if plan.service.protocols.contains(&Protocol::Tcp) { Protocol::Tcp } else { Protocol::Udp }
}

/// The node that the client asks by the plan; where only nodes with a backend answer, one of those.
fn first_frontend(plan: &Plan) -> SocketAddrV4 {
    let local_only = plan.service.external_traffic_policy == TrafficPolicy::Local;
    let answers = |node: &&NodePlan| !local_only || !node.pods.is_empty();
    let node = Some(plan.ingress()).filter(answers).or_else(|| plan.nodes.iter().find(answers));
    SocketAddrV4::new(node.unwrap_or_else(|| plan.ingress()).address, plan.service.node_port)
}
