//! Running one asynchronous call from a blocking one.
//!
//! Owns: a runtime for the time of the call. Docker's and Kubernetes' clients are asynchronous; the provider's own
//! calls are not.

use std::future::Future;

use tokio::runtime::{Builder, Runtime};

/// Runs the future to its end on this thread.
///
/// # Panics
/// When the system gives no event queue, and when called from inside a runtime's own thread.
pub(crate) fn run<T>(future: impl Future<Output = T>) -> T {
    runtime().block_on(future)
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("the system gives a process an event queue")
}
