//! Leaving a node as it was before the agent: datapath, routes, CNI configuration. What `cluster-prepare` changed
//! stays: a bpffs and forwarding harm nobody, and others may rely on them since.

use std::path::Path;

use datapath_agent::RemoveError;

use crate::agent::CNI_FOLDERS;
use crate::cni::{self, CniError};
use crate::netlink::{NetlinkError, Network};

/// Something of the agent stays on the node. Reads well after "failed to ".
#[derive(Debug, thiserror::Error)]
pub enum CleanError {
    /// The datapath.
    #[error(transparent)]
    Datapath(#[from] RemoveError),
    /// The routes.
    #[error(transparent)]
    Routes(#[from] NetlinkError),
    /// The CNI configuration.
    #[error(transparent)]
    Cni(#[from] CniError),
    /// No event loop.
    #[error("start the event loop: {0}")]
    Runtime(#[from] std::io::Error),
}

/// Removes what the agent made. It must have ended.
///
/// # Errors
/// The first thing that stays.
pub fn clean(pins: &Path) -> Result<(), CleanError> {
    datapath_agent::remove(pins)?;
    cni::remove(Path::new(CNI_FOLDERS.0))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let failed = runtime.block_on(async { Network::open()?.set_routes(&[]).await })?;
    failed.into_iter().next().map_or(Ok(()), |error| Err(error.into()))
}
