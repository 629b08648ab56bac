//! Waiting until packets pass every link.
//!
//! Owns: the condition and its deadline. Does not own: making links. A veth pair has carrier when both ends are
//! up, but its queue and its bridge port only open when the kernel's link watch ran; a packet before that
//! moment is lost without a trace.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::build::UpError;
use super::namespace::Opened;
use crate::host::Host;
use crate::steps::Cancel;

/// Ten thousand times what it takes on an idle machine.
const DEADLINE: Duration = Duration::from_secs(10);
/// How often a wait looks at the cancel flag.
const GLANCE: Duration = Duration::from_millis(100);

/// Waits until every interface of every host runs and every port forwards.
pub(super) fn wait(hosts: &[Host], opened: &mut [Opened], cancel: &Cancel) -> Result<(), UpError> {
    let began = Instant::now();
    let mut waiting: Vec<usize> = (0..hosts.len()).collect();
    loop {
        let mut missing = Vec::new();
        let mut still = Vec::new();
        for at in waiting {
            // Events before the dump are in the dump; those after it wake the poll below.
            opened[at].watch.drain();
            let late = not_ready(&hosts[at], &mut opened[at])?;
            if !late.is_empty() {
                still.push(at);
                missing.extend(late);
            }
        }
        if still.is_empty() {
            return Ok(());
        }
        if cancel.is_cancelled() {
            return Err(UpError::Cancelled);
        }
        let left = DEADLINE.saturating_sub(began.elapsed());
        if left.is_zero() {
            return Err(UpError::NotReady { waited: DEADLINE, links: missing });
        }
        wait_for_event(&still, opened, left.min(GLANCE));
        waiting = still;
    }
}

fn not_ready(host: &Host, opened: &mut Opened) -> Result<Vec<String>, UpError> {
    let links = opened.netlink.links().map_err(UpError::netlink(host))?;
    let ready =
        |index| links.iter().any(|l| l.index == index && l.up && l.running && l.forwarding.unwrap_or(true));
    let late = host.interfaces.iter().filter(|i| !ready(i.index));
    Ok(late.map(|i| format!("{}:{}", host.name, i.name)).collect())
}

fn wait_for_event(waiting: &[usize], opened: &[Opened], timeout: Duration) {
    let mut fds: Vec<_> =
        waiting.iter().map(|at| PollFd::new(opened[*at].watch.as_fd(), PollFlags::POLLIN)).collect();
    let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
    // Interrupted or not: the caller looks again.
    let _: Result<i32, Errno> = poll(&mut fds, timeout);
}
