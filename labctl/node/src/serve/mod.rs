//! The backend: answers over TCP and UDP and says whom it saw.
//!
//! Owns: binding both sockets, the ready line, serving until told to stop. Does not own: what a reply says
//! (`http`, `udp`), nor where it runs. Started inside a pod or, for hostNetwork backends, inside a node.

mod activity;
mod http;
mod udp;

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::rc::Rc;
use std::time::Duration;

use hyper::header::HeaderValue;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;
use tokio::net::{TcpListener, UdpSocket};
use tokio::signal::unix::{SignalKind, signal};

use self::activity::Activity;

/// Connections that may wait to be accepted; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// Connections served at once; more of them wait in the backlog.
const CONNECTIONS: usize = 4096;
/// File descriptors that connections must leave free.
const SPARE_FILES: u64 = 64;
/// Wished receive buffer of the UDP socket, bytes: a burst of a thousand datagrams fits.
const DATAGRAM_BUFFER: usize = 4 << 20;

/// Who serves, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServeOptions {
    /// Node name to report; printable ASCII.
    pub node: String,
    /// Pod name to report; printable ASCII.
    pub pod: String,
    /// Address to bind; 0.0.0.0 for every address.
    pub address: Ipv4Addr,
    /// Port of both protocols; 0 lets the kernel choose, for each protocol its own.
    pub port: u16,
    /// How long to go on after a stop as long as requests come: those who send them hear of it a little later.
    /// Zero ends at once.
    #[serde(default)]
    pub linger: Duration,
}

/// The ready line: `{"ready":true,"tcp":"10.0.1.108:8080","udp":"10.0.1.108:8080"}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServeReady {
    /// Always true.
    pub ready: bool,
    /// Bound TCP socket.
    pub tcp: SocketAddrV4,
    /// Bound UDP socket.
    pub udp: SocketAddrV4,
}

/// Why a backend cannot serve. Reads well after "failed to serve: ".
#[derive(Debug, Error)]
pub enum ServeError {
    /// The name cannot be written into an HTTP header.
    #[error("the {what} name {name:?} is not printable ascii; choose another name")]
    Name {
        /// `node` or `pod`.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// Somebody else has the port.
    #[error(
        "{protocol} port {socket} is taken by another process; stop it (`ss -lnp` names it) or choose another port"
    )]
    Taken {
        /// `tcp` or `udp`.
        protocol: &'static str,
        /// Wished socket.
        socket: SocketAddrV4,
    },
    /// The address is on no interface of this namespace.
    #[error("no interface has the address {address}; add it, or bind 0.0.0.0")]
    Address {
        /// Wished address.
        address: Ipv4Addr,
    },
    /// Another error of the operating system.
    #[error("cannot {step}: {source}")]
    System {
        /// What was being done.
        step: String,
        /// The operating system's words.
        source: io::Error,
    },
}

impl ServeError {
    fn system(step: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let step = step.into();
        move |source| Self::System { step, source }
    }

    fn bind(protocol: &'static str, socket: SocketAddrV4) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.kind() {
            io::ErrorKind::AddrInUse => Self::Taken { protocol, socket },
            io::ErrorKind::AddrNotAvailable => Self::Address { address: *socket.ip() },
            _ => Self::System { step: format!("bind {protocol} port {socket}"), source },
        }
    }
}

/// What every reply says of its sender.
#[derive(Debug)]
struct Identity {
    node: String,
    pod: String,
    node_header: HeaderValue,
    pod_header: HeaderValue,
    activity: Rc<Activity>,
}

impl Identity {
    fn new(options: &ServeOptions) -> Result<Rc<Self>, ServeError> {
        let header = |what: &'static str, name: &str| {
            HeaderValue::from_str(name)
                .ok()
                .filter(|h| h.to_str().is_ok())
                .ok_or_else(|| ServeError::Name { what, name: name.to_owned() })
        };
        Ok(Rc::new(Self {
            node_header: header("node", &options.node)?,
            pod_header: header("pod", &options.pod)?,
            node: options.node.clone(),
            pod: options.pod.clone(),
            activity: Rc::default(),
        }))
    }
}

/// A backend with both sockets bound. It belongs to the thread that made it.
#[derive(Debug)]
pub struct Server {
    identity: Rc<Identity>,
    tcp: TcpListener,
    udp: UdpSocket,
    ready: ServeReady,
    linger: Duration,
}

