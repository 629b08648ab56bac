//! Running things: signals, waiting with deadlines, role processes, and the order in which a lab comes
//! up and is undone.

mod bring_up;
pub(crate) mod complete;
mod desired;
mod interrupt;
mod launch;
mod role;
mod traffic;

pub(crate) use bring_up::{BringUp, Up, lock_failure};
pub(crate) use interrupt::Interrupt;
