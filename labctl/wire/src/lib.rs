//! Packets, flows, hops and capture files.
//!
//! Owns: the views of a captured frame, the pcapng format, what a client and a backend report of one
//! exchange, and the correlation of one packet across rewrites. Does not own: sockets, files, or any
//! judgement. Between the node roles and the verdict.

pub mod canary;
pub mod capture;
pub mod exchange;
pub mod flow;
pub mod hop;
pub mod packet;
pub mod pcapng;
pub mod point;
pub mod text;

pub use capture::{CaptureError, CaptureFile, Captured, PointInfo};
pub use exchange::{Exchange, Outcome, ServedBy, Timings};
pub use flow::{Side, Tag};
pub use hop::LogicalPacket;
pub use packet::Frame;
pub use point::{CapturePoint, Direction, HostKind};
