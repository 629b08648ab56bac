//! How far one exchange has come.
//!
//! Owns: the facts that survive a deadline: which phase was under way, what was measured, whom the reply
//! named. Does not own: the protocols that fill it in. Kept outside the attempt so that dropping the attempt
//! at its deadline loses nothing.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use labctl_wire::{Exchange, Outcome, ServedBy, Timings};
use socket2::{Domain, Socket, Type};

use super::Request;

/// How an attempt went wrong.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The network or the peer said no.
    Failed(String),
    /// The reply is not what was asked for.
    Corrupt(String),
    /// A client of its own (curl) gave up waiting.
    TimedOut(&'static str),
}

impl Trouble {
    /// An error of the operating system while `doing`.
    pub(super) fn io(doing: &str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Failed(format!("{doing}: {error}"))
    }
}

/// One exchange under way.
#[derive(Debug)]
pub(super) struct Progress {
    started: Instant,
    started_ns: u64,
    waiting_for: Cell<&'static str>,
    local: Cell<SocketAddrV4>,
    connect: Cell<Option<Duration>>,
    first_byte: Cell<Option<Duration>>,
    received: Cell<u64>,
    served_by: RefCell<Option<ServedBy>>,
}

impl Progress {
    pub(super) fn start() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            started: Instant::now(),
            started_ns: u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX),
            waiting_for: Cell::new("connect"),
            local: Cell::new(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0)),
            connect: Cell::default(),
            first_byte: Cell::default(),
            received: Cell::default(),
            served_by: RefCell::default(),
        }
    }

    /// Says what comes next; a deadline that strikes is reported with these words.
    pub(super) fn wait_for(&self, what: &'static str) {
        self.waiting_for.set(what);
    }

    pub(super) fn waiting_for(&self) -> &'static str {
        self.waiting_for.get()
    }

    pub(super) fn set_local(&self, local: SocketAddrV4) {
        self.local.set(local);
    }

    pub(super) fn set_connect(&self, took: Duration) {
        self.connect.set(Some(took));
    }

    pub(super) fn set_first_byte(&self, took: Duration) {
        self.first_byte.set(Some(took));
    }

    pub(super) fn add_received(&self, bytes: usize) {
        self.received.set(self.received.get() + bytes as u64);
    }

    pub(super) fn set_served_by(&self, served_by: Option<ServedBy>) {
        *self.served_by.borrow_mut() = served_by;
    }

    /// The report.
    pub(super) fn finish(self, request: &Request, outcome: Outcome) -> Exchange {
        let micros = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
        // Only a complete reply speaks for its backend, be it right or wrong.
        let complete = matches!(outcome, Outcome::Answered | Outcome::Corrupt { .. });
        let served_by = self.served_by.into_inner().filter(|_| complete);
        Exchange {
            id: request.id,
            protocol: request.protocol.name().to_owned(),
            local: self.local.get(),
            remote: request.remote,
            started_ns: self.started_ns,
            timings: Timings {
                connect_us: self.connect.get().map(micros),
                first_byte_us: self.first_byte.get().map(micros),
                total_us: Some(micros(self.started.elapsed())),
            },
            outcome,
            received: self.received.get(),
            served_by,
        }
    }
}

/// A non-blocking socket bound as the request wishes and connecting to its frontend; the own address is
/// recorded at once, so that a request that never gets an answer can still be found in a capture.
pub(super) fn connecting_socket(
    request: &Request,
    kind: Type,
    progress: &Progress,
) -> Result<Socket, Trouble> {
    let socket = Socket::new(Domain::IPV4, kind.nonblocking().cloexec(), None)
        .map_err(Trouble::io("cannot open a socket"))?;
    if request.source_address.is_some() || request.source_port.is_some() {
        bind(&socket, request)?;
    }
    match socket.connect(&request.remote.into()) {
        Ok(()) => {}
        Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => {}
        Err(e) if e.kind() == io::ErrorKind::AddrNotAvailable => {
            let hint = "every port towards this frontend is in use or in TIME_WAIT; ask from another port";
            return Err(Trouble::Failed(format!("cannot connect: {e} ({hint})")));
        }
        Err(e) => return Err(Trouble::Failed(format!("cannot connect: {e}"))),
    }
    if let Some(local) = socket.local_addr().ok().and_then(|a| a.as_socket_ipv4()) {
        progress.set_local(local);
    }
    Ok(socket)
}

fn bind(socket: &Socket, request: &Request) -> Result<(), Trouble> {
    let own = SocketAddrV4::new(
        request.source_address.unwrap_or(Ipv4Addr::UNSPECIFIED),
        request.source_port.unwrap_or(0),
    );
    // A port whose last connection still lies in TIME_WAIT may be used again towards another peer.
    socket.set_reuse_address(true).map_err(Trouble::io("cannot set SO_REUSEADDR"))?;
    socket.bind(&own.into()).map_err(Trouble::io(&format!("cannot use the source {own}")))
}
