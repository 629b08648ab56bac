//! The sign that this node's datapath is what the cluster says: a file that the readiness probe looks for.
//! A file and no port, since the agent shares its ports with the node.

use std::fs;
use std::io;
use std::path::Path;

/// In a folder that lives and dies with the agent's pod.
const FILE: &str = "/run/labctl/ready";

/// Whether the agent of this container has set up the node.
pub fn is_ready() -> bool {
    Path::new(FILE).is_file()
}

pub(crate) fn set() -> io::Result<()> {
    if is_ready() { Ok(()) } else { fs::write(FILE, "") }
}

/// A container that starts again in the same pod is not ready yet.
pub(crate) fn clear() -> io::Result<()> {
    match fs::remove_file(FILE) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
