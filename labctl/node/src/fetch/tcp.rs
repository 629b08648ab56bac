//! One HTTP/1.1 exchange on a connection of its own.
//!
//! Owns: connecting, asking, checking the reply as it streams in. Does not own: the deadline (`fetch`).
//! The connection is closed after the reply, so that one exchange is one flow in every capture.

use std::cell::Cell;
use std::error::Error;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use http_body_util::{BodyExt, Either, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, HOST, HeaderValue, USER_AGENT};
use hyper::{Method, Response, StatusCode};
use hyper_util::rt::TokioIo;
use labctl_wire::ServedBy;
use socket2::Type;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::Request;
use super::progress::{Progress, Trouble, connecting_socket};
use crate::dialogue::{self, SinkReply};
use crate::pattern::{Checker, PatternBody};

/// Longest JSON reply that is read.
const MAX_JSON: usize = 64 * 1024;

type UploadBody = Either<Empty<Bytes>, PatternBody>;

pub(super) async fn ask(request: &Request, progress: &Progress) -> Result<(), Trouble> {
    let stream = connect(request, progress).await?;
    progress.wait_for("response head");
    let clock = Rc::new(Clock::default());
    let reply = send(stream, request, &clock).await;
    // Even a reply that broke off in its head had a first byte.
    if let Some(took) = clock.first_byte() {
        progress.set_first_byte(took);
    }
    let reply = reply?;
    progress.wait_for("response body");
    let served_by = dialogue::served_by(reply.headers());
    progress.set_served_by(served_by.clone());
    if !request.any_status {
        check_status(reply.status())?;
    }
    match request {
        Request { path: Some(_), .. } => drain(reply, progress).await,
        Request { upload_bytes: 1.., .. } => check_upload(reply, request, progress).await,
        Request { response_bytes: 1.., .. } => {
            check_download(reply, request, progress).await?;
            named(served_by).map(drop)
        }
        _ => check_greeting(reply, progress).await,
    }
}

async fn connect(request: &Request, progress: &Progress) -> Result<TcpStream, Trouble> {
    let started = Instant::now();
    let socket = connecting_socket(request, Type::STREAM, progress)?;
    // The request is written whole: waiting to fill a segment only delays the last one.
    socket.set_tcp_nodelay(true).map_err(Trouble::io("cannot set TCP_NODELAY"))?;
    let stream =
        TcpStream::from_std(socket.into()).map_err(Trouble::io("cannot hand tcp to the event loop"))?;
    stream.writable().await.map_err(Trouble::io("cannot connect"))?;
    match stream.take_error() {
        Ok(None) => {}
        Ok(Some(error)) | Err(error) => return Err(Trouble::Failed(format!("cannot connect: {error}"))),
    }
    progress.set_connect(started.elapsed());
    Ok(stream)
}

async fn send(
    stream: TcpStream,
    request: &Request,
    clock: &Rc<Clock>,
) -> Result<Response<Incoming>, Trouble> {
    let io = TokioIo::new(Stopwatch { stream, clock: clock.clone() });
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(io).await.map_err(|e| broken("response head", &e))?;
    // Ends by itself when the reply is complete or the sender and the body are dropped.
    tokio::task::spawn_local(connection);
    sender.send_request(build(request)?).await.map_err(|e| broken("response head", &e))
}

fn build(request: &Request) -> Result<hyper::Request<UploadBody>, Trouble> {
    let (method, body) = match request.upload_bytes {
        0 => (Method::GET, Either::Left(Empty::new())),
        len => (Method::POST, Either::Right(PatternBody::new(request.seed(), len))),
    };
    hyper::Request::builder()
        .method(method)
        .uri(request.target())
        .header(HOST, request.remote.to_string())
        .header(USER_AGENT, HeaderValue::from_static(concat!("labctl/", env!("CARGO_PKG_VERSION"))))
        .header(CONNECTION, HeaderValue::from_static("close"))
        .body(body)
        .map_err(|e| Trouble::Failed(format!("cannot ask for {:?}: {e}", request.target())))
}

/// The operating system's words if there are any below hyper's.
fn broken(waiting_for: &str, error: &hyper::Error) -> Trouble {
    let mut cause: Option<&(dyn Error + 'static)> = error.source();
    while let Some(inner) = cause {
        if let Some(io) = inner.downcast_ref::<io::Error>() {
            return Trouble::Failed(format!("{io} while waiting for the {waiting_for}"));
        }
        cause = inner.source();
    }
    if error.is_incomplete_message() {
        return Trouble::Failed(format!(
            "the peer closed the connection before the {waiting_for} was complete"
        ));
    }
    if error.is_parse() {
        return Trouble::Corrupt(format!("the reply is not http: {error}"));
    }
    Trouble::Failed(format!("{error} while waiting for the {waiting_for}"))
}

fn check_status(status: StatusCode) -> Result<(), Trouble> {
    if status.is_success() {
        return Ok(());
    }
    Err(Trouble::Corrupt(format!("http status {status} instead of 200")))
}

/// Reads the body piece by piece.
async fn read(
    reply: Response<Incoming>,
    progress: &Progress,
    mut each: impl FnMut(&[u8]),
) -> Result<(), Trouble> {
    let mut body = reply.into_body();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| broken("response body", &e))?;
        if let Some(data) = frame.data_ref() {
            progress.add_received(data.len());
            each(data);
        }
    }
    Ok(())
}

