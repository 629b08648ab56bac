//! Running things: signals, waiting with deadlines, role processes, and the order in which a lab comes
//! up, is undone, and is put to the test.

mod bring_up;
mod canary;
mod captures;
pub(crate) mod complete;
mod datapath;
mod desired;
mod drops;
mod interrupt;
pub(crate) mod kept_runs;
mod launch;
pub(crate) mod observe;
mod prove;
mod record;
mod role;
mod run_dir;
mod stream;
mod traffic;

pub(crate) use bring_up::{BringUp, Up, lock_failure};
pub(crate) use datapath::statuses;
pub(crate) use interrupt::Interrupt;
pub(crate) use launch::listening;
pub(crate) use prove::{Prove, Proven};
pub(crate) use record::{FILES, Record};
pub(crate) use stream::{Limits, Sink, Source, Stream, Tally};
