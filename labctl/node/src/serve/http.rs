//! The backend's HTTP side.
//!
//! Owns: accepting connections and the reply to each path. Does not own: the sockets (`serve`) or the
//! names on the wire (`dialogue`).

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::rc::Rc;
use std::sync::Arc;

use http_body_util::{BodyExt, Either, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use labctl_wire::ServedBy;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::Identity;
use crate::dialogue::{self, SinkReply};
use crate::pattern::{Checker, PatternBody};

type Reply = Response<Either<Full<Bytes>, PatternBody>>;

/// Accepts for ever; at most `limit` connections are open at once, the others wait in the backlog.
pub(super) async fn serve(listener: TcpListener, identity: Rc<Identity>, limit: usize) {
    let slots = Arc::new(Semaphore::new(limit));
    loop {
        let slot = slots.clone().acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, peer)) => {
                let connection = Connection::new(&stream, peer, &identity);
                let connected = identity.activity.connected();
                tokio::task::spawn_local(async move {
                    if let Ok(connection) = connection {
                        connection.serve(stream).await;
                    }
                    drop((slot, connected));
                });
            }
            // The peer went away in the queue, or the machine is short of files or memory: the next
            // accept says whether that is over; other connections get their turn meanwhile.
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

/// Both ends of one accepted connection.
struct Connection {
    identity: Rc<Identity>,
    peer: SocketAddrV4,
    local: SocketAddrV4,
    peer_header: HeaderValue,
    local_header: HeaderValue,
}

impl Connection {
    fn new(stream: &TcpStream, peer: SocketAddr, identity: &Rc<Identity>) -> io::Result<Self> {
        let (SocketAddr::V4(peer), SocketAddr::V4(local)) = (peer, stream.local_addr()?) else {
            return Err(io::Error::other("the connection is not ipv4"));
        };
        let header = |socket: SocketAddrV4| HeaderValue::from_str(&socket.to_string());
        Ok(Self {
            identity: identity.clone(),
            peer,
            local,
            peer_header: header(peer).map_err(io::Error::other)?,
            local_header: header(local).map_err(io::Error::other)?,
        })
    }

    /// Serves requests until the peer closes or breaks the connection; what the peer did wrong shows on
    /// its own side, so errors end here.
    async fn serve(self, stream: TcpStream) {
        // Replies are written whole: waiting to fill a segment only delays the last one.
        if stream.set_nodelay(true).is_err() {
            return;
        }
        let connection = Rc::new(self);
        let service = service_fn(move |request| {
            let connection = connection.clone();
            async move { Ok::<_, Infallible>(connection.answer(request).await) }
        });
        let _ended = hyper::server::conn::http1::Builder::new()
            .half_close(true)
            .serve_connection(TokioIo::new(stream), service)
            .await;
    }

    fn served_by(&self) -> ServedBy {
        ServedBy {
            node: self.identity.node.clone(),
            pod: self.identity.pod.clone(),
            peer: self.peer,
            local: self.local,
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Reply {
        self.identity.activity.asked();
        let mut reply = self.route(request).await;
        let headers = reply.headers_mut();
        headers.insert(dialogue::NODE, self.identity.node_header.clone());
        headers.insert(dialogue::POD, self.identity.pod_header.clone());
        headers.insert(dialogue::PEER, self.peer_header.clone());
        headers.insert(dialogue::LOCAL, self.local_header.clone());
        reply
    }

    async fn route(&self, request: Request<Incoming>) -> Reply {
        let path = request.uri().path();
        if path == "/sink" {
            return match *request.method() {
                Method::POST | Method::PUT => self.sink(request).await,
                _ => wrong_method("POST, PUT"),
            };
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return wrong_method("GET, HEAD");
        }
        if let Some(count) = path.strip_prefix("/bytes/") {
            return bytes(count, &request);
        }
        match path {
            "/" => json(&self.served_by()),
            "/healthz" => text(StatusCode::OK, "ok\n"),
            _ => text(StatusCode::NOT_FOUND, "no such path; there are /, /bytes/N, /sink and /healthz\n"),
        }
    }

    async fn sink(&self, request: Request<Incoming>) -> Reply {
        let Some(seed) = seed(&request) else { return bad_seed() };
        let mut checker = Checker::new(seed);
        let mut body = request.into_body();
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => checker.push(frame.data_ref().map_or(&[][..], |d| d)),
                // The upload broke: nobody is left to read this, hyper closes the connection.
                Err(error) => return text(StatusCode::BAD_REQUEST, &format!("upload broke: {error}\n")),
            }
        }
        let (received, wrong_at) = (checker.received(), checker.wrong_at());
        json(&SinkReply { served_by: self.served_by(), received, wrong_at })
    }
}

fn bytes(count: &str, request: &Request<Incoming>) -> Reply {
    let Ok(len) = count.parse() else {
        return text(StatusCode::BAD_REQUEST, "/bytes/N needs a number of bytes\n");
    };
    let Some(seed) = seed(request) else { return bad_seed() };
    let mut reply = Response::new(Either::Right(PatternBody::new(seed, len)));
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    reply
}

/// `seed=` of the query; 0 if it is missing, `None` if it is no number.
fn seed(request: &Request<Incoming>) -> Option<u64> {
    let query = request.uri().query().unwrap_or_default();
    query.split('&').find_map(|pair| pair.strip_prefix("seed=")).map_or(Some(0), |v| v.parse().ok())
}

fn bad_seed() -> Reply {
    text(StatusCode::BAD_REQUEST, "seed must be a number of at most 64 bits\n")
}

fn wrong_method(allowed: &'static str) -> Reply {
    let mut reply = text(StatusCode::METHOD_NOT_ALLOWED, "another method is needed here\n");
    reply.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    reply
}

fn json(value: &impl serde::Serialize) -> Reply {
    let mut body = serde_json::to_vec(value).expect("strings, numbers and addresses always serialise");
    body.push(b'\n');
    let mut reply = Response::new(Either::Left(Full::from(body)));
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply
}

fn text(status: StatusCode, words: &str) -> Reply {
    let mut reply = Response::new(Either::Left(Full::from(words.to_owned())));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    reply
}
