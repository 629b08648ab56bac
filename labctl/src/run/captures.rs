//! The captures of a run: one role process per host, every interface of the host in it. Packets come over the
//! role's stdout, wherever the host is, and stay in memory until they are judged.
//!
//! Owns: the roles, a reader each, and the certainty that nothing is missing at the end. Does not own: what is
//! done with the packets.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use labctl_provider::{Host, HostKind, Lab, Place};
use labctl_wire::facts::HostFacts;
use labctl_wire::pcapng::{Block, Reader};
use labctl_wire::{CaptureError, CaptureFile};

use super::interrupt::{Interrupt, Woken};
use super::role::{Role, RoleError, reap_all};

/// How long a capture may take to open its sockets.
const START: Duration = Duration::from_secs(10);

/// How long a capture may take to hand over its last packets.
const END: Duration = Duration::from_secs(20);

/// Bytes that a reader takes at once.
const BUFFER: usize = 256 * 1024;

/// What a reader says when all interfaces of its host are captured.
const READY: u8 = b'+';

/// What a reader says when the stream ended before that.
const GONE: u8 = b'-';

/// Why there is no capture.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CapturesError {
    /// A role failed.
    #[error(transparent)]
    Role(#[from] RoleError),
    /// What it said is not a whole capture.
    #[error("read the packets of {host}: {source}")]
    Read {
        /// Whose.
        host: String,
        /// What is wrong.
        source: CaptureError,
    },
    /// It ended well and has nothing in it.
    #[error("the capture on {host} ended before it had begun")]
    Empty {
        /// Whose.
        host: String,
    },
    /// A capture did not do its part in time.
    #[error("{awaited} of {missing} captures did not come within {} s", limit.as_secs())]
    TimedOut {
        /// `the first packets`, or the last.
        awaited: &'static str,
        /// How many are missing.
        missing: usize,
        /// How long they had.
        limit: Duration,
    },
    /// No pipe or no thread.
    #[error("start a reader: {0}")]
    Io(#[from] io::Error),
}

/// Captures under way. Dropped, they are ended.
#[derive(Debug)]
pub(crate) struct Captures {
    roles: Vec<Role>,
    hosts: Vec<String>,
    readers: Vec<JoinHandle<Result<CaptureFile, CaptureError>>>,
    points: usize,
    /// A byte from each reader when it is ready; at its end all readers have ended.
    news: PipeReader,
}

impl Captures {
    /// Starts a capture in the client, every node and every pod, on the interfaces that they have now.
    pub(crate) fn start(lab: &Lab, observed: &BTreeMap<String, HostFacts>) -> Result<Self, CapturesError> {
        let (news, say) = io::pipe()?;
        let mut captures =
            Self { roles: Vec::new(), hosts: Vec::new(), readers: Vec::new(), points: 0, news };
        for host in lab.hosts().iter().filter(|host| host.kind != HostKind::Switch) {
            let interfaces = interfaces(host, observed);
            let wanted = interfaces.len();
            let role = Role::spawn(host, "capture", &host.name, &lab.log_dir(), |command| {
                command.args(point_args(host, &interfaces));
                command.args(["--filter", &filter(lab, host, "")]);
            })?;
            let stream = role.stream()?;
            captures.roles.push(role);
            captures.hosts.push(host.name.clone());
            captures.points += wanted;
            let news = News { number: captures.readers.len() as u16, pipe: say.try_clone()? };
            captures.readers.push(thread::Builder::new().spawn(move || read(stream, wanted, news))?);
        }
        Ok(captures)
    }

    /// Waits until each has said that it sees packets; returns how many interfaces are captured.
    pub(crate) fn ready(&mut self, interrupt: &Interrupt) -> Result<usize, CapturesError> {
        const AWAITED: &str = "the first word";
        let deadline = Instant::now() + START;
        for ready in 0..self.readers.len() {
            let missing = self.readers.len() - ready;
            self.wait(interrupt, AWAITED, missing, deadline, START)?;
            let mut word = [0; 3];
            self.news.read_exact(&mut word)?;
            if word[0] == GONE {
                return Err(self.failure(u16::from_be_bytes([word[1], word[2]]).into(), AWAITED));
            }
        }
        Ok(self.points)
    }

    /// Stops all of them and waits for every packet.
    pub(crate) fn stop(mut self, interrupt: &Interrupt) -> Result<CaptureFile, CapturesError> {
        const AWAITED: &str = "its last packets";
        self.roles.iter_mut().for_each(Role::close_stdin);
        let deadline = Instant::now() + END;
        // Only the end of the pipe is readable now: every reader has let go of it.
        self.wait(interrupt, "the last packets", self.readers.len(), deadline, END)?;
        // A role that failed says more than what its failure did to the stream.
        reap_all(std::mem::take(&mut self.roles), AWAITED)?;
        Ok(CaptureFile::merge(self.collect()?))
    }

    fn wait(
        &self,
        interrupt: &Interrupt,
        awaited: &'static str,
        missing: usize,
        deadline: Instant,
        limit: Duration,
    ) -> Result<(), CapturesError> {
        match interrupt.wait(&[self.news.as_fd()], Some(deadline)) {
            Woken::Readable => Ok(()),
            Woken::Interrupted => Err(RoleError::Interrupted { awaited }.into()),
            Woken::Deadline => Err(CapturesError::TimedOut { awaited, missing, limit }),
        }
    }

    /// What the readers have gathered, in the order of the hosts.
    fn collect(&mut self) -> Result<Vec<CaptureFile>, CapturesError> {
        let readers = std::mem::take(&mut self.readers).into_iter().zip(&self.hosts);
        let result = |(reader, host): (JoinHandle<_>, &String)| {
            let gathered: Result<CaptureFile, CaptureError> =
                reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            gathered.map_err(|source| CapturesError::Read { host: host.clone(), source })
        };
        readers.map(result).collect()
    }

    /// A stream came to its end before it had begun: its role says why, else what was wrong with it does.
    fn failure(&mut self, number: usize, awaited: &'static str) -> CapturesError {
        let (role, host) = (self.roles.swap_remove(number), self.hosts[number].clone());
        if let Err(error) = reap_all(vec![role], awaited) {
            return error.into();
        }
        match self.readers.swap_remove(number).join() {
            Ok(Err(source)) => CapturesError::Read { host, source },
            _ => CapturesError::Empty { host },
        }
    }
}

/// A reader's side of the news.
struct News {
    number: u16,
    pipe: PipeWriter,
}

impl News {
    fn say(&mut self, word: u8) {
        let [high, low] = self.number.to_be_bytes();
        // Nobody listens any more when the run has been given up.
        let _ = self.pipe.write_all(&[word, high, low]);
    }
}

/// Reads one host's stream to its end.
fn read(stream: File, wanted: usize, mut news: News) -> Result<CaptureFile, CaptureError> {
    let mut gathered = CaptureFile::default();
    let ended = gather(stream, wanted, &mut news, &mut gathered);
    if gathered.points.len() < wanted {
        news.say(GONE);
    }
    ended.map(|()| gathered)
}

fn gather(
    stream: File,
    wanted: usize,
    news: &mut News,
    gathered: &mut CaptureFile,
) -> Result<(), CaptureError> {
    for block in Reader::new(BufReader::with_capacity(BUFFER, stream)) {
        let block = block?;
        let is_interface = matches!(block, Block::Interface(_));
        gathered.take(block)?;
        if is_interface && gathered.points.len() == wanted {
            news.say(READY);
        }
    }
    Ok(())
}

/// Ports of kubelets and of API servers as kubeadm, and others, have them.
const CONTROL_PORTS: [u16; 3] = [10250, 6443, 8443];

/// The filter of a capture on a host. What a node's capture says travels over that node's own uplink where it comes
/// by the API server: it must not capture its own words, or it never stops talking.
pub(crate) fn filter(lab: &Lab, host: &Host, wanted: &str) -> String {
    if host.kind != HostKind::Node || !matches!(host.place, Place::Pod { .. }) {
        return wanted.to_owned();
    }
    let service = &lab.plan().service;
    let asked = [service.port, service.node_port, service.target_port];
    let own: Vec<_> = CONTROL_PORTS.iter().filter(|port| !asked.contains(port)).collect();
    let own: Vec<_> = own.into_iter().map(|port| format!("tcp port {port}")).collect();
    let rest = format!("not ({})", own.join(" or "));
    if wanted.trim().is_empty() { rest } else { format!("({wanted}) and {rest}") }
}

/// What to capture on: in a namespace every interface that is up and speaks Ethernet, for nobody else's are there; on somebody
/// else's host those that belong to the lab.
fn interfaces(host: &Host, observed: &BTreeMap<String, HostFacts>) -> Vec<String> {
    let known = || host.interfaces.iter().map(|interface| interface.name.clone()).collect();
    let here = matches!(host.place, Place::Namespace { .. });
    let Some(facts) = observed.get(&host.name).filter(|_| here) else { return known() };
    let carries = facts.interfaces.iter().filter(|interface| interface.up && interface.mac.is_some());
    carries.map(|interface| interface.name.clone()).collect()
}

/// What tells a capture role where it is: the host's name and kind, its interfaces, and that it ends with the process
/// that started it.
fn point_args(host: &Host, interfaces: &[String]) -> Vec<String> {
    let mut args = host_args(host);
    args.extend(interfaces.iter().flat_map(|interface| ["-i".to_owned(), interface.clone()]));
    args
}

/// The host's name and kind; its interfaces are then named `host:interface` in the capture.
pub(crate) fn host_args(host: &Host) -> Vec<String> {
    let kind = match host.kind {
        HostKind::Client => "client",
        HostKind::Node | HostKind::Switch => "node",
        HostKind::Pod => "pod",
    };
    ["--host", &host.name, "--kind", kind, "--stop-at-eof"].map(str::to_owned).to_vec()
}
