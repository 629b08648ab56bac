//! Taking the datapath off a node: it lives on its pins and not on whoever loaded it.
//!
//! Owns: the end of links, filters and maps. Does not own: the folder's file system, the agent's process, which must
//! have ended before, or it makes everything anew.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::programs::tc::{self, TcAttachType};

/// Programs as the object names them; a clsact filter has its program's name.
const PROGRAMS: [&str; 4] = ["from_netdev", "to_netdev", "from_pod", "to_pod"];
/// Every interface of this network namespace.
const INTERFACES: &str = "/sys/class/net";

/// The datapath stays on the node. Reads well after "failed to ".
#[derive(Debug, thiserror::Error)]
#[error("remove {}: {source}", path.display())]
pub struct RemoveError {
    /// What stays.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

/// Detaches every program and removes every pin below `pins`; flows end. A folder that is not there is no error.
///
/// # Errors
/// [`RemoveError`].
pub fn remove(pins: &Path) -> Result<(), RemoveError> {
    remove_filters();
    match fs::remove_dir_all(pins) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(RemoveError { path: pins.to_path_buf(), source })
        }
        _ => Ok(()),
    }
}

/// Filters of kernels without TCX links: the qdisc holds them, not a pin.
fn remove_filters() {
    let interfaces = fs::read_dir(INTERFACES).into_iter().flatten().flatten();
    for interface in interfaces.filter_map(|entry| entry.file_name().into_string().ok()) {
        for hook in [TcAttachType::Ingress, TcAttachType::Egress] {
            for program in PROGRAMS {
                // Not found is what is hoped for; another error leaves a filter whose maps are gone, which lets
                // every packet pass.
                let _ = tc::qdisc_detach_program(&interface, hook, program);
            }
        }
    }
}
