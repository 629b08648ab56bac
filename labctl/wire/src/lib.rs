//! Packets and capture files.
//!
//! Owns: the views of a captured frame, capture files of every kind, and what a client and a backend report of one
//! exchange. Does not own: sockets, files, what packets mean together, or any judgement. Between the node roles and the verdict.

pub mod canary;
pub mod capture;
pub mod exchange;
pub mod facts;
pub mod file;
pub mod link;
pub mod packet;
pub mod pcap;
pub mod pcapng;
pub mod point;
pub mod text;

pub use capture::{CaptureError, CaptureFile, Captured, PointInfo};
pub use exchange::{Exchange, Outcome, ServedBy, Timings};
pub use packet::Frame;
pub use point::{CapturePoint, Direction, HostKind};
