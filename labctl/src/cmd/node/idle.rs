//! `labctl node idle`: the first process of a client's container.
//!
//! Owns: staying until it is told to end, and burying what roles leave behind: they are started from outside, and
//! their orphans become children of the container's first process.

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use crate::exit::Exit;
use crate::failure::{Failure, Outcome};
use crate::ui::Ui;

/// Do nothing until SIGTERM or SIGINT.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

impl Args {
    pub(crate) fn exec(self, _ui: &Ui) -> Outcome {
        wait_for_end()
            .map_err(|error| Failure::because(Exit::SetupFailed, "wait for signals", &error))
            .map(|()| Exit::Ok)
    }
}

/// Signals that are blocked reach `sigwait` also in a first process, for which unblocked ones without a handler
/// are lost.
fn wait_for_end() -> Result<(), Errno> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD] {
        signals.add(signal);
    }
    signals.thread_block()?;
    while signals.wait()? == Signal::SIGCHLD {
        bury()?;
    }
    Ok(())
}

/// One SIGCHLD may stand for several children.
fn bury() -> Result<(), Errno> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(error),
        }
    }
}
