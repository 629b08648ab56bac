//! A live capture of one or more hosts, merged into one stream of packets in the order of time.
//!
//! Owns: a capture role per host, a thread per role that reads its pcapng, the merge, and the end. Does
//! not own: what is done with a packet; that is the [`Sink`]'s business.
//!
//! Packets of different hosts arrive in the order in which their rings are read, not in which they were
//! captured. Each waits for [`SETTLE`] before it is handed on, which is many times the ring's retire time.

use std::collections::BTreeMap;
use std::io::{self, BufReader, ErrorKind, PipeWriter, Read};
use std::os::fd::AsFd;
use std::process::ChildStdin;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use labctl_provider::{Host, Lab};
use labctl_wire::packet::Mac;
use labctl_wire::pcapng::{Block, Interface, Packet, ReadError, Reader, Statistics};
use labctl_wire::{CapturePoint, HostKind};

use super::captures::{filter, host_args};
use super::interrupt::Interrupt;
use super::role::{Role, RoleError, reap_all};

/// How long a packet waits for older ones of other hosts.
const SETTLE: Duration = Duration::from_millis(50);

/// How long captures may take until all of them see packets.
const READY: Duration = Duration::from_secs(10);

/// Blocks between the readers and the merge; readers wait when there are more.
const QUEUE: usize = 4096;

/// A host and what to capture of it.
#[derive(Debug)]
pub(crate) struct Source<'a> {
    /// The host.
    pub(crate) host: &'a Host,
    /// Its interfaces, at least one.
    pub(crate) interfaces: Vec<String>,
}

/// What to keep and when to end.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    /// tcpdump filter, empty for everything.
    pub(crate) filter: String,
    /// Bytes kept of each packet.
    pub(crate) snaplen: u32,
    /// End after so many packets.
    pub(crate) count: Option<u64>,
    /// End after so long.
    pub(crate) time: Option<Duration>,
}

/// Takes what is captured.
pub(crate) trait Sink {
    /// All points, once, when every one of them sees packets. Packets name them by index.
    fn begin(&mut self, points: &[(CapturePoint, Option<Mac>)]) -> io::Result<()>;
    /// One packet; `packet.interface` is the index of its point.
    fn packet(&mut self, packet: Packet) -> io::Result<()>;
    /// Nothing comes for a moment.
    fn pause(&mut self) -> io::Result<()>;
    /// The counters of one point, at the end.
    fn counters(&mut self, point: usize, ts_ns: u64, received: u64, dropped: u64) -> io::Result<()>;
}

/// What was captured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Packets handed to the sink.
    pub(crate) packets: u64,
    /// Packets that the kernel dropped.
    pub(crate) dropped: u64,
}

/// Why a live capture failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    /// A role failed.
    #[error(transparent)]
    Role(#[from] RoleError),
    /// Its output is not pcapng.
    #[error("read the packets of {host}: {source}")]
    Read {
        /// Whose.
        host: String,
        /// What is wrong.
        source: ReadError,
    },
    /// Points did not get ready.
    #[error("{ready} of {wanted} interfaces were ready within {} s", READY.as_secs())]
    NotReady {
        /// How many were.
        ready: usize,
        /// How many should have been.
        wanted: usize,
    },
    /// A capture ended that nobody had ended: its lab or its interfaces are gone.
    #[error("go on: the capture on {host} ended by itself after {} ms and {packets} packets; is the lab still up?", after.as_millis())]
    CutShort {
        /// Whose.
        host: String,
        /// How long it had lasted.
        after: Duration,
        /// Packets handed to the sink until the end.
        packets: u64,
    },
    /// The sink cannot take it.
    #[error("write packets: {0}")]
    Sink(#[source] io::Error),
    /// No pipe for the end.
    #[error("make a pipe: {0}")]
    Pipe(#[source] io::Error),
}

/// What a reader found: the number of its source, and a block or why there is none; `None` at the end of its stream.
type Found = (usize, Option<Result<Block, ReadError>>);

/// A live capture.
#[derive(Debug)]
pub(crate) struct Stream<'a> {
    /// The lab.
    pub(crate) lab: &'a Lab,
    /// What to capture, at least one.
    pub(crate) sources: &'a [Source<'a>],
    /// What to keep and when to end.
    pub(crate) limits: &'a Limits,
}

