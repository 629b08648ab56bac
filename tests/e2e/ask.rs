//! The client of a lab: typed requests for `labctl node fetch`, run inside the client's namespace.
//!
//! Owns: starting it, its requests and its replies. Does not own: what is expected of them.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::{Child, Stdio};

use labctl_node::fetch::{Client, FetchOptions, Request, Transport};
use labctl_wire::{Exchange, Outcome};

use crate::lab::Lab;
use crate::verdict::text;

/// The client of every built-in lab.
pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 1);
/// The node that the client talks to in dsr, snat and hybrid.
pub(crate) const WORKER: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 3);
/// The node that runs the backend.
pub(crate) const WORKER2: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 2);
/// The backend pod of every built-in lab.
pub(crate) const POD: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 108);
/// Its name, which is that of its host too.
pub(crate) const POD_NAME: &str = "web-1";
/// NodePort of every built-in lab.
pub(crate) const NODE_PORT: u16 = 32000;

/// The frontend that the client uses: in mode local the backend's own node answers and no other.
pub(crate) fn frontend(mode: &str) -> SocketAddrV4 {
    SocketAddrV4::new(if mode == "local" { WORKER2 } else { WORKER }, NODE_PORT)
}

/// `count` requests numbered from `first`, each changed by `edit`.
pub(crate) fn requests(
    first: u32,
    count: u32,
    protocol: Transport,
    to: SocketAddrV4,
    edit: impl Fn(&mut Request),
) -> Vec<Request> {
    let one = |id| {
        let mut request = Request { timeout_ms: 20_000, ..Request::new(id, protocol, to) };
        edit(&mut request);
        request
    };
    (first..first + count).map(one).collect()
}

/// Requests under way.
pub(crate) struct Asking(Child);

impl Asking {
    /// Waits for all exchanges, by number.
    pub(crate) fn finish(self) -> Vec<Exchange> {
        let output = self.0.wait_with_output().expect("fetch ends");
        assert!(output.status.success(), "fetch failed:\n{}", text(&output));
        let line = |line: &str| serde_json::from_str::<Exchange>(line).expect("one exchange a line");
        let mut exchanges: Vec<_> = String::from_utf8_lossy(&output.stdout).lines().map(line).collect();
        exchanges.sort_by_key(|exchange| exchange.id);
        exchanges
    }
}

impl Lab {
    /// Starts the client with these requests, 16 at a time.
    pub(crate) fn start_asking(&self, requests: Vec<Request>) -> Asking {
        self.start_asking_by(requests, 16)
    }

    /// As [`Lab::start_asking`], `concurrency` at a time.
    pub(crate) fn start_asking_by(&self, requests: Vec<Request>, concurrency: usize) -> Asking {
        let options = FetchOptions { requests, concurrency, per_second: None, client: Client::Builtin };
        let mut child = self
            .inside("client", env!("CARGO_BIN_EXE_labctl"))
            .args(["node", "fetch", "--lab", &self.name])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("fetch starts");
        let mut stdin = child.stdin.take().expect("it was piped");
        stdin
            .write_all(&serde_json::to_vec(&options).expect("requests are plain data"))
            .expect("fetch reads its requests");
        Asking(child)
    }

    /// Sends the requests and waits for all exchanges.
    pub(crate) fn ask(&self, requests: Vec<Request>) -> Vec<Exchange> {
        self.start_asking(requests).finish()
    }

    /// One request to a frontend.
    pub(crate) fn ask_one(
        &self,
        protocol: Transport,
        to: SocketAddrV4,
        edit: impl Fn(&mut Request),
    ) -> Exchange {
        self.ask(requests(1, 1, protocol, to, edit)).remove(0)
    }
}

/// Panics with the first exchange that was not answered. Fetch has compared every byte.
pub(crate) fn assert_answered(exchanges: &[Exchange], expected: usize) {
    assert_eq!(exchanges.len(), expected, "not every request came to an end");
    let wrong: Vec<_> = exchanges.iter().filter(|e| e.outcome != Outcome::Answered).collect();
    assert!(wrong.is_empty(), "{} of {} were not answered; the first: {:?}", wrong.len(), expected, wrong[0]);
}

/// The operating system's words of a request that failed.
pub(crate) fn failure(exchange: &Exchange) -> &str {
    match &exchange.outcome {
        Outcome::Failed { error } => error,
        other => panic!("expected an error from the network, got {other:?}"),
    }
}
