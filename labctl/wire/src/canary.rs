//! Canaries: datagrams that prove a capture sees.
//!
//! Owns: their payload and how to find them in a capture. Does not own: sending them. The runner sends one
//! round after every capture said ready and one after the traffic; a capture point that saw each round was
//! live in between. Canaries, and the ICMP errors that they provoke at closed ports, belong to no exchange.

use crate::capture::CaptureFile;
use crate::packet::Frame;

/// Destination ports that nobody serves: discard (RFC 863), and others for a service that takes that one. One more than a
/// service can take.
pub const PORTS: [u16; 4] = [9, 19, 17, 13];

/// First bytes of every canary.
const MARK: &str = "labctl-canary";

/// What a canary says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Canary {
    /// The run that sent it.
    pub run: String,
    /// Its round, from 1.
    pub round: u32,
}

impl Canary {
    /// The UDP payload: `labctl-canary <run> <round>`. `run` must not contain white space.
    pub fn payload(run: &str, round: u32) -> Vec<u8> {
        format!("{MARK} {run} {round}\n").into_bytes()
    }

    /// Reads a payload; trailing bytes behind the round are padding.
    pub fn parse(payload: &[u8]) -> Option<Self> {
        // Long enough for any run name; a cut payload must not be taken for another round.
        let line = payload.split(|b| *b == b'\n').next()?;
        let complete = line.len() < payload.len();
        let mut words = std::str::from_utf8(line).ok()?.split(' ');
        let (mark, run, round) = (words.next()?, words.next()?, words.next()?);
        if mark != MARK || !complete {
            return None;
        }
        Some(Self { run: run.to_owned(), round: round.parse().ok()? })
    }

    /// The canary in a frame.
    pub fn of(data: &[u8], frame: &Frame) -> Option<Self> {
        frame.udp()?;
        Self::parse(data.get(frame.payload())?)
    }
}

/// Whether a frame is a canary or an ICMP error about one, of any run. What it says tells, not its port: a service may use
/// that as well.
pub fn is_noise(data: &[u8], frame: &Frame) -> bool {
    let begins = |payload: &[u8]| payload.starts_with(MARK.as_bytes());
    match (frame.udp(), frame.icmp().and_then(|i| i.quote.as_deref())) {
        (Some(_), _) => data.get(frame.payload()).is_some_and(begins),
        (None, Some(quote)) => begins(&quote.udp_payload),
        (None, None) => false,
    }
}

/// Marks each point of `capture` live that saw every round, 1 to `rounds`, of this run; all others dead.
/// Without rounds no point is live: nothing was proven.
pub fn prove_live(capture: &mut CaptureFile, run: &str, rounds: u32) {
    let mut seen = vec![std::collections::BTreeSet::new(); capture.points.len()];
    for (i, packet) in capture.packets().iter().enumerate() {
        if let Some(canary) = Canary::of(capture.data(i), &capture.headers(i))
            && canary.run == run
            && (1..=rounds).contains(&canary.round)
        {
            seen[packet.point].insert(canary.round);
        }
    }
    for (point, rounds_seen) in capture.points.iter_mut().zip(seen) {
        point.live = rounds > 0 && rounds_seen.len() == rounds as usize;
    }
}
