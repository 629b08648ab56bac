//! SIGINT, SIGTERM and SIGHUP as a file descriptor.
//!
//! A handler may do next to nothing, so it writes one byte into a pipe; every wait of a command polls
//! the other end beside what it waits for. The byte is never read: once raised, an interrupt stays
//! raised, and a second Ctrl-C during clean-up changes nothing.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use labctl_provider::Cancel;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::pipe2;

use crate::exit::Exit;
use crate::failure::Failure;

/// What the handler touches: made once, never dropped.
static RAISED: OnceLock<Raised> = OnceLock::new();

/// The handler's side of the interrupt.
#[derive(Debug)]
struct Raised {
    pipe: OwnedFd,
    flag: Arc<AtomicBool>,
}

/// The command's side: readable once a signal has come.
#[derive(Debug)]
pub(crate) struct Interrupt {
    pipe: OwnedFd,
    flag: Arc<AtomicBool>,
}

/// Why [`Interrupt::wait`] came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Woken {
    /// At least one of the descriptors has something to read, or was closed.
    Readable,
    /// The deadline passed.
    Deadline,
    /// A signal came.
    Interrupted,
}

impl Interrupt {
    /// Takes over the three signals. A signal that the parent ignores stays ignored (nohup).
    ///
    /// # Errors
    /// When the pipe cannot be made (no file descriptors left), or when called a second time.
    fn install() -> io::Result<Self> {
        let (pipe, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        let flag = Arc::new(AtomicBool::new(false));
        RAISED
            .set(Raised { pipe: write, flag: flag.clone() })
            .map_err(|_| io::Error::other("the signals are taken over already"))?;
        let action = SigAction::new(SigHandler::Handler(on_signal), SaFlags::SA_RESTART, SigSet::empty());
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            // SAFETY: `on_signal` loads, stores and calls write(2) only, all async-signal-safe.
            let before = unsafe { sigaction(signal, &action) }?;
            if matches!(before.handler(), SigHandler::SigIgn) {
                // SAFETY: puts back what was there.
                unsafe { sigaction(signal, &before) }?;
            }
        }
        Ok(Self { pipe, flag })
    }

    /// As [`Self::install`], with the failure in the words of a command.
    ///
    /// # Errors
    /// As [`Self::install`].
    pub(crate) fn take_over() -> Result<Self, Failure> {
        Self::install().map_err(|error| Failure::because(Exit::SetupFailed, "watch for signals", &error))
    }

    /// An interrupt that no signal raises, for tests of things that wait.
    #[cfg(test)]
    pub(super) fn detached() -> io::Result<Self> {
        let (pipe, write) = pipe2(OFlag::O_CLOEXEC)?;
        // A closed write end would look like a signal.
        std::mem::forget(write);
        Ok(Self { pipe, flag: Arc::default() })
    }

    /// The same interrupt for work that looks at a flag between its steps.
    pub(crate) fn cancel(&self) -> Cancel {
        Cancel::from_flag(self.flag.clone())
    }

    /// Whether a signal has come.
    pub(crate) fn is_raised(&self) -> bool {
        self.flag.load(Ordering::SeqCst)
    }

    /// Waits until a descriptor is readable or closed, the deadline passes (`None`: never), or a signal
    /// comes.
    pub(crate) fn wait(&self, descriptors: &[BorrowedFd<'_>], deadline: Option<Instant>) -> Woken {
        let mut fds: Vec<PollFd<'_>> = Vec::with_capacity(descriptors.len() + 1);
        fds.push(PollFd::new(self.pipe.as_fd(), PollFlags::POLLIN));
        fds.extend(descriptors.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)));
        loop {
            match poll(&mut fds, remaining(deadline)) {
                Ok(0) if deadline.is_some_and(|d| Instant::now() >= d) => return Woken::Deadline,
                Ok(0) | Err(Errno::EINTR) => {}
                // EINVAL and ENOMEM cannot be helped by waiting again; treat them as a passed deadline.
                Err(_) => return Woken::Deadline,
                Ok(_) if fds[0].any() == Some(true) => return Woken::Interrupted,
                Ok(_) => return Woken::Readable,
            }
        }
    }
}

/// Milliseconds for poll(2), rounded up so that the deadline has passed when it returns.
fn remaining(deadline: Option<Instant>) -> PollTimeout {
    let Some(deadline) = deadline else { return PollTimeout::NONE };
    let left = deadline.saturating_duration_since(Instant::now());
    PollTimeout::try_from(left.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX)
}

extern "C" fn on_signal(_: libc::c_int) {
    let Some(raised) = RAISED.get() else { return };
    raised.flag.store(true, Ordering::SeqCst);
    // SAFETY: write(2) is async-signal-safe, the byte is a constant, and the descriptor is never closed.
    // A full pipe is fine: one byte is enough. errno is put back for the code that was interrupted.
    unsafe {
        let errno = libc::__errno_location();
        let saved = *errno;
        libc::write(raised.pipe.as_raw_fd(), b"!".as_ptr().cast(), 1);
        *errno = saved;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::Duration;

    use nix::sys::signal::raise;

    use super::*;

    /// One test, because signal dispositions belong to the whole process.
    #[test]
    fn waits_end_for_data_for_the_deadline_and_for_a_signal() {
        let interrupt = Interrupt::install().unwrap();
        let (reader, mut writer) = io::pipe().unwrap();
        let soon = || Some(Instant::now() + Duration::from_millis(20));
        assert_eq!(interrupt.wait(&[reader.as_fd()], soon()), Woken::Deadline);
        writer.write_all(b"ready\n").unwrap();
        assert_eq!(interrupt.wait(&[reader.as_fd()], None), Woken::Readable);
        assert!(!interrupt.is_raised());
        assert!(Interrupt::install().is_err(), "installed twice");
        raise(Signal::SIGTERM).unwrap();
        assert_eq!(interrupt.wait(&[reader.as_fd()], None), Woken::Interrupted);
        assert!(interrupt.is_raised());
        raise(Signal::SIGINT).unwrap();
        assert!(interrupt.is_raised());
    }
}
