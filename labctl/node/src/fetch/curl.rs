//! The real curl as a second witness.
//!
//! Owns: its command line, its byte streams, and turning what it reports into an exchange. Does not own: the
//! checks of a reply (`tcp`). curl runs without its configuration file, proxies, retries or keep-alive, so
//! that it sends what the built-in client would send.

use std::collections::HashMap;
use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use hyper::header::HeaderName;
use labctl_wire::ServedBy;
use serde::Deserialize;
use serde_json::Deserializer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};

use super::Request;
use super::progress::{Progress, Trouble};
use super::tcp::{judge_download, judge_upload, parse};
use crate::dialogue;
use crate::pattern::{self, Checker};

/// Bytes that pass through a pipe at once.
const CHUNK: usize = 16 * 1024;
/// Longest body or report that is kept.
const MAX_KEPT: usize = 64 * 1024;

/// What `--write-out '%{json}'` says, as far as it matters. Times are seconds from the start.
#[derive(Debug, Deserialize)]
struct Report {
    exitcode: u8,
    errormsg: Option<String>,
    #[serde(default)]
    http_code: u16,
    #[serde(default)]
    local_ip: String,
    #[serde(default)]
    local_port: i32,
    #[serde(default)]
    time_connect: f64,
    #[serde(default)]
    time_pretransfer: f64,
    #[serde(default)]
    time_starttransfer: f64,
    /// Response headers; curl has a document of its own for them since 7.83.
    #[serde(skip)]
    headers: HashMap<String, Vec<String>>,
}

impl Report {
    /// Reads `{report}{headers}`; headers of an older curl are simply not there.
    fn parse(text: &[u8]) -> Option<Self> {
        let mut report = Deserializer::from_slice(text).into_iter::<Self>();
        let mut first = report.next()?.ok()?;
        let rest = &text[report.byte_offset()..];
        first.headers = serde_json::from_slice(rest).unwrap_or_default();
        Some(first)
    }

    fn served_by(&self) -> Option<ServedBy> {
        let text = |name: HeaderName| self.headers.get(name.as_str())?.first();
        Some(ServedBy {
            node: text(dialogue::NODE)?.clone(),
            pod: text(dialogue::POD)?.clone(),
            peer: text(dialogue::PEER)?.parse().ok()?,
            local: text(dialogue::LOCAL)?.parse().ok()?,
        })
    }
}

/// Whether curl is there at all.
///
/// # Errors
/// The operating system's reason why it cannot be started.
pub(super) async fn probe() -> io::Result<()> {
    let quiet = Command::new("curl")
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .status();
    quiet.await.map(drop)
}

pub(super) async fn ask(request: &Request, progress: &Progress) -> Result<(), Trouble> {
    progress.wait_for("curl");
    let mut child = command(request).spawn().map_err(Trouble::io("cannot start curl"))?;
    let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (Some(stdin), Some(stdout), Some(stderr)) = pipes else {
        return Err(Trouble::Failed("curl was started without its pipes".into()));
    };
    // All three at once: a full pipe that nobody reads would stop curl.
    let upload = tokio::task::spawn_local(upload(stdin, request.seed(), request.upload_bytes));
    let report = tokio::task::spawn_local(read_report(stderr));
    let body = read_body(stdout, request, progress).await?;
    upload.abort();
    let status = wait(&mut child).await?;
    let report = report.await.map_err(|e| Trouble::Failed(format!("reading curl's report broke: {e}")))?;
    let report = report.map_err(|text| unreadable(status, &text))?;
    record(&report, progress);
    judge(&report, &body, request, progress)
}

