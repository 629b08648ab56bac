//! Whether a lab's `up` came to its end. The provider knows when the network is complete; a lab is more
//! than its network, so `up` leaves an empty file in the lab's folder as its very last step. A lab without
//! it was killed on the way, and `gc` takes it for that.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use labctl_provider::Lab;

fn path(lab: &Lab) -> PathBuf {
    lab.dir().join("complete")
}

/// Notes that the lab answered.
///
/// # Errors
/// When the file cannot be made.
pub(crate) fn mark(lab: &Lab) -> io::Result<()> {
    File::create(path(lab)).map(drop)
}

/// Whether [`mark`] was reached.
pub(crate) fn is_marked(lab: &Lab) -> bool {
    fs::exists(path(lab)).unwrap_or(false)
}