impl Stream<'_> {
    /// Captures until a limit, a signal, or the sink's reader going away.
    ///
    /// # Errors
    /// [`StreamError`]; what was captured until then is in the sink.
    pub(crate) fn run(&self, interrupt: &Interrupt, sink: &mut dyn Sink) -> Result<Tally, StreamError> {
        let mut roles = self.start()?;
        let stdins: Vec<ChildStdin> = roles.iter_mut().filter_map(Role::take_stdin).collect();
        let streams = roles.iter().map(Role::stream).collect::<Result<Vec<_>, _>>()?;
        let (wake, stop) = io::pipe().map_err(StreamError::Pipe)?;
        let merged = thread::scope(|scope| {
            scope.spawn(move || {
                // A signal, or the merge dropping its end of the pipe; then captures end with their stdin.
                interrupt.wait(&[wake.as_fd()], None);
                drop(stdins);
            });
            let (send, receive) = sync_channel(QUEUE);
            for (number, stream) in streams.into_iter().enumerate() {
                let send = send.clone();
                scope.spawn(move || forward(number, BufReader::new(stream), &send));
            }
            drop(send);
            Merge::new(self, sink, stop).run(&receive)
        });
        // A role that failed says more than what its failure did to the stream.
        let ended = reap_all(roles, "the end of the capture");
        let Merged { tally, ready, cut_short } = merged?;
        ended?;
        if let Some((number, after)) = cut_short
            && !interrupt.is_raised()
        {
            let host = self.sources[number].host.name.clone();
            return Err(StreamError::CutShort { host, after, packets: tally.packets });
        }
        let wanted = self.wanted();
        if ready < wanted && !interrupt.is_raised() {
            return Err(StreamError::NotReady { ready, wanted });
        }
        Ok(tally)
    }

    fn start(&self) -> Result<Vec<Role>, RoleError> {
        let start = |source: &Source<'_>| {
            Role::spawn(source.host, "capture", &source.host.name, &self.lab.log_dir(), |command| {
                command.args(host_args(source.host));
                command.args(["--filter", &filter(self.lab, source.host, &self.limits.filter)]);
                command.args(["--snaplen", &self.limits.snaplen.to_string()]);
                for interface in &source.interfaces {
                    command.args(["-i", interface]);
                }
            })
        };
        self.sources.iter().map(start).collect()
    }

    /// How many interfaces are captured in all.
    fn wanted(&self) -> usize {
        self.sources.iter().map(|source| source.interfaces.len()).sum()
    }
}

/// Reads one role's capture to its end.
fn forward(number: usize, stream: impl Read, send: &SyncSender<Found>) {
    for block in Reader::new(stream) {
        if send.send((number, Some(block))).is_err() {
            return;
        }
    }
    // Nobody listens any more once the merge has failed.
    let _ = send.send((number, None));
}

/// What came of a merge.
struct Merged {
    tally: Tally,
    /// How many points were ready.
    ready: usize,
    /// The first source that ended before it was asked to, and when.
    cut_short: Option<(usize, Duration)>,
}

/// The merge of all captures.
struct Merge<'a> {
    stream: &'a Stream<'a>,
    sink: &'a mut dyn Sink,
    /// Dropped to end the captures.
    stop: Option<PipeWriter>,
    /// When the captures end by themselves: for getting ready, then for the wanted time.
    deadline: Option<Instant>,
    /// Points by source and interface: in the order of the sources, whoever gets ready first.
    points: BTreeMap<(usize, u32), (CapturePoint, Option<Mac>)>,
    /// Packets by time and order of arrival.
    waiting: BTreeMap<(u64, u64), (usize, Packet)>,
    arrived: u64,
    counters: Vec<(usize, Statistics)>,
    tally: Tally,
    began: Instant,
    cut_short: Option<(usize, Duration)>,
}

impl<'a> Merge<'a> {
    fn new(stream: &'a Stream<'a>, sink: &'a mut dyn Sink, stop: PipeWriter) -> Self {
        Self {
            stream,
            sink,
            stop: Some(stop),
            deadline: Some(Instant::now() + READY),
            points: BTreeMap::new(),
            waiting: BTreeMap::new(),
            arrived: 0,
            counters: Vec::new(),
            tally: Tally::default(),
            began: Instant::now(),
            cut_short: None,
        }
    }