impl Server {
    /// Binds both sockets; needs a tokio runtime with I/O around it.
    ///
    /// # Errors
    /// A name that no header can carry, a taken port, an address that no interface has.
    pub fn bind(options: &ServeOptions) -> Result<Self, ServeError> {
        let identity = Identity::new(options)?;
        let socket = SocketAddrV4::new(options.address, options.port);
        let tcp = listen(socket)?;
        let udp = open_udp(socket)?;
        let ready = ServeReady {
            ready: true,
            tcp: bound(&tcp).map_err(ServeError::system("read the tcp address"))?,
            udp: bound(&udp).map_err(ServeError::system("read the udp address"))?,
        };
        let tcp =
            TcpListener::from_std(tcp.into()).map_err(ServeError::system("hand tcp to the event loop"))?;
        let udp =
            UdpSocket::from_std(udp.into()).map_err(ServeError::system("hand udp to the event loop"))?;
        Ok(Self { identity, tcp, udp, ready, linger: options.linger })
    }

    /// The bound sockets.
    pub fn ready(&self) -> ServeReady {
        self.ready
    }

    /// Serves until `stop` completes, lingers if it was told to, then drops every connection. Must run inside a
    /// [`tokio::task::LocalSet`].
    pub async fn serve(self, stop: impl Future<Output = ()>) {
        let activity = self.identity.activity.clone();
        let udp = tokio::task::spawn_local(udp::serve(self.udp, self.identity.clone()));
        let tcp = tokio::task::spawn_local(http::serve(self.tcp, self.identity, connection_limit()));
        stop.await;
        if !self.linger.is_zero() {
            activity.quiet(self.linger).await;
        }
        tcp.abort();
        udp.abort();
    }
}

/// The role: binds, writes the ready line to `out`, serves until SIGTERM or SIGINT.
///
/// # Errors
/// As [`Server::bind`], and when `out` cannot be written.
pub fn run(options: &ServeOptions, out: &mut dyn Write) -> Result<(), ServeError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(ServeError::system("start the event loop"))?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        // Handlers first: a stop that comes right after the ready line must not be missed.
        let mut terminate =
            signal(SignalKind::terminate()).map_err(ServeError::system("wait for sigterm"))?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::system("wait for sigint"))?;
        let server = Server::bind(options)?;
        let line = serde_json::to_string(&server.ready()).expect("addresses always serialise");
        writeln!(out, "{line}")
            .and_then(|()| out.flush())
            .map_err(ServeError::system("write the ready line"))?;
        let stop = std::future::poll_fn(move |cx| {
            let terminated = terminate.poll_recv(cx).is_ready();
            let interrupted = interrupt.poll_recv(cx).is_ready();
            if terminated || interrupted { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        });
        server.serve(stop).await;
        Ok(())
    })
}

fn listen(socket: SocketAddrV4) -> Result<Socket, ServeError> {
    let tcp = Socket::new(Domain::IPV4, Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))
        .map_err(ServeError::system("open a tcp socket"))?;
    // A restart right after a stop must not wait for old connections to leave TIME_WAIT.
    tcp.set_reuse_address(true).map_err(ServeError::system("set SO_REUSEADDR"))?;
    tcp.bind(&socket.into()).map_err(ServeError::bind("tcp", socket))?;
    // With SO_REUSEADDR a second listener is noticed here and not at bind.
    tcp.listen(BACKLOG).map_err(ServeError::bind("tcp", socket))?;
    Ok(tcp)
}

fn open_udp(socket: SocketAddrV4) -> Result<Socket, ServeError> {
    let udp = Socket::new(Domain::IPV4, Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))
        .map_err(ServeError::system("open a udp socket"))?;
    nix::sys::socket::setsockopt(&udp, nix::sys::socket::sockopt::Ipv4PacketInfo, &true)
        .map_err(|e| ServeError::system("set IP_PKTINFO")(e.into()))?;
    // Without CAP_NET_ADMIN the wish is capped at net.core.rmem_max; that is good enough.
    if nix::sys::socket::setsockopt(&udp, nix::sys::socket::sockopt::RcvBufForce, &DATAGRAM_BUFFER).is_err() {
        udp.set_recv_buffer_size(DATAGRAM_BUFFER).map_err(ServeError::system("set SO_RCVBUF"))?;
    }
    udp.bind(&socket.into()).map_err(ServeError::bind("udp", socket))?;
    Ok(udp)
}

fn bound(socket: &Socket) -> io::Result<SocketAddrV4> {
    socket.local_addr()?.as_socket_ipv4().ok_or_else(|| io::Error::other("the socket is not ipv4"))
}

/// Raises the soft limit of open files as far as it goes, and returns how many connections fit below it.
fn connection_limit() -> usize {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return CONNECTIONS };
    let wished = hard.min(CONNECTIONS as u64 + SPARE_FILES).max(soft);
    let files = match setrlimit(Resource::RLIMIT_NOFILE, wished, hard) {
        Ok(()) => wished,
        Err(_) => soft,
    };
    files.saturating_sub(SPARE_FILES).clamp(1, CONNECTIONS as u64) as usize
}
