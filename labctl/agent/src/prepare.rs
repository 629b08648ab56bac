//! What a node needs before its agent can do without privileges: a bpffs for the pins, forwarding, and a reverse
//! path filter that lets replies from ClusterIPs in. Runs once, privileged, before the agent.

use std::ffi::CString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// `BPF_FS_MAGIC` of linux/magic.h.
const BPF_FS_MAGIC: libc::__fsword_t = 0xcafe_4a11;
/// `rp_filter` value of the loose mode: some interface must know a way back, not this one (RFC 3704).
const LOOSE: &str = "2";
/// Kernel settings of IPv4, of the node's network namespace.
const SETTINGS: &str = "/proc/sys/net/ipv4";

/// The node cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The folder cannot be looked at or made.
    #[error("look at {}; is it mounted into this container?", path.display())]
    Folder {
        /// Folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No bpffs can be mounted.
    #[error("mount a bpf filesystem at {}; it takes a privileged container", path.display())]
    Mount {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A kernel setting cannot be read or changed.
    #[error("change the kernel setting {}", path.display())]
    Setting {
        /// File.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Prepares the node: a bpffs at `bpffs` if there is none, forwarding on, strict reverse path filters loose.
///
/// # Errors
/// [`PrepareError`].
pub fn prepare(bpffs: &Path) -> Result<(), PrepareError> {
    mount_bpffs(bpffs)?;
    set(&Path::new(SETTINGS).join("ip_forward"), "0", "1")?;
    loosen_reverse_path_filters()
}

fn mount_bpffs(path: &Path) -> Result<(), PrepareError> {
    let fail = |source| PrepareError::Folder { path: path.to_path_buf(), source };
    let target = CString::new(path.as_os_str().as_encoded_bytes()).map_err(|error| fail(error.into()))?;
    // SAFETY: all zero is a valid statfs.
    let mut found: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: a NUL-terminated path, and a statfs that outlives the call.
    if unsafe { libc::statfs(target.as_ptr(), &mut found) } != 0 {
        return Err(fail(io::Error::last_os_error()));
    }
    if found.f_type == BPF_FS_MAGIC {
        return Ok(());
    }
    let (name, data) = (c"bpf", c"mode=0700");
    // SAFETY: NUL-terminated strings that outlive the call.
    let mounted =
        unsafe { libc::mount(name.as_ptr(), target.as_ptr(), name.as_ptr(), 0, data.as_ptr().cast()) };
    if mounted != 0 {
        return Err(PrepareError::Mount { path: path.to_path_buf(), source: io::Error::last_os_error() });
    }
    Ok(())
}

/// A process of the node that asks a ClusterIP gets its replies from a pod's veth, though the way to that
/// address is the uplink: the strict filter would drop them. `default` is what new veths begin with.
fn loosen_reverse_path_filters() -> Result<(), PrepareError> {
    let folder = Path::new(SETTINGS).join("conf");
    let fail = |source| PrepareError::Setting { path: folder.clone(), source };
    for interface in fs::read_dir(&folder).map_err(fail)? {
        let path = interface.map_err(fail)?.path().join("rp_filter");
        set(&path, "1", LOOSE)?;
    }
    Ok(())
}

/// Changes a setting from `from` to `to`; one with another value stays.
fn set(path: &Path, from: &str, to: &str) -> Result<(), PrepareError> {
    let fail = |source| PrepareError::Setting { path: path.to_path_buf(), source };
    let current = match fs::read_to_string(path) {
        // The interface went away while we looked.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        read => read.map_err(fail)?,
    };
    if current.trim() == from { fs::write(path, to).map_err(fail) } else { Ok(()) }
}
