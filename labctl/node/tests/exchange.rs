//! serve and fetch against each other on loopback, and fetch against peers that misbehave.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket};
use std::num::NonZeroU32;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use labctl_node::fetch::{Client, FetchOptions, Request, Transport, fetch};
use labctl_node::serve::{ServeError, ServeOptions, ServeReady, Server};
use labctl_wire::{Exchange, Outcome};

/// A backend on a thread of its own; stops when dropped.
struct Backend {
    ready: ServeReady,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Backend {
    fn start(address: Ipv4Addr) -> Self {
        Self::lingering(address, Duration::ZERO)
    }

    fn lingering(address: Ipv4Addr, linger: Duration) -> Self {
        let (sender, ready) = mpsc::channel();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            tokio::task::LocalSet::new().block_on(&runtime, async {
                let options =
                    ServeOptions { node: "worker2".into(), pod: "web-1".into(), address, port: 0, linger };
                let server = Server::bind(&options).expect("loopback can be bound");
                sender.send(server.ready()).expect("the test waits");
                server.serve(async { drop(stopped.await) }).await;
            });
        });
        let ready = ready.recv_timeout(Duration::from_secs(10)).expect("the backend becomes ready");
        Self { ready, stop: Some(stop), thread: Some(thread) }
    }

    fn tcp(&self) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::LOCALHOST, self.ready.tcp.port())
    }

    fn udp(&self) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::LOCALHOST, self.ready.udp.port())
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            assert!(thread.join().is_ok(), "the backend thread panicked");
        }
    }
}

fn ask_with(client: Client, requests: Vec<Request>) -> Vec<Exchange> {
    let options = FetchOptions { requests, concurrency: 64, per_second: None, client };
    fetch(&options, |_| Ok(())).expect("the requests make sense")
}

fn ask(request: Request) -> Exchange {
    ask_with(Client::Builtin, vec![request]).remove(0)
}

fn tcp(id: u32, remote: SocketAddrV4) -> Request {
    Request { timeout_ms: 10_000, ..Request::new(id, Transport::Tcp, remote) }
}

fn udp(id: u32, remote: SocketAddrV4) -> Request {
    Request { timeout_ms: 10_000, ..Request::new(id, Transport::Udp, remote) }
}

/// A TCP server that runs `behave` on its only connection.
fn peer(behave: impl FnOnce(std::net::TcpStream) + Send + 'static) -> (SocketAddrV4, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback can be bound");
    let Ok(SocketAddr::V4(address)) = listener.local_addr() else { panic!("loopback is ipv4") };
    let thread = std::thread::spawn(move || behave(listener.accept().expect("fetch connects").0));
    (address, thread)
}

fn read_head(stream: &mut std::net::TcpStream) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).expect("fetch sends a whole head");
        head.push(byte[0]);
    }
}

#[test]
fn tcp_names_both_ends() {
    let backend = Backend::start(Ipv4Addr::LOCALHOST);
    let exchange = ask(tcp(7, backend.tcp()));
    assert_eq!(exchange.outcome, Outcome::Answered);
    let by = exchange.served_by.expect("a complete reply names its backend");
    assert_eq!((by.node.as_str(), by.pod.as_str()), ("worker2", "web-1"));
    assert_eq!(by.peer, exchange.local, "nobody rewrites on loopback");
    assert_eq!(by.local, exchange.remote);
    let timings = exchange.timings;
    assert!(timings.connect_us.is_some() && timings.first_byte_us.is_some() && timings.total_us.is_some());
}

#[test]
fn source_port_is_used_and_may_be_used_again() {
    let backend = Backend::start(Ipv4Addr::LOCALHOST);
    let free = UdpSocket::bind("127.0.0.1:0").and_then(|s| s.local_addr()).expect("a free port").port();
    for protocol in [Transport::Tcp, Transport::Udp] {
        for id in 1..4 {
            let remote = if protocol == Transport::Tcp { backend.tcp() } else { backend.udp() };
            // Another own address each time: the port is the same, the flow is not.
            let own = Ipv4Addr::new(127, 0, 0, 10 + id as u8);
            let request = Request { source_address: Some(own), source_port: Some(free), ..tcp(id, remote) };
            let exchange = ask(Request { protocol, ..request });
            assert_eq!(exchange.outcome, Outcome::Answered);
            assert_eq!(exchange.local, SocketAddrV4::new(own, free));
        }
    }
}

