//! Requests of the client: the first one, which shows that a lab works, and those that `verify` sends.

use std::net::{Ipv4Addr, SocketAddrV4};
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

/// How long a lab that has just been made may take to answer.
pub(crate) const FIRST_ANSWER: Duration = Duration::from_secs(6);

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(50);

/// No service answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FirstRequestError {
    /// The client could not be run.
    #[error(transparent)]
    Role(#[from] RoleError),
    /// It asked and got no answer.
    #[error("no answer{}: {last}", within(*patience))]
    NoAnswer {
        /// How long it was tried; nothing for one attempt.
        patience: Duration,
        /// The last attempt in words.
        last: String,
    },
}

/// " within 6 s".
fn within(patience: Duration) -> String {
    if patience.is_zero() { String::new() } else { format!(" within {} s", patience.as_secs()) }
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

/// Asks the service once, and again until it answers or `patience` is over: "up" means that it works.
pub(crate) fn first_request(
    lab: &Lab,
    fetch: Fetch,
    patience: Duration,
    interrupt: &Interrupt,
) -> Result<Exchange, FirstRequestError> {
    let options =
        one(request(lab.plan(), 1, first_protocol(lab.plan()), first_frontend(lab.plan()), ATTEMPT));
    let deadline = Instant::now() + patience;
    let mut attempt = fetch.send(&options, interrupt)?;
    loop {
        match attempt.pop() {
            Some(exchange) if exchange.outcome == Outcome::Answered => return Ok(exchange),
            Some(exchange) if Instant::now() >= deadline => {
                return Err(FirstRequestError::NoAnswer { patience, last: describe(&exchange) });
            }
            _ => {}
        }
        // A refusal comes at once: leave whoever refuses some time. A signal ends the next attempt.
        interrupt.wait(&[], Some(Instant::now() + PAUSE));
        attempt = Fetch::start(lab)?.send(&options, interrupt)?;
    }
}

/// A fetch of one request.
fn one(request: Request) -> FetchOptions {
    FetchOptions { requests: vec![request], concurrency: 1, per_second: None, client: Client::Builtin }
}

/// Somebody else's backend knows nothing of the paths of ours: it is asked for what every web server has.
const ANYBODYS_PATH: &str = "/";

fn request(plan: &Plan, id: u32, protocol: Protocol, remote: SocketAddrV4, limit: Duration) -> Request {
    let transport = match protocol {
        Protocol::Tcp => Transport::Tcp,
        Protocol::Udp => Transport::Udp,
    };
    let is_anybodys = plan.service.foreign.is_some();
    let path = is_anybodys.then(|| ANYBODYS_PATH.to_owned());
    let timeout_ms = limit.as_millis() as u64;
    Request { timeout_ms, path, any_status: is_anybodys, ..Request::new(id, transport, remote) }
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

/// How long a node without a backend may stay silent before that counts as a refusal: many times the
/// round trip, and less than the second after which a SYN is sent again.
const SILENCE: Duration = Duration::from_millis(400);

/// How long a request of `verify` may take.
const ANSWER: Duration = Duration::from_secs(3);

/// Requests under way at once.
const CONCURRENCY: usize = 32;

/// What a run of `verify` asks.
#[derive(Debug)]
pub(crate) struct Questions {
    /// All requests, numbered from 1: first those that must be answered.
    pub(crate) options: FetchOptions,
    /// How many of them must be answered.
    answerable: usize,
    /// How many of these ask other nodes than the one that the plan names.
    elsewhere: usize,
}

impl Questions {
    /// The plan's traffic; if `all_nodes`, also one request per protocol to each other node: a NodePort is every node's.
    /// Under traffic policy Local a node without a backend must stay silent.
    pub(crate) fn new(plan: &Plan, all_nodes: bool) -> Self {
        let frontend = SocketAddrV4::new(plan.ingress().address, plan.service.node_port);
        let mut requests = Vec::new();
        for protocol in &plan.service.protocols {
            for _ in 0..planned_count(plan, *protocol) {
                let id = requests.len() as u32 + 1;
                let response_bytes = match protocol {
                    Protocol::Tcp => u64::from(plan.traffic.response_bytes),
                    Protocol::Udp => 0,
                };
                requests.push(Request { response_bytes, ..request(plan, id, *protocol, frontend, ANSWER) });
            }
        }
        let planned = requests.len();
        for (index, node) in
            plan.nodes.iter().enumerate().filter(|(_, node)| all_nodes && is_asked_as_well(plan, node))
        {
            let frontend = SocketAddrV4::new(node.address, plan.service.node_port);
            for protocol in &plan.service.protocols {
                if planned_count(plan, *protocol) > 0 {
                    let id = requests.len() as u32 + 1;
                    let source_port = Some(OTHER_NODES_PORT + index as u16);
                    requests.push(Request { source_port, ..request(plan, id, *protocol, frontend, ANSWER) });
                }
            }
        }
        let answerable = requests.len();
        let elsewhere = answerable - planned;
        for (address, protocol) in silent_frontends(plan) {
            let frontend = SocketAddrV4::new(address, plan.service.node_port);
            requests.push(request(plan, requests.len() as u32 + 1, protocol, frontend, SILENCE));
        }
        let options =
            FetchOptions { requests, concurrency: CONCURRENCY, per_second: None, client: Client::Builtin };
        Self { options, answerable, elsewhere }
    }

    /// "8 tcp and 8 udp requests": what the step says.
    pub(crate) fn words(&self) -> String {
        let (answerable, refused) = self.options.requests.split_at(self.answerable);
        let (answerable, elsewhere) = answerable.split_at(self.answerable - self.elsewhere);
        let udp = answerable.iter().filter(|request| request.protocol == Transport::Udp).count();
        let mut words = match (answerable.len() - udp, udp) {
            (tcp, 0) => format!("{tcp} tcp requests"),
            (0, udp) => format!("{udp} udp requests"),
            (tcp, udp) => format!("{tcp} tcp and {udp} udp requests"),
        };
        if !elsewhere.is_empty() {
            words.push_str(&format!(", {} to the other nodes", elsewhere.len()));
        }
        if !refused.is_empty() {
            words.push_str(&format!(", {} to nodes without a backend", refused.len()));
        }
        words
    }

    /// Tells the exchanges that must be answered from those that must not.
    pub(crate) fn split(&self, mut exchanges: Vec<Exchange>) -> (Vec<Exchange>, Vec<Exchange>) {
        let refusals = exchanges.split_off(self.answerable.min(exchanges.len()));
        (exchanges, refusals)
    }
}

/// How often the plan's traffic asks by a protocol.
const fn planned_count(plan: &Plan, protocol: Protocol) -> u32 {
    match protocol {
        Protocol::Tcp => plan.traffic.requests,
        Protocol::Udp => plan.traffic.datagrams,
    }
}

/// First of the client's ports for requests to other nodes, one a node. Always the same, so that a port never stands for
/// two frontends while nodes remember it; below the kernel's own range and below NodePorts.
const OTHER_NODES_PORT: u16 = 20_000;

/// Whether a node that the plan's traffic does not ask must answer all the same.
fn is_asked_as_well(plan: &Plan, node: &NodePlan) -> bool {
    let local_only = plan.service.external_traffic_policy == TrafficPolicy::Local;
    node.name != plan.traffic.via && (!local_only || !node.pods.is_empty())
}

/// Frontends that must not answer: NodePorts of nodes without a backend under traffic policy Local.
fn silent_frontends(plan: &Plan) -> Vec<(Ipv4Addr, Protocol)> {
    if plan.service.external_traffic_policy != TrafficPolicy::Local {
        return Vec::new();
    }
    let without = plan.nodes.iter().filter(|node| node.pods.is_empty());
    without.flat_map(|node| plan.service.protocols.iter().map(|p| (node.address, *p))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(name: &str) -> Plan {
        labctl_model::parse(name, labctl_model::builtin_lab(name).unwrap()).unwrap()
    }

    #[test]
    fn requests_are_numbered_from_one_without_gaps() {
        let plan = plan("dsr");
        let questions = Questions::new(&plan, true);
        let ids: Vec<u32> = questions.options.requests.iter().map(|request| request.id).collect();
        // Two other nodes, two protocols.
        let total = plan.traffic.requests + plan.traffic.datagrams + 4;
        assert_eq!(ids, (1..=total).collect::<Vec<_>>());
        assert_eq!(questions.answerable, total as usize);
        assert_eq!(questions.words(), "8 tcp and 8 udp requests, 4 to the other nodes");
        assert_eq!(Questions::new(&plan, false).words(), "8 tcp and 8 udp requests");
    }

    #[test]
    fn under_policy_local_nodes_without_a_backend_are_asked_too() {
        let plan = plan("local");
        let questions = Questions::new(&plan, false);
        let (_, refused) = questions.options.requests.split_at(questions.answerable);
        assert!(!refused.is_empty());
        for request in refused {
            let node = plan.nodes.iter().find(|node| node.address == *request.remote.ip()).unwrap();
            assert!(node.pods.is_empty(), "{} has a backend", node.name);
        }
    }

    #[test]
    fn the_first_request_goes_where_an_answer_must_come() {
        let plan = plan("local");
        let asked = *first_frontend(&plan).ip();
        assert!(plan.nodes.iter().any(|node| node.address == asked && !node.pods.is_empty()));
    }
}
