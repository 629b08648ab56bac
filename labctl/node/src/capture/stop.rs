//! What ends a capture.
//!
//! Owns: signals, the end of standard input, and a handle for other threads, all as descriptors that the
//! capture's one `poll` waits for. Does not own: what is done at the end (`capture`).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use serde::{Deserialize, Serialize};

/// Why a capture ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StopReason {
    /// SIGTERM or SIGINT, or a [`StopHandle`].
    Asked,
    /// Standard input was closed.
    StdinClosed,
    /// The wished number of packets is there.
    Count,
    /// The wished time is over.
    Duration,
    /// The reader of the output went away.
    OutputClosed,
    /// Every interface went away.
    InterfacesGone,
}

/// Waits for the wish to stop. While it exists, SIGTERM and SIGINT are blocked in the thread that made it,
/// if it was made to listen for them.
#[derive(Debug)]
pub struct Stop {
    event: Arc<EventFd>,
    signals: Option<Signals>,
    stdin: bool,
}

/// Stops a capture from another thread.
#[derive(Clone, Debug)]
pub struct StopHandle(Arc<EventFd>);

impl StopHandle {
    /// Asks the capture to stop; it still reads every packet that the kernel has accepted.
    pub fn stop(&self) {
        // The counter cannot overflow: that would take 2^64 calls.
        let _counted = self.0.write(1);
    }
}

#[derive(Debug)]
struct Signals {
    fd: SignalFd,
    before: SigSet,
}

impl Drop for Signals {
    fn drop(&mut self) {
        // A signal that came meanwhile was read or is delivered now; failing would need a bad argument.
        let _restored = self.before.thread_set_mask();
    }
}

impl Stop {
    /// Stops only through a [`StopHandle`].
    ///
    /// # Errors
    /// Out of file descriptors.
    pub fn by_handle() -> io::Result<Self> {
        let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { event: Arc::new(event), signals: None, stdin: false })
    }

    /// Stops on SIGTERM and SIGINT too, and at the end of standard input if `stdin`. Other threads of the
    /// process must have these signals blocked.
    ///
    /// # Errors
    /// Out of file descriptors.
    pub fn by_signals(stdin: bool) -> io::Result<Self> {
        let mut set = SigSet::empty();
        set.add(Signal::SIGTERM);
        set.add(Signal::SIGINT);
        let before = set.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Self { signals: Some(Signals { fd, before }), stdin, ..Self::by_handle()? })
    }

    /// A handle for another thread.
    pub fn handle(&self) -> StopHandle {
        StopHandle(self.event.clone())
    }

    /// Descriptors that become readable when there may be a reason.
    pub(super) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let mut all = vec![self.event.as_fd()];
        all.extend(self.signals.as_ref().map(|s| s.fd.as_fd()));
        if self.stdin {
            // SAFETY: descriptor 0 stays open for the life of the process; nothing here closes it.
            all.push(unsafe { BorrowedFd::borrow_raw(libc::STDIN_FILENO) });
        }
        all
    }

    /// The reason, if there is one by now.
    pub(super) fn reason(&mut self) -> Option<StopReason> {
        let signalled = self.signals.as_ref().is_some_and(|s| matches!(s.fd.read_signal(), Ok(Some(_))));
        if signalled || self.event.read().is_ok() {
            return Some(StopReason::Asked);
        }
        if self.stdin && stdin_ended() {
            return Some(StopReason::StdinClosed);
        }
        None
    }
}

/// Discards what standard input holds; true at its end.
fn stdin_ended() -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let stdin = std::io::stdin();
    loop {
        let mut ready = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ready, PollTimeout::ZERO) {
            Ok(0) | Err(Errno::EINTR) => return false,
            Ok(_) => {}
            Err(_) => return true,
        }
        match nix::unistd::read(&stdin, &mut [0; 4096]) {
            Ok(0) => return true,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return false,
            Err(_) => return true,
        }
    }
}
