//! Running things: signals, waiting with deadlines, role processes, and the order in which a lab comes
//! up and is undone.

mod interrupt;
mod role;

pub(crate) use interrupt::{Interrupt, Woken};
pub(crate) use role::{Role, RoleError, finish, next_lines};
