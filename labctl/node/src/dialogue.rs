//! What fetch and serve say to each other.
//!
//! Owns: header names, paths, the JSON replies and the datagram's first line. Does not own: sockets. Both
//! roles use this and nothing else to understand each other.
//!
//! HTTP: `GET /?id=7` answers [`ServedBy`] as JSON; `GET /bytes/1048576?seed=7` answers that many bytes of
//! the stream of [`crate::pattern`]; `POST /sink?seed=7` checks the body against it and answers
//! [`SinkReply`]; `GET /healthz` answers `ok`. Every reply carries [`ServedBy`] in headers as well.
//!
//! UDP: one line `labctl <id> <reply bytes> <seed>\n`, then padding from the stream. The reply is one line of
//! JSON, [`DatagramReply`], then padding up to the asked size. Datagrams that do not start with `labctl `
//! are not answered, so two servers can never talk to each other forever.

use std::net::SocketAddrV4;

use hyper::HeaderMap;
use hyper::header::HeaderName;
use labctl_wire::ServedBy;
use serde::{Deserialize, Serialize};

use crate::pattern;

/// Header with the backend's node.
pub const NODE: HeaderName = HeaderName::from_static("x-labctl-node");
/// Header with the backend's pod.
pub const POD: HeaderName = HeaderName::from_static("x-labctl-pod");
/// Header with the peer socket that the backend saw.
pub const PEER: HeaderName = HeaderName::from_static("x-labctl-peer");
/// Header with the backend's own socket.
pub const LOCAL: HeaderName = HeaderName::from_static("x-labctl-local");

/// Largest UDP payload over IPv4, bytes.
pub const MAX_DATAGRAM: usize = 65_507;

/// Reads what a backend said of itself from the headers of its reply; `None` if one is missing or odd.
pub fn served_by(headers: &HeaderMap) -> Option<ServedBy> {
    let text = |name: HeaderName| headers.get(name)?.to_str().ok();
    let socket = |name: HeaderName| text(name)?.parse::<SocketAddrV4>().ok();
    Some(ServedBy {
        node: text(NODE)?.to_owned(),
        pod: text(POD)?.to_owned(),
        peer: socket(PEER)?,
        local: socket(LOCAL)?,
    })
}

/// Reply to an upload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkReply {
    /// Who counted.
    #[serde(flatten)]
    pub served_by: ServedBy,
    /// Body bytes that arrived.
    pub received: u64,
    /// Offset of the first byte that differs from the stream.
    pub wrong_at: Option<u64>,
}

/// First line of a reply datagram.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatagramReply {
    /// Number that the request carried.
    pub id: u32,
    /// Who answered.
    #[serde(flatten)]
    pub served_by: ServedBy,
    /// Bytes of the request datagram.
    pub received: u64,
    /// Offset in the request datagram of the first padding byte that differs from the stream.
    pub wrong_at: Option<u64>,
}

/// A request datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatagramRequest {
    /// Number of the exchange.
    pub id: u32,
    /// Bytes that the whole reply shall have; a longer first line is not cut.
    pub reply_bytes: u32,
    /// Stream that both paddings come from.
    pub seed: u64,
}

impl DatagramRequest {
    /// The datagram, padded to `size` bytes; never shorter than its first line.
    pub fn encode(&self, size: usize) -> Vec<u8> {
        let line = format!("labctl {} {} {}\n", self.id, self.reply_bytes, self.seed);
        pad(line.into_bytes(), self.seed, size)
    }

    /// Reads a datagram: the request, and the offset of the first wrong byte of its padding. Reply size and
    /// seed may be left out, so that `echo labctl 1 | nc -u` works. `None` for anything else.
    pub fn decode(datagram: &[u8]) -> Option<(Self, Option<u64>)> {
        let end = datagram.iter().position(|b| *b == b'\n').unwrap_or(datagram.len());
        let line = std::str::from_utf8(&datagram[..end]).ok()?;
        let mut words = line.strip_prefix("labctl ")?.split_ascii_whitespace();
        let id = words.next()?.parse().ok()?;
        let reply_bytes = words.next().map_or(Some(0), |w| w.parse().ok())?;
        let seed = words.next().map_or(Some(0), |w| w.parse().ok())?;
        let wrong = wrong_padding(datagram, end, seed);
        Some((Self { id, reply_bytes, seed }, wrong))
    }
}

impl DatagramReply {
    /// The datagram, padded to `size` bytes; never shorter than its first line.
    pub fn encode(&self, seed: u64, size: usize) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).expect("strings, numbers and addresses always serialise");
        line.push(b'\n');
        pad(line, seed, size)
    }

    /// Reads a datagram: the reply, and the offset of the first wrong byte of its padding. `None` if the
    /// first line is not a reply.
    pub fn decode(datagram: &[u8], seed: u64) -> Option<(Self, Option<u64>)> {
        let end = datagram.iter().position(|b| *b == b'\n').unwrap_or(datagram.len());
        let reply = serde_json::from_slice(&datagram[..end]).ok()?;
        Some((reply, wrong_padding(datagram, end, seed)))
    }
}

/// Lengthens `line` with the stream of `seed`, from the stream's first byte on.
fn pad(mut line: Vec<u8>, seed: u64, size: usize) -> Vec<u8> {
    let start = line.len();
    line.resize(size.clamp(start, MAX_DATAGRAM.max(start)), 0);
    pattern::fill(seed, 0, &mut line[start..]);
    line
}

fn wrong_padding(datagram: &[u8], newline: usize, seed: u64) -> Option<u64> {
    let start = (newline + 1).min(datagram.len());
    pattern::first_difference(seed, 0, &datagram[start..]).map(|i| (start + i) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_survives_the_trip() {
        let request = DatagramRequest { id: 7, reply_bytes: 900, seed: 42 };
        let bytes = request.encode(300);
        assert_eq!(bytes.len(), 300);
        assert_eq!(DatagramRequest::decode(&bytes), Some((request, None)));
    }

    #[test]
    fn damaged_padding_is_located() {
        let mut bytes = DatagramRequest { id: 7, reply_bytes: 0, seed: 42 }.encode(300);
        bytes[200] ^= 0x80;
        assert_eq!(DatagramRequest::decode(&bytes).and_then(|(_, wrong)| wrong), Some(200));
    }

    #[test]
    fn short_form_is_understood_and_replies_are_not_requests() {
        assert_eq!(DatagramRequest::decode(b"labctl 3\n").map(|(r, _)| r.id), Some(3));
        assert_eq!(DatagramRequest::decode(b"labctl x"), None);
        let reply = DatagramReply {
            id: 3,
            served_by: ServedBy {
                node: "worker2".into(),
                pod: "web-1".into(),
                peer: "172.18.0.1:40000".parse().expect("literal"),
                local: "10.0.1.108:8080".parse().expect("literal"),
            },
            received: 9,
            wrong_at: None,
        };
        let bytes = reply.encode(0, 0);
        assert_eq!(DatagramRequest::decode(&bytes), None);
        assert_eq!(DatagramReply::decode(&bytes, 0), Some((reply, None)));
    }
}