fn command(request: &Request) -> Command {
    let mut curl = Command::new("curl");
    // -q must come first to keep the user's configuration out.
    curl.args(["-q", "--silent", "--http1.1", "--noproxy", "*", "--no-keepalive", "--globoff"])
        .args(["--header", "Connection: close", "--header", "Expect:"])
        .args(["--write-out", "%{stderr}%{json}%{header_json}", "--output", "-"])
        .args(["--max-time", &format!("{:.3}", Duration::from_millis(request.timeout_ms).as_secs_f64())]);
    if let Some(port) = request.source_port {
        curl.args(["--local-port", &port.to_string()]);
    }
    if let Some(address) = request.source_address {
        curl.args(["--interface", &address.to_string()]);
    }
    if request.upload_bytes > 0 {
        curl.args(["--request", "POST", "--upload-file", "-"]);
    }
    curl.arg(format!("http://{}{}", request.remote, request.target()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    curl
}

/// Feeds the stream; if curl stops reading, its report says why.
async fn upload(mut stdin: ChildStdin, seed: u64, len: u64) {
    let mut chunk = vec![0; CHUNK];
    let mut offset = 0;
    while offset < len {
        let size = (len - offset).min(CHUNK as u64) as usize;
        pattern::fill(seed, offset, &mut chunk[..size]);
        if stdin.write_all(&chunk[..size]).await.is_err() {
            return;
        }
        offset += size as u64;
    }
}

/// A response body: its start, and the check of all of it.
struct Body {
    start: Vec<u8>,
    checker: Checker,
}

async fn read_body(mut stdout: ChildStdout, request: &Request, progress: &Progress) -> Result<Body, Trouble> {
    let mut body = Body { start: Vec::new(), checker: Checker::new(request.seed()) };
    let mut chunk = vec![0; CHUNK];
    loop {
        let len = stdout.read(&mut chunk).await.map_err(Trouble::io("cannot read from curl"))?;
        if len == 0 {
            return Ok(body);
        }
        progress.add_received(len);
        body.checker.push(&chunk[..len]);
        let room = MAX_KEPT - body.start.len();
        body.start.extend_from_slice(&chunk[..len.min(room)]);
    }
}

/// curl's report, or whatever it said instead.
async fn read_report(stderr: ChildStderr) -> Result<Report, String> {
    let mut text = Vec::new();
    let read = stderr.take(MAX_KEPT as u64).read_to_end(&mut text).await;
    read.map_err(|e| e.to_string())?;
    Report::parse(&text).ok_or_else(|| String::from_utf8_lossy(&text).trim().to_owned())
}

async fn wait(child: &mut Child) -> Result<ExitStatus, Trouble> {
    child.wait().await.map_err(Trouble::io("cannot wait for curl"))
}

fn unreadable(status: ExitStatus, text: &str) -> Trouble {
    let hint = "curl 7.70 or newer is needed for its json report";
    Trouble::Failed(format!("curl ended with {status} and no report ({hint}): {text}"))
}

fn record(report: &Report, progress: &Progress) {
    if let (Ok(ip), Ok(port)) = (report.local_ip.parse(), u16::try_from(report.local_port)) {
        progress.set_local(std::net::SocketAddrV4::new(ip, port));
    }
    let span = |from: f64, to: f64| Duration::try_from_secs_f64(to - from).ok();
    if report.time_connect > 0.0
        && let Some(took) = span(0.0, report.time_connect)
    {
        progress.set_connect(took);
    }
    if report.time_starttransfer > 0.0
        && let Some(took) = span(report.time_pretransfer, report.time_starttransfer)
    {
        progress.set_first_byte(took);
    }
}

fn judge(report: &Report, body: &Body, request: &Request, progress: &Progress) -> Result<(), Trouble> {
    /// `CURLE_OPERATION_TIMEDOUT`
    const TIMED_OUT: u8 = 28;
    match report.exitcode {
        0 => {}
        TIMED_OUT if report.time_connect <= 0.0 => return Err(Trouble::TimedOut("connect")),
        TIMED_OUT if report.time_starttransfer <= 0.0 => return Err(Trouble::TimedOut("response head")),
        TIMED_OUT => return Err(Trouble::TimedOut("response body")),
        code => {
            let words = report.errormsg.as_deref().unwrap_or("no words");
            return Err(Trouble::Failed(format!("curl error {code}: {words}")));
        }
    }
    if !(200..300).contains(&report.http_code) {
        return Err(Trouble::Corrupt(format!("http status {} instead of 200", report.http_code)));
    }
    progress.set_served_by(report.served_by());
    match request {
        Request { path: Some(_), .. } => {}
        Request { upload_bytes: 1.., .. } => {
            progress.set_served_by(Some(judge_upload(&body.start, request.upload_bytes)?));
        }
        Request { response_bytes: 1.., .. } => judge_download(&body.checker, request.response_bytes)?,
        _ => progress.set_served_by(Some(parse(&body.start)?)),
    }
    Ok(())
}
