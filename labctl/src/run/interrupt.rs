//! SIGINT, SIGTERM and SIGHUP as a file descriptor.
//!
//! A handler may do next to nothing, so it writes one byte into a pipe; every wait of a command polls
//! the other end beside what it waits for. The byte is never read: once raised, an interrupt stays
//! raised, and a second Ctrl-C during clean-up changes nothing.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::pipe2;

/// Write end of the pipe for the handler; -1 until it is installed. It is never closed.
static PIPE: AtomicI32 = AtomicI32::new(-1);

/// The read end: readable once a signal has come.
#[derive(Debug)]
pub(crate) struct Interrupt {
    pipe: OwnedFd,
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
    /// When the pipe cannot be made: no file descriptors left.
    pub(crate) fn install() -> io::Result<Self> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        PIPE.store(write.as_raw_fd(), Ordering::Release);
        // The handler may run until the process ends.
        std::mem::forget(write);
        let action = SigAction::new(SigHandler::Handler(on_signal), SaFlags::SA_RESTART, SigSet::empty());
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            // SAFETY: `on_signal` calls write(2) only, which is async-signal-safe.
            let before = unsafe { sigaction(signal, &action) }?;
            if matches!(before.handler(), SigHandler::SigIgn) {
                // SAFETY: puts back what was there.
                unsafe { sigaction(signal, &before) }?;
            }
        }
        Ok(Self { pipe: read })
    }

    /// An interrupt that no signal raises, for tests of things that wait.
    #[cfg(test)]
    pub(super) fn detached() -> io::Result<Self> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
        std::mem::forget(write);
        Ok(Self { pipe: read })
    }

    /// Whether a signal has come.
    pub(crate) fn is_raised(&self) -> bool {
        self.wait(&[], Some(Instant::now())) == Woken::Interrupted
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
    // SAFETY: write(2) is async-signal-safe, the byte is a constant, and the descriptor is open for as
    // long as the handler is installed. A full pipe is fine: one byte is enough. errno is put back for
    // the code that was interrupted.
    unsafe {
        let errno = libc::__errno_location();
        let saved = *errno;
        libc::write(PIPE.load(Ordering::Acquire), b"!".as_ptr().cast(), 1);
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
        raise(Signal::SIGTERM).unwrap();
        assert_eq!(interrupt.wait(&[reader.as_fd()], None), Woken::Interrupted);
        assert!(interrupt.is_raised());
        raise(Signal::SIGINT).unwrap();
        assert!(interrupt.is_raised());
    }
}
