//! Packet capture that is ready when it says so and loses nothing when it stops.
//!
//! Owns: choosing interfaces, reading their rings in the order of time, stopping, and the counters that say
//! whether anything was lost. Does not own: the sockets (`ring`), what ends a capture (`stop`), the file
//! format (wire), the filter language (`crate::filter`).
//!
//! Ready: a point is reported only when its socket is bound with filter and ring in place, so every packet
//! that passes it from then on is either in the ring or in the drop counter.
//!
//! Stop: packets that were sent just before may still wait in a CPU's backlog, so the capture goes on for a
//! moment; then a filter that takes nothing closes the rings, and they are read until the number of packets
//! read is the number that the kernel says it accepted. The last block comes when its time is over
//! (4 ms). What should still be missing at a deadline is counted as dropped, never hidden.

mod interface;
mod record;
mod ring;
mod stop;

use std::fs::File;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use labctl_wire::{CapturePoint, Direction, HostKind};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};
use std::os::fd::AsFd;
use thiserror::Error;

use crate::filter::{self, FilterError};
use interface::{Interface, Selection, State};
use ring::{RETIRE_MS, Ring, Shape};

pub use record::Recorder;
pub use stop::{Stop, StopHandle, StopReason};

/// Bytes kept of a packet when the options say nothing: everything.
pub const DEFAULT_SNAPLEN: u32 = 262_144;
/// Memory for all rings together, bytes; more only if the smallest rings need it.
const RINGS: usize = 32 << 20;
/// Largest and smallest ring, bytes. A capture that keeps little of each packet needs less.
const RING_MAX: usize = 16 << 20;
const RING_SHORT: usize = 4 << 20;
/// Packets cut at this length or earlier are short, bytes.
const SHORT: u32 = 512;
const RING_MIN: usize = 3 * BLOCK_MIN;
/// Largest and smallest block, bytes: the largest holds three 64 KiB packets, the smallest one.
const BLOCK_MAX: usize = 256 * 1024;
const BLOCK_MIN: usize = 128 * 1024;
/// Blocks that a ring has if it can. Under thin traffic each is handed over after [`RETIRE_MS`], full or not,
/// so this is how long the reader may be kept from running: a quarter of a second.
const BLOCKS: usize = 64;
/// Interfaces that one process captures on at most, so that the smallest rings stay below 64 MiB.
const INTERFACES: usize = 128;
/// How long a stopped capture still takes packets that were already under way.
const LINGER: Duration = Duration::from_millis(5);
/// Deadline for reading out the rings after that; normally one block's time is enough.
const DRAIN: Duration = Duration::from_secs(2);
/// How often an interface that went down is looked for.
const LOOK: Duration = Duration::from_millis(50);
/// Packets read between two looks at the reasons to stop.
const ROUND: usize = 4096;
/// The kernel's 32-bit counters are read at least once in so many packets.
const COUNTED: u64 = 1 << 24;

/// What to capture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureOptions {
    /// Host that this namespace is; names the points.
    pub host: String,
    /// What kind of host it is.
    pub kind: HostKind,
    /// Interfaces; empty for every one that is up and speaks Ethernet.
    #[serde(default)]
    pub interfaces: Vec<String>,
    /// tcpdump filter; empty for everything.
    #[serde(default)]
    pub filter: String,
    /// Bytes kept of each packet.
    #[serde(default = "default_snaplen")]
    pub snaplen: u32,
    /// End after so many packets.
    #[serde(default)]
    pub count: Option<u64>,
    /// End after so long, milliseconds.
    #[serde(default)]
    pub duration_ms: Option<u64>,
    /// Also take frames that a real network card would leave to other hosts.
    #[serde(default)]
    pub promiscuous: bool,
    /// End when standard input is closed: then a capture never outlives the process that started it.
    #[serde(default)]
    pub stop_on_stdin_close: bool,
    /// pcapng file to write; `-` or nothing is standard output.
    #[serde(default)]
    pub output: Option<PathBuf>,
}

fn default_snaplen() -> u32 {
    DEFAULT_SNAPLEN
}

impl CaptureOptions {
    /// Everything on every interface of `host`.
    pub fn new(host: impl Into<String>, kind: HostKind) -> Self {
        Self {
            host: host.into(),
            kind,
            interfaces: Vec::new(),
            filter: String::new(),
            snaplen: DEFAULT_SNAPLEN,
            count: None,
            duration_ms: None,
            promiscuous: false,
            stop_on_stdin_close: false,
            output: None,
        }
    }
}