#[test]
fn ten_mebibytes_each_way() {
    let backend = Backend::start(Ipv4Addr::LOCALHOST);
    const SIZE: u64 = 10 << 20;
    for client in [Client::Builtin, Client::Curl] {
        let down = Request { response_bytes: SIZE, timeout_ms: 60_000, ..tcp(1, backend.tcp()) };
        let up = Request { upload_bytes: SIZE, timeout_ms: 60_000, ..tcp(2, backend.tcp()) };
        if client == Client::Curl && no_curl() {
            return;
        }
        let exchanges = ask_with(client, vec![down, up]);
        for exchange in &exchanges {
            assert_eq!(exchange.outcome, Outcome::Answered, "{client:?}: {exchange:?}");
            assert!(exchange.served_by.is_some(), "{client:?}: {exchange:?}");
        }
        assert_eq!(exchanges[0].received, SIZE);
    }
}

#[expect(clippy::print_stderr, reason = "a skipped test says why")]
fn no_curl() -> bool {
    let missing = std::process::Command::new("curl").arg("--version").output().is_err();
    if missing {
        eprintln!("skipped: no curl in PATH");
    }
    missing
}

#[test]
fn curl_reports_like_the_builtin_client() {
    if no_curl() {
        return;
    }
    let backend = Backend::start(Ipv4Addr::LOCALHOST);
    let free = TcpListener::bind("127.0.0.1:0").and_then(|s| s.local_addr()).expect("a free port").port();
    let requests = vec![Request { source_port: Some(free), ..tcp(1, backend.tcp()) }];
    let exchange = ask_with(Client::Curl, requests).remove(0);
    assert_eq!(exchange.outcome, Outcome::Answered);
    assert_eq!(exchange.local.port(), free);
    assert_eq!(exchange.served_by.map(|by| by.peer), Some(exchange.local));
    assert!(exchange.timings.connect_us.is_some() && exchange.timings.first_byte_us.is_some());
    let refused = ask_with(Client::Curl, vec![tcp(1, closed_port())]).remove(0);
    assert!(
        matches!(&refused.outcome, Outcome::Failed { error } if error.contains("curl error 7")),
        "{refused:?}"
    );
    let silent = TcpListener::bind("127.0.0.1:0").expect("loopback can be bound");
    let Ok(SocketAddr::V4(remote)) = silent.local_addr() else { panic!("loopback is ipv4") };
    let late = ask_with(Client::Curl, vec![Request { timeout_ms: 300, ..tcp(1, remote) }]).remove(0);
    assert!(matches!(late.outcome, Outcome::TimedOut { .. }), "{late:?}");
}

#[test]
fn a_thousand_short_connections() {
    let backend = Backend::start(Ipv4Addr::LOCALHOST);
    let started = Instant::now();
    let exchanges = ask_with(Client::Builtin, (1..=1000).map(|id| tcp(id, backend.tcp())).collect());
    let took = started.elapsed();
    assert_eq!(exchanges.iter().map(|e| e.id).collect::<Vec<_>>(), (1..=1000).collect::<Vec<_>>());
    for exchange in &exchanges {
        assert_eq!(exchange.outcome, Outcome::Answered, "{exchange:?}");
        assert_eq!(exchange.served_by.as_ref().map(|by| by.peer), Some(exchange.local));
    }
    assert!(took < Duration::from_secs(20), "1000 connections took {took:?}");
}

#[test]
fn a_rate_spreads_the_requests() {
    let backend = Backend::start(Ipv4Addr::LOCALHOST);
    let requests = (1..=21).map(|id| tcp(id, backend.tcp())).collect();
    let options =
        FetchOptions { requests, concurrency: 64, per_second: NonZeroU32::new(200), client: Client::Builtin };
    let began = Instant::now();
    let exchanges = fetch(&options, |_| Ok(())).expect("the requests make sense");
    assert_eq!(exchanges.iter().filter(|e| e.outcome == Outcome::Answered).count(), 21);
    // Never early: twenty intervals of 5 ms lie before the last one.
    assert!(began.elapsed() >= Duration::from_millis(100), "{:?}", began.elapsed());
}

