//! One host's ends of the canaries' ways: it sends some and waits for its own.
//!
//! Owns: the sockets, and the dialogue in which a host that is somewhere else is asked for rounds. Does not
//! own: the payload (wire), which ways there are (the command line), what it means that one is lost (verdict).
//!
//! The dialogue: the first line in is a [`Ways`], the first line out a [`Ready`]; then each [`Round`] in is
//! answered by an [`Arrival`]. It ends with its input.

use std::io::{self, BufRead, ErrorKind, Write};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use labctl_wire::canary::Canary;
use serde::{Deserialize, Serialize};

/// A host's ends: it sends from its own address and receives at it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ways {
    /// Where canaries come in, if any do.
    pub receive: Option<SocketAddrV4>,
    /// Where canaries go: own address, and the receiver.
    pub send: Vec<(Ipv4Addr, SocketAddrV4)>,
}

/// The sockets are open: whatever comes from now on waits in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Always true.
    pub ready: bool,
}

/// One round of canaries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Round {
    /// The run.
    pub run: String,
    /// The round, from 1.
    pub round: u32,
    /// How long one may be on its way, milliseconds.
    pub within_ms: u64,
}

/// What came of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arrival {
    /// Whether the one for this host came; true for a host that gets none.
    pub arrived: bool,
}

/// Canaries could not be sent. Reads well after "failed to send canaries: ".
#[derive(Debug, thiserror::Error)]
pub enum CanaryError {
    /// No socket.
    #[error("open a socket at {socket}: {source}")]
    Open {
        /// Where.
        socket: SocketAddrV4,
        /// The operating system's words.
        source: io::Error,
    },
    /// A socket refused.
    #[error("send to {target}: {source}")]
    Send {
        /// The receiver.
        target: SocketAddrV4,
        /// The operating system's words.
        source: io::Error,
    },
    /// The dialogue broke off.
    #[error("talk to the one who asked: {0}")]
    Dialogue(#[from] io::Error),
}

/// Open sockets of one host.
#[derive(Debug)]
pub struct Post {
    receiver: Option<UdpSocket>,
    senders: Vec<(SocketAddrV4, UdpSocket)>,
}

impl Post {
    /// Opens the sockets in the network namespace of this thread.
    ///
    /// # Errors
    /// [`CanaryError::Open`]: the address is on no interface here, or the port is taken.
    pub fn open(ways: &Ways) -> Result<Self, CanaryError> {
        let at = |socket| move |source| CanaryError::Open { socket, source };
        let receiver = ways.receive.map(|socket| UdpSocket::bind(socket).map_err(at(socket))).transpose()?;
        let connected = |(source, target): &(Ipv4Addr, SocketAddrV4)| {
            let own = SocketAddrV4::new(*source, 0);
            let socket = UdpSocket::bind(own).map_err(at(own))?;
            socket.connect(target).map_err(at(*target))?;
            Ok((*target, socket))
        };
        Ok(Self { receiver, senders: ways.send.iter().map(connected).collect::<Result<_, CanaryError>>()? })
    }

    /// Sends this host's canaries.
    ///
    /// # Errors
    /// [`CanaryError::Send`] when a socket refuses.
    pub fn send(&self, payload: &[u8]) -> Result<(), CanaryError> {
        for (target, socket) in &self.senders {
            let sent = match socket.send(payload) {
                // The word of an earlier canary's fate; this one has not been sent.
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => socket.send(payload),
                sent => sent,
            };
            sent.map_err(|source| CanaryError::Send { target: *target, source })?;
        }
        Ok(())
    }

    /// Waits for this very canary; an older one that was late is passed over. True for a host that gets none.
    pub fn arrived(&self, payload: &[u8], deadline: Instant) -> bool {
        let Some(receiver) = &self.receiver else { return true };
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
}

/// The role: one dialogue.
///
/// # Errors
/// [`CanaryError`].
pub fn run(input: impl BufRead, mut output: impl Write) -> Result<(), CanaryError> {
    let mut lines = input.lines();
    let Some(ways) = lines.next() else { return Ok(()) };
    let post = Post::open(&serde_json::from_str(&ways?).map_err(io::Error::from)?)?;
    say(&mut output, &Ready { ready: true })?;
    for line in lines {
        let Round { run, round, within_ms } = serde_json::from_str(&line?).map_err(io::Error::from)?;
        let payload = Canary::payload(&run, round);
        post.send(&payload)?;
        let arrived = post.arrived(&payload, Instant::now() + Duration::from_millis(within_ms));
        say(&mut output, &Arrival { arrived })?;
    }
    Ok(())
}

fn say(output: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *output, value)?;
    writeln!(output)?;
    output.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A port that was free a moment ago.
    fn free() -> SocketAddrV4 {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        SocketAddrV4::new(Ipv4Addr::LOCALHOST, socket.local_addr().unwrap().port())
    }

    fn dialogue(ways: &Ways, rounds: &[u32]) -> Vec<String> {
        let round = |round: &u32| {
            serde_json::to_string(&Round { run: "r".to_owned(), round: *round, within_ms: 100 }).unwrap()
        };
        let mut input = serde_json::to_string(ways).unwrap();
        rounds.iter().for_each(|number| input.push_str(&format!("\n{}", round(number))));
        let mut output = Vec::new();
        run(input.as_bytes(), &mut output).unwrap();
        String::from_utf8(output).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_host_that_sends_to_itself_receives_every_round() {
        let own = free();
        let ways = Ways { receive: Some(own), send: vec![(Ipv4Addr::LOCALHOST, own)] };
        let arrived = r#"{"arrived":true}"#;
        assert_eq!(dialogue(&ways, &[1, 2]), [r#"{"ready":true}"#, arrived, arrived]);
    }

    #[test]
    fn a_lost_canary_is_told() {
        let ways = Ways { receive: Some(free()), send: Vec::new() };
        assert_eq!(dialogue(&ways, &[1]), [r#"{"ready":true}"#, r#"{"arrived":false}"#]);
    }
}