/// The ready line: `{"ready":true,"points":[{"host":"worker","kind":"node","interface":"eth0"}],"skipped":[]}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureReady {
    /// Always true.
    pub ready: bool,
    /// Where packets are captured from now on.
    pub points: Vec<CapturePoint>,
    /// Interfaces that "every interface" leaves out: down, or without Ethernet frames.
    pub skipped: Vec<String>,
}

/// One packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CapturedPacket<'a> {
    /// Index into [`CaptureReady::points`].
    pub point: usize,
    /// `CLOCK_REALTIME`, ns.
    pub ts_ns: u64,
    /// Bytes on the wire, before cutting to the snap length; more than an MTU with segmentation offload.
    pub original_len: u32,
    /// From the Ethernet header on, VLAN tag included.
    pub data: &'a [u8],
    /// Seen from the host.
    pub direction: Direction,
    /// The sender left the transport checksum to its network card: it is not right here, and need not be.
    pub checksum_pending: bool,
}

/// Where packets go. Any `FnMut(&CapturedPacket) -> io::Result<()>` is one.
///
/// An error of kind [`io::ErrorKind::BrokenPipe`] ends the capture in peace: the reader has seen enough.
pub trait Sink {
    /// Takes one packet.
    ///
    /// # Errors
    /// It cannot be written.
    fn packet(&mut self, packet: &CapturedPacket<'_>) -> io::Result<()>;

    /// Hands on what was taken: nothing comes for a moment.
    ///
    /// # Errors
    /// It cannot be written.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Takes the counters; nothing comes after it.
    ///
    /// # Errors
    /// It cannot be written.
    fn finish(&mut self, _summary: &CaptureSummary) -> io::Result<()> {
        self.flush()
    }
}

impl<F: FnMut(&CapturedPacket<'_>) -> io::Result<()>> Sink for F {
    fn packet(&mut self, packet: &CapturedPacket<'_>) -> io::Result<()> {
        self(packet)
    }
}

/// How a capture ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureSummary {
    /// Why it ended.
    pub stopped_by: StopReason,
    /// One entry per point.
    pub points: Vec<PointSummary>,
}

/// The counters of one point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointSummary {
    /// Where.
    pub point: CapturePoint,
    /// Packets that passed the filter, dropped ones included.
    pub received: u64,
    /// Packets that were lost: no room in the ring, or never handed over.
    pub dropped: u64,
    /// Packets given to the sink.
    pub captured: u64,
    /// The interface went down at least once, or away, during the capture.
    pub interrupted: bool,
}