#[test]
fn a_thousand_datagrams_of_every_size() {
    let backend = Backend::start(Ipv4Addr::UNSPECIFIED);
    let request = |id: u32| Request {
        upload_bytes: u64::from(id) * 60,
        response_bytes: u64::from(1001 - id) * 65,
        ..udp(id, backend.udp())
    };
    for exchange in ask_with(Client::Builtin, (1..=1000).map(request).collect()) {
        assert_eq!(exchange.outcome, Outcome::Answered, "{exchange:?}");
        let least = u64::from(1001 - exchange.id) * 65;
        assert!(exchange.received >= least.min(200), "{exchange:?}");
    }
}

#[test]
fn udp_replies_from_the_address_that_was_asked() {
    let backend = Backend::start(Ipv4Addr::UNSPECIFIED);
    // Without care the kernel would reply from 127.0.0.1, and the connected socket would not take it.
    let remote = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 77), backend.ready.udp.port());
    let exchange = ask(udp(1, remote));
    assert_eq!(exchange.outcome, Outcome::Answered);
    assert_eq!(exchange.served_by.map(|by| by.local), Some(remote));
}

fn closed_port() -> SocketAddrV4 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback can be bound");
    let Ok(SocketAddr::V4(address)) = listener.local_addr() else { panic!("loopback is ipv4") };
    address
}

#[test]
fn refused_is_a_failure_in_the_systems_words() {
    for request in [tcp(1, closed_port()), udp(1, closed_port())] {
        let exchange = ask(request);
        let Outcome::Failed { error } = &exchange.outcome else { panic!("{exchange:?}") };
        assert!(error.contains("refused"), "{error}");
        assert_ne!(exchange.local.port(), 0, "the flow can be found in a capture");
        assert_eq!(exchange.served_by, None);
    }
}

#[test]
fn reset_in_the_middle_is_a_failure() {
    let (remote, thread) = peer(|mut stream| {
        read_head(&mut stream);
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nabc").expect("fetch reads");
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("linger is known");
    });
    let exchange = ask(Request { response_bytes: 1000, ..tcp(1, remote) });
    thread.join().expect("the peer behaves");
    let Outcome::Failed { error } = &exchange.outcome else { panic!("{exchange:?}") };
    assert!(error.contains("reset"), "{error}");
}

#[test]
fn early_close_is_a_failure() {
    let (remote, thread) = peer(|mut stream| read_head(&mut stream));
    let exchange = ask(tcp(1, remote));
    thread.join().expect("the peer behaves");
    let Outcome::Failed { error } = &exchange.outcome else { panic!("{exchange:?}") };
    assert!(error.contains("closed"), "{error}");
}

#[test]
fn silence_times_out_and_names_the_phase() {
    let (done, wait) = mpsc::channel::<()>();
    let (remote, thread) = peer(move |mut stream| {
        read_head(&mut stream);
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nabc").expect("fetch reads");
        let _closed = wait.recv();
    });
    let request = Request { response_bytes: 1000, timeout_ms: 300, ..tcp(1, remote) };
    let exchange = ask(request);
    drop(done);
    thread.join().expect("the peer behaves");
    assert_eq!(exchange.outcome, Outcome::TimedOut { waiting_for: "response body".into() });
    assert_eq!(exchange.received, 3);

    let silent = UdpSocket::bind("127.0.0.1:0").expect("loopback can be bound");
    let Ok(SocketAddr::V4(remote)) = silent.local_addr() else { panic!("loopback is ipv4") };
    let exchange = ask(Request { timeout_ms: 300, ..udp(1, remote) });
    assert_eq!(exchange.outcome, Outcome::TimedOut { waiting_for: "datagram".into() });
}

#[test]
fn one_flipped_bit_is_found() {
    let (remote, thread) = peer(|mut stream| {
        read_head(&mut stream);
        let mut body = vec![0; 5000];
        labctl_node::pattern::fill(9, 0, &mut body);
        body[4321] ^= 4;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n").expect("fetch reads");
        stream.write_all(&body).expect("fetch reads");
    });
    let exchange = ask(Request { response_bytes: 5000, ..tcp(9, remote) });
    thread.join().expect("the peer behaves");
    assert_eq!(
        exchange.outcome,
        Outcome::Corrupt { detail: "the response body differs at byte 4321".into() }
    );
}

