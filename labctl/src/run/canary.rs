//! Canaries: one datagram past every capture point, so that a capture that sees nothing is told apart from
//! a network where nothing happens.
//!
//! Owns: which way canaries go and waiting until each has arrived. Does not own: their payload and how the
//! verdict reads them ([`labctl_wire::canary`]).

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use labctl_provider::{Host, Lab};
use labctl_wire::canary::{Canary, PORT};

/// How long a canary may be on its way. It crosses a switch at most, after an ARP exchange.
const ARRIVAL: Duration = Duration::from_millis(500);

/// A way for canaries, with a socket at each end.
struct Way {
    sender: UdpSocket,
    receiver: UdpSocket,
    name: String,
}

/// Canaries could not be sent.
#[derive(Debug, thiserror::Error)]
#[error("send canaries from {from} to {to}: {source}")]
pub(crate) struct CanaryError {
    from: String,
    to: String,
    source: io::Error,
}

/// The ways of one run.
pub(crate) struct Canaries {
    run: String,
    round: u32,
    ways: Vec<Way>,
}

impl Canaries {
    /// Opens the sockets: from the client to each node, which passes the uplinks, and from each node to its
    /// pods, which passes both ends of their veths.
    ///
    /// # Errors
    /// When a namespace cannot be entered or its discard port is taken.
    pub(crate) fn open(lab: &Lab, run: &str) -> Result<Self, CanaryError> {
        let mut ways = Vec::new();
        for node in lab.nodes() {
            ways.push(way(lab.client(), node)?);
        }
        for pod in lab.pods() {
            if let Some((node, _)) = lab.pod_interface(&pod.name) {
                ways.push(way(node, pod)?);
            }
        }
        Ok(Self { run: run.to_owned(), round: 0, ways })
    }

    /// Sends one round and waits until all have arrived; returns the ways on which one did not. The verdict
    /// then finds the capture points there not proven.
    ///
    /// # Errors
    /// When a socket refuses to send.
    pub(crate) fn round(&mut self) -> Result<Vec<String>, CanaryError> {
        self.round += 1;
        let payload = Canary::payload(&self.run, self.round);
        for way in &self.ways {
            way.sender.send(&payload).map_err(|source| CanaryError {
                from: way.name.clone(),
                to: "its other end".to_owned(),
                source,
            })?;
        }
        let deadline = Instant::now() + ARRIVAL;
        Ok(self
            .ways
            .iter()
            .filter(|way| !arrived(&way.receiver, &payload, deadline))
            .map(|way| way.name.clone())
            .collect())
    }

    /// How many rounds were sent.
    pub(crate) fn rounds(&self) -> u32 {
        self.round
    }
}

fn way(from: &Host, to: &Host) -> Result<Way, CanaryError> {
    let error = |source| CanaryError { from: from.name.clone(), to: to.name.clone(), source };
    let address =
        |host: &Host| host.address().ok_or_else(|| error(io::Error::other("a host has no address")));
    let (source, target) = (address(from)?, SocketAddrV4::new(address(to)?, PORT));
    let receiver = to.enter(|| UdpSocket::bind(target)).and_then(|socket| socket).map_err(error)?;
    let sender = from.enter(|| connected(source, target)).and_then(|socket| socket).map_err(error)?;
    Ok(Way { sender, receiver, name: format!("{} to {}", from.name, to.name) })
}

fn connected(source: Ipv4Addr, target: SocketAddrV4) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((source, 0))?;
    socket.connect(target)?;
    Ok(socket)
}

/// Waits for this very canary; an older one that was late is passed over.
fn arrived(receiver: &UdpSocket, payload: &[u8], deadline: Instant) -> bool {
    let mut buffer = [0u8; 256];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || receiver.set_read_timeout(Some(left)).is_err() {
            return false;
        }
        match receiver.recv(&mut buffer) {
            Ok(length) if &buffer[..length] == payload => return true,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
}