/// Why a capture cannot begin or go on. Reads well after "failed to capture: ".
#[derive(Debug, Error)]
pub enum CaptureError {
    /// The filter is wrong.
    #[error("{0}")]
    Filter(#[from] FilterError),
    /// No interface of that name.
    #[error("there is no interface {name}; there are: {available}")]
    NoInterface {
        /// Wished name.
        name: String,
        /// Names that exist here, comma-separated.
        available: String,
    },
    /// The interface is down.
    #[error("interface {name} is down; bring it up with `ip link set {name} up`")]
    Down {
        /// Its name.
        name: String,
    },
    /// No Ethernet frames there.
    #[error("interface {name} has link type {link_type}, and only ethernet frames are understood")]
    LinkType {
        /// Its name.
        name: String,
        /// Its `ARPHRD_*` number.
        link_type: u16,
    },
    /// Nothing to capture on.
    #[error("no interface with ethernet frames is up here; bring one up or name one")]
    NoneUp,
    /// Too many interfaces for one process.
    #[error("{0} interfaces are more than 128, for which there is no memory; name those of interest")]
    TooMany(usize),
    /// Not allowed.
    #[error("capturing needs the capability CAP_NET_RAW; run as root")]
    NotPermitted,
    /// The output cannot be written.
    #[error("cannot write {output}: {source}")]
    Output {
        /// File name, or `standard output`.
        output: String,
        /// The operating system's words.
        source: io::Error,
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

/// One interface under capture.
#[derive(Debug)]
struct Point {
    point: CapturePoint,
    interface: Interface,
    ring: Ring,
    captured: u64,
    interrupted: bool,
    state: State,
}

/// A capture that takes packets since it was opened.
#[derive(Debug)]
pub struct Capture {
    points: Vec<Point>,
    skipped: Vec<String>,
    snaplen: u32,
    count: Option<u64>,
    deadline: Option<Instant>,
    taken: u64,
    counted: u64,
}

impl Capture {
    /// Begins to capture in the network namespace of this thread.
    ///
    /// # Errors
    /// A wrong filter, an interface that does not exist, is down or has no Ethernet frames, no privilege.
    pub fn open(options: &CaptureOptions) -> Result<Self, CaptureError> {
        let program = filter::compile(&options.filter, options.snaplen)?;
        let Selection { chosen, skipped } = match options.interfaces.as_slice() {
            [] => interface::all()?,
            names => interface::named(names)?,
        };
        if chosen.len() > INTERFACES {
            return Err(CaptureError::TooMany(chosen.len()));
        }
        let most = if options.snaplen <= SHORT { RING_SHORT } else { RING_MAX };
        let size = (RINGS / chosen.len()).clamp(RING_MIN, most);
        let block = (size / BLOCKS).next_power_of_two().clamp(BLOCK_MIN, BLOCK_MAX);
        let shape = Shape {
            block,
            blocks: size / block,
            snaplen: options.snaplen as usize,
            promiscuous: options.promiscuous,
        };
        let open = |interface: Interface| {
            let ring = Ring::open(&interface, &program, shape).map_err(|r| refused(r, &interface.name))?;
            let point = CapturePoint {
                host: options.host.clone(),
                kind: options.kind,
                interface: interface.name.clone(),
            };
            Ok(Point { point, interface, ring, captured: 0, interrupted: false, state: State::Up })
        };
        let points = at_once(chosen, open).into_iter().collect::<Result<Vec<_>, CaptureError>>()?;
        Ok(Self {
            points,
            skipped,
            snaplen: options.snaplen,
            count: options.count,
            deadline: options.duration_ms.map(|ms| Instant::now() + Duration::from_millis(ms)),
            taken: 0,
            counted: 0,
        })
    }

    /// What is captured from now on.
    pub fn ready(&self) -> CaptureReady {
        CaptureReady {
            ready: true,
            points: self.points.iter().map(|p| p.point.clone()).collect(),
            skipped: self.skipped.clone(),
        }
    }

    /// A sink that writes pcapng to `out`. The file's head is written at once.
    ///
    /// # Errors
    /// `out` cannot be written.
    pub fn recorder<W: Write>(&self, out: W) -> io::Result<Recorder<W>> {
        let points = self.points.iter().map(|p| (&p.point, p.interface.mac));
        Recorder::new(out, self.snaplen, points)
    }

    /// Gives packets to `sink` until `stop` or the options say so, and every packet accepted before that.
    ///
    /// # Errors
    /// The sink fails, or the kernel does.
    pub fn run(mut self, stop: &mut Stop, sink: &mut dyn Sink) -> Result<CaptureSummary, CaptureError> {
        let reason = match self.follow(stop, sink)? {
            reason @ (StopReason::Count | StopReason::OutputClosed) => reason,
            reason => self.drain(sink)?.unwrap_or(reason),
        };
        let summary = self.summary(reason)?;
        match sink.finish(&summary) {
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(unwritable(e)),
            _ => Ok(summary),
        }
    }

    /// Reads until there is a reason to stop.
    fn follow(&mut self, stop: &mut Stop, sink: &mut dyn Sink) -> Result<StopReason, CaptureError> {
        loop {
            if let Some(reason) = stop.reason() {
                return Ok(reason);
            }
            if self.deadline.is_some_and(|d| d <= Instant::now()) {
                return Ok(StopReason::Duration);
            }
            match self.read(sink)? {
                ControlFlow::Break(reason) => return Ok(reason),
                ControlFlow::Continue(ROUND) => continue,
                ControlFlow::Continue(_) => {}
            }
            if self.points.iter().all(|p| p.state == State::Gone) {
                return Ok(StopReason::InterfacesGone);
            }
            self.wait(Some(stop), self.deadline)?;
            self.note_states();
        }
    }

    /// Closes the rings and reads them out. A reason is returned if one comes up meanwhile.
    fn drain(&mut self, sink: &mut dyn Sink) -> Result<Option<StopReason>, CaptureError> {
        let linger = Instant::now() + LINGER;
        while Instant::now() < linger {
            if let ControlFlow::Break(reason) = self.read(sink)? {
                return Ok(Some(reason));
            }
            self.wait(None, Some(linger))?;
        }
        for point in &self.points {
            point.ring.silence().map_err(system("close the filter"))?;
        }
        let deadline = Instant::now() + DRAIN;
        loop {
            if let ControlFlow::Break(reason) = self.read(sink)? {
                return Ok(Some(reason));
            }
            if self.is_drained()? || Instant::now() >= deadline {
                return Ok(None);
            }
            // A block is handed over with its last packet or when its time is over, whatever comes first.
            let soon = Instant::now() + Duration::from_millis(u64::from(RETIRE_MS));
            self.wait(None, Some(soon.min(deadline)))?;
        }
    }

    fn is_drained(&mut self) -> Result<bool, CaptureError> {
        let mut drained = true;
        for point in &mut self.points {
            drained &= point.ring.is_drained().map_err(system("read the packet counters"))?;
        }
        Ok(drained)
    }

    /// Gives the packets that the kernel has handed over to the sink, oldest first; how many were read.
    fn read(&mut self, sink: &mut dyn Sink) -> Result<ControlFlow<StopReason, usize>, CaptureError> {
        for read in 0..ROUND {
            let oldest = (self.points.iter_mut().enumerate())
                .filter_map(|(index, point)| Some((index, point.ring.peek()?)))
                .min_by_key(|(_, header)| header.ts_ns);
            let Some((index, header)) = oldest else {
                if read > 0 {
                    return flow(sink.flush(), read);
                }
                return Ok(ControlFlow::Continue(0));
            };
            let given = self.give(index, &header, sink);
            if let ControlFlow::Break(reason) = flow(given, 0)? {
                return Ok(ControlFlow::Break(reason));
            }
            if self.count.is_some_and(|count| self.taken >= count) {
                return Ok(ControlFlow::Break(StopReason::Count));
            }
        }
        self.count_up()?;
        Ok(ControlFlow::Continue(ROUND))
    }

    /// Gives one packet to the sink and steps over it.
    fn give(&mut self, index: usize, header: &ring::Header, sink: &mut dyn Sink) -> io::Result<()> {
        let point = &mut self.points[index];
        point.captured += 1;
        self.taken += 1;
        let given = sink.packet(&CapturedPacket {
            point: index,
            ts_ns: header.ts_ns,
            original_len: header.original_len,
            data: point.ring.frame(header),
            direction: header.direction,
            checksum_pending: header.checksum_pending,
        });
        point.ring.advance();
        given
    }

    /// Reads the counters now and then: they have 32 bits.
    fn count_up(&mut self) -> Result<(), CaptureError> {
        if self.taken - self.counted > COUNTED {
            self.counted = self.taken;
            self.is_drained()?;
        }
        Ok(())
    }

    /// Waits until a ring has something, there may be a reason to stop, or `until`.
    fn wait(&self, stop: Option<&Stop>, until: Option<Instant>) -> Result<(), CaptureError> {
        // The kernel reports that an interface goes down, but not that it then goes away.
        let look = self.points.iter().any(|p| p.state == State::Down).then(|| Instant::now() + LOOK);
        let until = until.into_iter().chain(look).min();
        let timeout = match until.map(|t| t.saturating_duration_since(Instant::now())) {
            None => PollTimeout::NONE,
            // Rounded up, or the last part of a millisecond would be spent without waiting.
            Some(left) => {
                PollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX)
            }
        };
        let rings = self.points.iter().filter(|p| p.state != State::Gone).map(|p| p.ring.as_fd());
        let mut ready: Vec<PollFd<'_>> = rings
            .chain(stop.map(Stop::descriptors).unwrap_or_default())
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        match poll(&mut ready, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(e) => Err(system("wait for packets")(e.into())),
        }
    }

    /// Notes interfaces that went down or away; the socket of one that comes up again goes on by itself.
    fn note_states(&mut self) {
        for point in self.points.iter_mut().filter(|p| p.state != State::Gone) {
            let reported = point.ring.take_error().is_some();
            point.interrupted |= reported;
            if reported || point.state == State::Down {
                point.state = point.interface.state();
            }
        }
    }

    fn summary(&mut self, stopped_by: StopReason) -> Result<CaptureSummary, CaptureError> {
        let summarise = |point: &mut Point| {
            let counters = point.ring.counters().map_err(system("read the packet counters"))?;
            // After a count or a closed output the rest was left in the ring on purpose.
            let left_behind = matches!(stopped_by, StopReason::Count | StopReason::OutputClosed);
            let missing = if left_behind { 0 } else { point.ring.missing() };
            Ok(PointSummary {
                point: point.point.clone(),
                received: counters.received,
                dropped: counters.dropped + missing,
                captured: point.captured,
                interrupted: point.interrupted,
            })
        };
        let points = self.points.iter_mut().map(summarise).collect::<Result<Vec<_>, CaptureError>>()?;
        Ok(CaptureSummary { stopped_by, points })
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        at_once(std::mem::take(&mut self.points), drop);
    }
}

/// Calls `each` for every item, all at the same time, and returns the results in order. Making and closing a
/// ring takes 6 to 17 ms of waiting inside the kernel (`synchronize_net`), whatever its size.
fn at_once<T: Send, R: Send>(items: Vec<T>, each: impl Fn(T) -> R + Sync) -> Vec<R> {
    let each = &each;
    std::thread::scope(|scope| {
        let mut items = items.into_iter();
        let last = items.next_back();
        let others: Vec<_> = items.map(|item| scope.spawn(move || each(item))).collect();
        let last = last.map(each);
        let others = others.into_iter().map(|t| t.join().unwrap_or_else(|p| std::panic::resume_unwind(p)));
        others.chain(last).collect()
    })
}

/// The role: captures into the options' pcapng file until SIGTERM, SIGINT, or what else the options name.
/// `ready` is called when every point captures; its error ends the capture.
///
/// # Errors
/// As [`Capture::open`] and [`Capture::run`], and when the output cannot be created.
pub fn run(
    options: &CaptureOptions,
    ready: &mut dyn FnMut(&CaptureReady) -> io::Result<()>,
) -> Result<CaptureSummary, CaptureError> {
    let name = options.output.as_ref().filter(|path| path.as_os_str() != "-");
    let at = |error| match error {
        CaptureError::Output { source, .. } => CaptureError::Output {
            output: name.map_or_else(|| "standard output".to_owned(), |path| path.display().to_string()),
            source,
        },
        other => other,
    };
    match name {
        Some(path) => File::create(path).map_err(unwritable).and_then(|file| record_to(options, ready, file)),
        None => record_to(options, ready, io::stdout()),
    }
    .map_err(at)
}

fn record_to(
    options: &CaptureOptions,
    ready: &mut dyn FnMut(&CaptureReady) -> io::Result<()>,
    out: impl Write,
) -> Result<CaptureSummary, CaptureError> {
    // Signals first: a stop that comes right after the ready line must not be missed.
    let mut stop = Stop::by_signals(options.stop_on_stdin_close).map_err(system("wait for signals"))?;
    let capture = Capture::open(options)?;
    let mut recorder = capture.recorder(out).map_err(unwritable)?;
    ready(&capture.ready()).map_err(system("write the ready line"))?;
    capture.run(&mut stop, &mut recorder)
}

/// A closed output is a reason to stop, any other error is one.
fn flow(result: io::Result<()>, read: usize) -> Result<ControlFlow<StopReason, usize>, CaptureError> {
    match result {
        Ok(()) => Ok(ControlFlow::Continue(read)),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(ControlFlow::Break(StopReason::OutputClosed)),
        Err(e) => Err(unwritable(e)),
    }
}

fn unwritable(source: io::Error) -> CaptureError {
    CaptureError::Output { output: "the capture's output".to_owned(), source }
}

fn system(step: &str) -> impl Fn(io::Error) -> CaptureError {
    move |source| CaptureError::System { step: step.to_owned(), source }
}

fn refused(refused: ring::Refused, interface: &str) -> CaptureError {
    match refused.source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => CaptureError::NotPermitted,
        Some(libc::ENETDOWN) => CaptureError::Down { name: interface.to_owned() },
        _ => {
            CaptureError::System { step: format!("{} on {interface}", refused.step), source: refused.source }
        }
    }
}