async fn drain(reply: Response<Incoming>, progress: &Progress) -> Result<(), Trouble> {
    read(reply, progress, |_| {}).await
}

async fn check_download(
    reply: Response<Incoming>,
    request: &Request,
    progress: &Progress,
) -> Result<(), Trouble> {
    let mut checker = Checker::new(request.seed());
    read(reply, progress, |data| checker.push(data)).await?;
    judge_download(&checker, request.response_bytes)
}

/// Whether a downloaded stream is the one that was asked for.
pub(super) fn judge_download(checker: &Checker, asked: u64) -> Result<(), Trouble> {
    match (checker.wrong_at(), checker.received()) {
        (Some(offset), _) => Err(Trouble::Corrupt(format!("the response body differs at byte {offset}"))),
        (None, received) if received != asked => {
            Err(Trouble::Corrupt(format!("the response body has {received} bytes instead of {asked}")))
        }
        _ => Ok(()),
    }
}

async fn check_upload(
    reply: Response<Incoming>,
    request: &Request,
    progress: &Progress,
) -> Result<(), Trouble> {
    let body = read_json(reply, progress).await?;
    let served_by = judge_upload(&body, request.upload_bytes)?;
    progress.set_served_by(Some(served_by));
    Ok(())
}

/// Whether the backend received the stream that was uploaded.
pub(super) fn judge_upload(body: &[u8], uploaded: u64) -> Result<ServedBy, Trouble> {
    let reply: SinkReply = parse(body)?;
    match (reply.wrong_at, reply.received) {
        (Some(offset), _) => Err(Trouble::Corrupt(format!("the backend saw a wrong byte at {offset}"))),
        (None, received) if received != uploaded => {
            Err(Trouble::Corrupt(format!("the backend received {received} bytes instead of {uploaded}")))
        }
        _ => Ok(reply.served_by),
    }
}

async fn check_greeting(reply: Response<Incoming>, progress: &Progress) -> Result<(), Trouble> {
    let body = read_json(reply, progress).await?;
    progress.set_served_by(Some(parse(&body)?));
    Ok(())
}

async fn read_json(reply: Response<Incoming>, progress: &Progress) -> Result<Vec<u8>, Trouble> {
    let mut body = Vec::new();
    read(reply, progress, |data| {
        let room = MAX_JSON.saturating_sub(body.len());
        body.extend_from_slice(&data[..data.len().min(room)]);
    })
    .await?;
    Ok(body)
}

/// Reads a JSON reply of `labctl node serve`.
pub(super) fn parse<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, Trouble> {
    serde_json::from_slice(body)
        .map_err(|e| Trouble::Corrupt(format!("the reply does not come from a labctl backend: {e}")))
}

/// A complete reply says who made it.
fn named(served_by: Option<ServedBy>) -> Result<ServedBy, Trouble> {
    served_by.ok_or_else(|| Trouble::Corrupt("the reply does not say which backend made it".into()))
}

/// When the request was last written to and the reply first read from.
#[derive(Debug, Default)]
struct Clock {
    written: Cell<Option<Instant>>,
    first_read: Cell<Option<Instant>>,
}

impl Clock {
    fn wrote(&self) {
        if self.first_read.get().is_none() {
            self.written.set(Some(Instant::now()));
        }
    }

    fn read(&self) {
        if self.first_read.get().is_none() {
            self.first_read.set(Some(Instant::now()));
        }
    }

    /// From the last byte of the request to the first byte of the reply.
    fn first_byte(&self) -> Option<std::time::Duration> {
        Some(self.first_read.get()?.duration_since(self.written.get()?))
    }
}

/// A connection that notes when bytes pass.
struct Stopwatch {
    stream: TcpStream,
    clock: Rc<Clock>,
}

impl AsyncRead for Stopwatch {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.clock.read();
        }
        result
    }
}

impl AsyncWrite for Stopwatch {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, data);
        if matches!(result, Poll::Ready(Ok(_))) {
            self.clock.wrote();
        }
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, parts);
        if matches!(result, Poll::Ready(Ok(_))) {
            self.clock.wrote();
        }
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