    /// Merges until every capture has ended.
    fn run(mut self, receive: &Receiver<Found>) -> Result<Merged, StreamError> {
        let mut result = Ok(());
        loop {
            let found = self.receive(receive);
            if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                self.stop = None;
                self.deadline = None;
            }
            let Some(found) = found else { break };
            if let Some((number, None)) = found {
                self.ended(number);
            }
            // After an error or the last wanted packet, what still comes is read and left: a capture whose
            // output nobody reads would not end.
            if result.is_ok() && !self.is_complete() {
                result =
                    found.map_or(Ok(()), |found| self.take(found)).and_then(|()| self.hand_on(settled()));
                if result.is_err() || self.is_complete() {
                    self.stop = None;
                }
            }
        }
        result?;
        self.hand_on(u64::MAX)?;
        self.finish()?;
        Ok(Merged { tally: self.tally, ready: self.points.len(), cut_short: self.cut_short })
    }

    /// A source's stream is over. If nobody wanted that the rest is worth nothing alone.
    fn ended(&mut self, number: usize) {
        if self.stop.take().is_some() {
            self.cut_short = Some((number, self.began.elapsed()));
        }
    }

    /// The next block; `Some(None)` when it is time to look at what waits; `None` at the end of all captures.
    #[expect(clippy::option_option, reason = "three outcomes, used in one place")]
    fn receive(&self, receive: &Receiver<Found>) -> Option<Option<Found>> {
        let settle = (!self.waiting.is_empty()).then_some(SETTLE);
        let deadline = self.deadline.map(|at| at.saturating_duration_since(Instant::now()));
        match [settle, deadline].into_iter().flatten().min() {
            None => receive.recv().ok().map(Some),
            Some(time) => match receive.recv_timeout(time) {
                Ok(found) => Some(Some(found)),
                Err(RecvTimeoutError::Timeout) => Some(None),
                Err(RecvTimeoutError::Disconnected) => None,
            },
        }
    }

    fn is_complete(&self) -> bool {
        self.stream.limits.count.is_some_and(|count| self.tally.packets >= count)
    }

    fn take(&mut self, (number, block): Found) -> Result<(), StreamError> {
        let source = &self.stream.sources[number];
        let Some(block) = block else { return Ok(()) };
        let block = block.map_err(|source_error| StreamError::Read {
            host: source.host.name.clone(),
            source: source_error,
        })?;
        match block {
            Block::Interface(interface) => self.register(number, &interface)?,
            Block::Packet(packet) => {
                self.arrived += 1;
                self.waiting.insert((packet.ts_ns, self.arrived), (number, packet));
            }
            Block::Statistics(statistics) => {
                self.counters.push((number, statistics));
            }
        }
        Ok(())
    }

    /// Notes a point; with the last one the capture has begun.
    fn register(&mut self, number: usize, interface: &Interface) -> Result<(), StreamError> {
        let point = interface.point().unwrap_or_else(|| CapturePoint {
            host: self.stream.sources[number].host.name.clone(),
            kind: HostKind::Node,
            interface: interface.name.clone(),
        });
        self.points.insert((number, interface.index), (point, interface.mac));
        if self.is_ready() {
            self.deadline = self.stream.limits.time.map(|time| Instant::now() + time);
            let points: Vec<_> = self.points.values().cloned().collect();
            self.sink.begin(&points).map_err(StreamError::Sink)?;
        }
        Ok(())
    }

    /// Number of a source's interface among all points; the reader has checked that it was described.
    fn index(&self, number: usize, interface: u32) -> usize {
        self.points.range(..(number, interface)).count()
    }

    fn is_ready(&self) -> bool {
        self.points.len() == self.stream.wanted()
    }

    /// Hands on every packet up to a time, oldest first.
    fn hand_on(&mut self, until_ns: u64) -> Result<(), StreamError> {
        if !self.is_ready() {
            return Ok(());
        }
        while !self.is_complete() {
            let Some(oldest) = self.waiting.first_entry().filter(|entry| entry.key().0 <= until_ns) else {
                break;
            };
            let (number, packet) = oldest.remove();
            let packet = Packet { interface: self.index(number, packet.interface) as u32, ..packet };
            if !given(self.sink.packet(packet))? {
                self.stop = None;
                return Ok(());
            }
            self.tally.packets += 1;
        }
        if !given(self.sink.pause())? {
            self.stop = None;
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), StreamError> {
        for (number, statistics) in std::mem::take(&mut self.counters) {
            let point = self.index(number, statistics.interface);
            if let (Some(received), Some(dropped)) = (statistics.received, statistics.dropped) {
                self.tally.dropped += dropped;
                given(self.sink.counters(point, statistics.ts_ns, received, dropped))?;
            }
        }
        given(self.sink.pause())?;
        Ok(())
    }
}

/// Whether the sink took it; a reader that went away has seen enough.
fn given(result: io::Result<()>) -> Result<bool, StreamError> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(StreamError::Sink(error)),
    }
}

/// Packets before this time wait for nobody any more; the clock of the captures, ns.
fn settled() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.saturating_sub(SETTLE).as_nanos()).unwrap_or(u64::MAX)
}