#[test]
fn a_datagram_damaged_on_the_way_is_found_by_the_backend() {
    let backend = Backend::start(Ipv4Addr::LOCALHOST);
    let relay = UdpSocket::bind("127.0.0.1:0").expect("loopback can be bound");
    let Ok(SocketAddr::V4(remote)) = relay.local_addr() else { panic!("loopback is ipv4") };
    let behind = backend.udp();
    let thread = std::thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        let (len, client) = relay.recv_from(&mut buffer).expect("fetch sends");
        buffer[400] ^= 1;
        relay.send_to(&buffer[..len], behind).expect("loopback");
        let (len, _) = relay.recv_from(&mut buffer).expect("the backend answers");
        relay.send_to(&buffer[..len], client).expect("loopback");
    });
    let exchange = ask(Request { upload_bytes: 600, ..udp(1, remote) });
    thread.join().expect("the relay behaves");
    assert!(
        matches!(&exchange.outcome, Outcome::Corrupt { detail } if detail.contains("wrong byte at 400")),
        "{exchange:?}"
    );
}

#[test]
fn wrong_status_is_corrupt() {
    let backend = Backend::start(Ipv4Addr::LOCALHOST);
    let exchange = ask(Request { path: Some("/nowhere".into()), ..tcp(1, backend.tcp()) });
    assert!(
        matches!(&exchange.outcome, Outcome::Corrupt { detail } if detail.contains("404")),
        "{exchange:?}"
    );
    let health = ask(Request { path: Some("/healthz".into()), ..tcp(1, backend.tcp()) });
    assert_eq!((health.outcome, health.received), (Outcome::Answered, 3));
}

#[test]
fn a_connection_carries_many_requests() {
    let backend = Backend::start(Ipv4Addr::LOCALHOST);
    let mut stream = std::net::TcpStream::connect(backend.tcp()).expect("the backend listens");
    for _ in 0..3 {
        stream.write_all(b"GET /bytes/5?seed=1 HTTP/1.1\r\nhost: x\r\n\r\n").expect("keep-alive");
        read_head(&mut stream);
        let mut body = [0; 5];
        stream.read_exact(&mut body).expect("five bytes");
        assert_eq!(labctl_node::pattern::first_difference(1, 0, &body), None);
    }
}

#[test]
fn a_stopped_backend_lingers_until_nobody_asks() {
    let mut backend = Backend::lingering(Ipv4Addr::LOCALHOST, Duration::from_secs(60));
    drop(backend.stop.take());
    let stopped = Instant::now();
    // More than it stays without requests.
    while stopped.elapsed() < Duration::from_secs(3) {
        assert_eq!(ask(tcp(1, backend.tcp())).outcome, Outcome::Answered, "a new connection was refused");
        assert_eq!(ask(udp(2, backend.udp())).outcome, Outcome::Answered, "a datagram was not answered");
    }
    let quiet = Instant::now();
    backend.thread.take().expect("it runs").join().expect("it ends well");
    let lingered = quiet.elapsed();
    assert!(lingered > Duration::from_secs(1), "it left {lingered:?} after the last request");
    assert!(lingered < Duration::from_secs(30), "it stayed {lingered:?} though nobody asked");
}

#[test]
fn a_lingering_backend_ends_in_time_whoever_asks() {
    let mut backend = Backend::lingering(Ipv4Addr::LOCALHOST, Duration::from_secs(1));
    let _open = std::net::TcpStream::connect(backend.tcp()).expect("the backend listens");
    let stopped = Instant::now();
    drop(backend.stop.take());
    backend.thread.take().expect("it runs").join().expect("it ends well");
    assert!(stopped.elapsed() < Duration::from_secs(30), "it stayed {:?}", stopped.elapsed());
}

#[test]
fn a_taken_port_is_named() {
    let backend = Backend::start(Ipv4Addr::LOCALHOST);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let _inside = runtime.enter();
    let mut options = ServeOptions {
        node: "n".into(),
        pod: "p".into(),
        address: Ipv4Addr::LOCALHOST,
        port: backend.ready.tcp.port(),
        linger: Duration::ZERO,
    };
    let error = Server::bind(&options).expect_err("the port is taken");
    assert!(matches!(error, ServeError::Taken { protocol: "tcp", .. }), "{error}");
    options.address = Ipv4Addr::new(192, 0, 2, 1);
    let error = Server::bind(&options).expect_err("a documentation address is on no interface");
    assert!(matches!(error, ServeError::Address { .. }), "{error}");
    options.pod = "web\n1".into();
    let error = Server::bind(&options).expect_err("a newline is no name");
    assert!(matches!(error, ServeError::Name { what: "pod", .. }), "{error}");
}
