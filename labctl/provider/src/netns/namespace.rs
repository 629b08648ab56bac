//! Named network namespaces: making one with its first socket, entering one, removing its name.
//!
//! Owns: `unshare`, `setns`, the bind mounts on `/run/netns`, sysctls. Does not own: links and addresses, or
//! which namespaces there are.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{FsType, fstatfs};

use super::mark::Mark;
use super::netlink::{LinkWatch, Netlink, NetlinkError};

/// Where iproute2 keeps its names.
pub(crate) const NETNS_DIR: &str = "/run/netns";
/// Every host's interface towards the network.
pub(crate) const UPLINK: &str = "eth0";
/// Magic of the file system behind namespace files (`linux/magic.h`, NSFS_MAGIC).
const NSFS_MAGIC: FsType = FsType(0x6e73_6673);

/// The file of a namespace's name.
pub(crate) fn path_of(namespace: &str) -> PathBuf {
    Path::new(NETNS_DIR).join(namespace)
}

/// Why a namespace could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BrokenNamespace {
    /// `unshare` failed.
    #[error("make a network namespace: {source}{}", unshare_hint(source))]
    Unshare {
        /// The kernel's words.
        source: io::Error,
    },
    /// Its name is there already.
    #[error("name the namespace: {} exists; remove it with `ip netns del`", path.display())]
    NameTaken {
        /// The file.
        path: PathBuf,
    },
    /// The name could not be made.
    #[error("name the namespace {}: {source}", path.display())]
    Name {
        /// The file.
        path: PathBuf,
        /// The kernel's words.
        source: io::Error,
    },
    /// A sysctl could not be set.
    #[error("set {key} to {value}: {source}")]
    Sysctl {
        /// Path below `/proc/sys`.
        key: String,
        /// What should have been set.
        value: String,
        /// The kernel's words.
        source: io::Error,
    },
    /// Its netlink socket failed.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

fn unshare_hint(error: &io::Error) -> &'static str {
    if error.raw_os_error() == Some(libc::ENOSPC) {
        " (raise the limit: sysctl -w user.max_net_namespaces=10000)"
    } else {
        ""
    }
}

/// A namespace that was just made: sockets inside it that any thread may use.
pub(super) struct Opened {
    /// Requests.
    pub(super) netlink: Netlink,
    /// Link events since the beginning.
    pub(super) watch: LinkWatch,
    /// The namespace itself, for moving the far end of a veth pair there.
    pub(super) file: File,
}

/// Makes the calling thread's network namespace a new one with this name, marked and with loopback up.
/// Call it only on a thread that ends soon after, or that goes on to make another.
pub(super) fn make(namespace: &str, mark: &Mark, forwards: bool) -> Result<Opened, BrokenNamespace> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(|e| BrokenNamespace::Unshare { source: e.into() })?;
    let mut netlink = Netlink::open()?;
    // The mark comes before the name: a name without a mark is never ours, whenever we are killed.
    netlink.batch(vec![mark.request()])?;
    quiet(forwards)?;
    let watch = LinkWatch::open()?;
    let file = name(namespace)?;
    Ok(Opened { netlink, watch, file })
}

/// Settings of a fresh namespace, before it has a link. All else stays as the kernel sets it.
fn quiet(forwards: bool) -> Result<(), BrokenNamespace> {
    // No router solicitations or MLD reports in captures. A kernel without IPv6 has no such file.
    for key in ["net/ipv6/conf/default/disable_ipv6", "net/ipv6/conf/all/disable_ipv6"] {
        match set_sysctl(key, "1") {
            Err(BrokenNamespace::Sysctl { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            done => done?,
        }
    }
    // New namespaces inherit the machine's own settings (net.core.devconf_inherit_init_net), and a machine
    // that runs containers forwards: the client must not.
    set_sysctl("net/ipv4/ip_forward", if forwards { "1" } else { "0" })
}

/// Sets a sysctl below `net/` in the calling thread's namespace.
pub(super) fn set_sysctl(key: &str, value: &str) -> Result<(), BrokenNamespace> {
    fs::write(Path::new("/proc/sys").join(key), value).map_err(|source| BrokenNamespace::Sysctl {
        key: key.replace('/', "."),
        value: value.to_owned(),
        source,
    })
}

/// Puts the calling thread's namespace under its name in `/run/netns`.
fn name(namespace: &str) -> Result<File, BrokenNamespace> {
    let path = path_of(namespace);
    match File::create_new(&path) {
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            return Err(BrokenNamespace::NameTaken { path });
        }
        Err(source) => return Err(BrokenNamespace::Name { path, source }),
    }
    let bound = mount(Some("/proc/thread-self/ns/net"), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(io::Error::from)
        .and_then(|()| File::open(&path));
    bound.map_err(|source| {
        // The file was made three lines above; nothing else can be at its path.
        let _ = fs::remove_file(&path);
        BrokenNamespace::Name { path, source }
    })
}

/// Removes the name. The namespace itself goes with its last process, socket and open file.
pub(super) fn remove_name(path: &Path) -> io::Result<()> {
    // More than one mount can lie on a name when somebody bound it again.
    loop {
        match umount2(path, MntFlags::MNT_DETACH) {
            Ok(()) => {}
            Err(nix::Error::EINVAL | nix::Error::ENOENT) => break,
            Err(e) => return Err(e.into()),
        }
    }
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Whether the file is a namespace, not the empty file that a kill between two calls leaves.
pub(crate) fn is_namespace(file: &File) -> bool {
    fstatfs(file).is_ok_and(|s| s.filesystem_type() == NSFS_MAGIC)
}

/// Moves the calling thread into a namespace.
pub(crate) fn join(namespace: impl AsFd) -> io::Result<()> {
    setns(namespace, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)
}

/// Runs `f` on a thread inside the namespace with this file.
pub(crate) fn enter<T: Send>(path: &Path, f: impl FnOnce() -> T + Send) -> io::Result<T> {
    let file = File::open(path)?;
    on_own_thread(|| {
        join(&file)?;
        Ok(f())
    })
}

/// Runs `f` on a thread that may change its namespace, and waits for it.
pub(super) fn on_own_thread<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| match scope.spawn(f).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Joins the namespace with this file; for the time between fork and exec.
pub(crate) fn join_after_fork(path: &CStr) -> io::Result<()> {
    // SAFETY: the path is a C string that outlives the call.
    let fd = unsafe { libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was opened above and is closed below, once.
    let joined = match unsafe { libc::setns(fd, libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    };
    // SAFETY: as above; nobody else knows the descriptor.
    unsafe { libc::close(fd) };
    joined
}
