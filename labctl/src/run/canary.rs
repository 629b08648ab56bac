//! Canaries: one datagram past every capture point, so that a capture that sees nothing is told apart from
//! a network where nothing happens.
//!
//! Owns: which way canaries go, and rounds over all hosts. Does not own: sockets ([`labctl_node::canary`]), the
//! payload and how the verdict reads it ([`labctl_wire::canary`]).
//!
//! Hosts that are namespaces of this machine need no process: sockets are opened inside and used from here.
//! The others have a role each.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::process::ChildStdin;
use std::time::{Duration, Instant};

use labctl_model::Plan;
use labctl_node::canary::{Arrival, CanaryError, Post, Ready, Round, Ways};
use labctl_provider::{Host, Lab, Place};
use labctl_wire::canary::{Canary, PORTS};

use super::interrupt::Interrupt;
use super::role::{Role, RoleError, next_values};

/// How long a canary may be on its way. It crosses a switch at most, after an ARP exchange.
const ARRIVAL: Duration = Duration::from_millis(500);

/// How long a role may take to start, or to answer beyond a canary's own time.
const ROLE: Duration = Duration::from_secs(10);

/// Canaries could not be sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CanariesError {
    /// In a namespace of this machine.
    #[error("{host}: {source}")]
    Here {
        /// The host.
        host: String,
        /// What failed.
        source: CanaryError,
    },
    /// In a container or a pod.
    #[error(transparent)]
    Role(#[from] RoleError),
    /// A host that cannot be on any way.
    #[error("{host} has no address")]
    NoAddress {
        /// The host.
        host: String,
    },
}

/// The ways of one run.
pub(crate) struct Canaries {
    run: String,
    round: u32,
    /// Sockets of hosts that are namespaces, with the name of the way that ends there.
    here: Vec<(String, Post)>,
    /// Roles of the others.
    there: Vec<Role>,
    /// Their way's name and stdin.
    lines: Vec<(String, ChildStdin)>,
}

/// One host's ends and the name of the way that ends there.
#[derive(Default)]
struct Ends<'a> {
    host: Option<&'a Host>,
    name: String,
    ways: Ways,
}

impl Canaries {
    /// Opens the sockets: from the client to each node, which passes the uplinks, and from each node to its
    /// pods, which passes both ends of their veths.
    ///
    /// # Errors
    /// When a namespace cannot be entered, its discard port is taken, or a role does not start.
    pub(crate) fn open(lab: &Lab, run: &str) -> Result<Self, CanariesError> {
        let mut canaries =
            Self { run: run.to_owned(), round: 0, here: Vec::new(), there: Vec::new(), lines: Vec::new() };
        for Ends { host, name, ways } in ends(lab)?.into_values() {
            let Some(host) = host else { continue };
            if matches!(host.place, Place::Namespace { .. }) {
                canaries.here.push((name, open_inside(host, &ways)?));
            } else {
                canaries.start(lab, host, name, &ways)?;
            }
        }
        Ok(canaries)
    }

    fn start(&mut self, lab: &Lab, host: &Host, name: String, ways: &Ways) -> Result<(), CanariesError> {
        let mut role = Role::spawn(host, "canary", &host.name, &lab.log_dir(), |_| {})?;
        let Some(mut stdin) = role.take_stdin() else { return Ok(()) };
        write_line(&role, &mut stdin, ways)?;
        self.there.push(role);
        self.lines.push((name, stdin));
        Ok(())
    }

    /// Waits until every host's sockets are open.
    ///
    /// # Errors
    /// [`CanariesError::Role`].
    pub(crate) fn ready(&mut self, interrupt: &Interrupt) -> Result<(), CanariesError> {
        next_values::<Ready>(&mut self.there, interrupt, "its ready line", ROLE)?;
        Ok(())
    }

    /// Sends one round and waits until all have arrived; returns the ways on which one did not. The verdict
    /// then finds the capture points there not proven.
    ///
    /// # Errors
    /// When a socket refuses to send, or a role does not answer.
    pub(crate) fn round(&mut self, interrupt: &Interrupt) -> Result<Vec<String>, CanariesError> {
        self.round += 1;
        let payload = Canary::payload(&self.run, self.round);
        let within_ms = ARRIVAL.as_millis() as u64;
        let round = Round { run: self.run.clone(), round: self.round, within_ms };
        for ((_, stdin), role) in self.lines.iter_mut().zip(&self.there) {
            write_line(role, stdin, &round)?;
        }
        for (name, post) in &self.here {
            post.send(&payload).map_err(|source| CanariesError::Here { host: name.clone(), source })?;
        }
        let deadline = Instant::now() + ARRIVAL;
        let lost_here = self.here.iter().filter(|(_, post)| !post.arrived(&payload, deadline));
        let mut lost: Vec<String> = lost_here.map(|(name, _)| name.clone()).collect();
        let arrivals: Vec<Arrival> =
            next_values(&mut self.there, interrupt, "word of its canary", ARRIVAL + ROLE)?;
        let names = self.lines.iter().map(|(name, _)| name);
        lost.extend(names.zip(arrivals).filter(|(_, a)| !a.arrived).map(|(name, _)| name.clone()));
        Ok(lost)
    }

    /// How many rounds were sent.
    pub(crate) fn rounds(&self) -> u32 {
        self.round
    }
}

/// Every host's ends of its ways.
fn ends(lab: &Lab) -> Result<BTreeMap<&str, Ends<'_>>, CanariesError> {
    let mut ends: BTreeMap<&str, Ends<'_>> = BTreeMap::new();
    let port = free_port(lab.plan());
    let to_nodes = lab.nodes().map(|node| (lab.client(), node));
    let to_pods = lab.pods().filter_map(|pod| Some((lab.pod_interface(&pod.name)?.0, pod)));
    for (from, to) in to_nodes.chain(to_pods) {
        let address =
            |host: &Host| host.address().ok_or_else(|| CanariesError::NoAddress { host: host.name.clone() });
        let (source, target) = (address(from)?, std::net::SocketAddrV4::new(address(to)?, port));
        let sender = ends.entry(&from.name).or_default();
        sender.host = Some(from);
        sender.ways.send.push((source, target));
        let receiver = ends.entry(&to.name).or_default();
        receiver.host = Some(to);
        receiver.name = format!("{} to {}", from.name, to.name);
        receiver.ways.receive = Some(target);
    }
    Ok(ends)
}

/// A port for canaries that the service under test leaves free.
fn free_port(plan: &Plan) -> u16 {
    let service = &plan.service;
    let taken = [service.port, service.node_port, service.target_port];
    PORTS.into_iter().find(|port| !taken.contains(port)).unwrap_or(PORTS[0])
}

fn open_inside(host: &Host, ways: &Ways) -> Result<Post, CanariesError> {
    let here = |source| CanariesError::Here { host: host.name.clone(), source };
    host.enter(|| Post::open(ways)).map_err(|error| here(error.into())).and_then(|post| post.map_err(here))
}

/// Asks a role. One that has ended says why when its answer is waited for.
fn write_line(role: &Role, stdin: &mut ChildStdin, value: &impl serde::Serialize) -> Result<(), RoleError> {
    let written = serde_json::to_vec(value).map_err(io::Error::from).and_then(|mut line| {
        line.push(b'\n');
        stdin.write_all(&line)
    });
    match written {
        Err(source) if source.kind() != io::ErrorKind::BrokenPipe => {
            Err(RoleError::Io { what: role.what().to_owned(), source })
        }
        _ => Ok(()),
    }
}
