//! What the client reports of one request, and what the backend said in its reply.

use std::net::SocketAddrV4;

use serde::{Deserialize, Serialize};

/// One request as the client saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exchange {
    /// Number within the run, from 1; also in the request (`/?id=7`, or the datagram's first line).
    pub id: u32,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// The client's own socket.
    pub local: SocketAddrV4,
    /// The frontend that was asked.
    pub remote: SocketAddrV4,
    /// `CLOCK_REALTIME` at the start, ns: the clock of the captures.
    pub started_ns: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// How long each phase took.
    pub timings: Timings,
    /// Body bytes received.
    pub received: u64,
    /// What the backend reported; `None` if no complete reply came.
    pub served_by: Option<ServedBy>,
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
pub enum Outcome {
    /// A complete, correct reply.
    Answered,
    /// Nothing came before the deadline.
    TimedOut {
        /// What was being waited for: `connect`, `response head`, `response body`, `datagram`.
        waiting_for: String,
    },
    /// The peer refused or reset, or the network reported an error.
    Failed {
        /// The operating system's words.
        error: String,
    },
    /// A reply came and is not what was asked for.
    Corrupt {
        /// What differs, with the offset.
        detail: String,
    },
    /// Nobody recorded it: known from captures alone, which do not show its end.
    Unknown,
}

/// Phase times in microseconds; `None` for a phase that was not reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timings {
    /// SYN to established (TCP only).
    pub connect_us: Option<u64>,
    /// Request written to first byte of the reply.
    pub first_byte_us: Option<u64>,
    /// Start to end.
    pub total_us: Option<u64>,
}

/// What a backend says of itself and of its peer in every reply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServedBy {
    /// Node it runs on.
    pub node: String,
    /// Pod it is.
    pub pod: String,
    /// Peer socket that it saw: the client's, unless somebody rewrote it.
    pub peer: SocketAddrV4,
    /// Its own socket as the kernel reports it for this exchange.
    pub local: SocketAddrV4,
}
