//! When a backend was asked last, and how many connections it has: what decides how long it lingers.
//!
//! Owns: counting, and the wait after a stop. Does not own: who asks.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::time::{interval, timeout};

/// Nobody asks for so long: whoever sends clients here has heard that this backend leaves.
const QUIET: Duration = Duration::from_secs(2);
/// How often a lingering backend looks whether it is quiet.
const LOOK: Duration = Duration::from_millis(100);

/// What a backend is being asked.
#[derive(Debug, Default)]
pub(super) struct Activity {
    /// When the last request came.
    last: Cell<Option<Instant>>,
    /// Open connections.
    open: Cell<usize>,
}

impl Activity {
    /// Notes a request.
    pub(super) fn asked(&self) {
        self.last.set(Some(Instant::now()));
    }

    /// Notes a connection, until the guard is dropped.
    pub(super) fn connected(self: &Rc<Self>) -> Connected {
        self.open.set(self.open.get() + 1);
        Connected(self.clone())
    }

    /// Waits until nobody asks any more, at most for `longest`.
    pub(super) async fn quiet(&self, longest: Duration) {
        let began = Instant::now();
        let mut looks = interval(LOOK);
        let quiet = async {
            loop {
                looks.tick().await;
                let last = self.last.get().map_or(began, |last| last.max(began));
                if self.open.get() == 0 && last.elapsed() >= QUIET {
                    return;
                }
            }
        };
        // Both ends of the wait are good ends.
        let _in_time = timeout(longest, quiet).await;
    }
}

/// One open connection.
#[derive(Debug)]
pub(super) struct Connected(Rc<Activity>);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
    }
}
