//! What is mounted where, and the lab's own bpf file system.
//!
//! Owns: `/proc/self/mountinfo`, mounting and unmounting below a lab's folder. Does not own: namespace names.

use std::ffi::{CString, OsString};
use std::fs::{self, File};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Major and minor number.
pub(super) type Device = (u32, u32);

/// Every mount point of this mount namespace, in the order of mounting.
fn mount_points() -> io::Result<Vec<PathBuf>> {
    let text = fs::read("/proc/self/mountinfo")?;
    Ok(text.split(|b| *b == b'\n').filter_map(mount_point).collect())
}

/// Fifth field of a line (proc_pid_mountinfo(5)).
fn mount_point(line: &[u8]) -> Option<PathBuf> {
    let field = line.split(|b| *b == b' ').nth(4)?;
    Some(PathBuf::from(OsString::from_vec(unescape(field))))
}

/// Device of the file system that a file is on, as `/proc/locks` names it. `stat` tells another one where a file
/// system has subvolumes.
pub(super) fn device_of(file: &File) -> io::Result<Device> {
    let open = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))?;
    let mount = open.lines().find_map(|line| line.strip_prefix("mnt_id:")).map(str::trim);
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let device = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        (fields.next() == mount).then(|| fields.nth(1))?
    });
    let (major, minor) = device.and_then(|d| d.split_once(':')).unwrap_or_default();
    match (major.parse(), minor.parse()) {
        (Ok(major), Ok(minor)) => Ok((major, minor)),
        _ => Err(io::Error::other("the file's mount is not listed")),
    }
}

/// Undoes the kernel's octal escapes of space, tab, newline and backslash.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = (first == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        (rest, _) = match octal {
            Some(byte) => (&tail[3..], out.push(byte)),
            None => (tail, out.push(first)),
        };
    }
    out
}

/// Whether the path leads to the root of a mount. The list alone does not say: a mount in it may lie hidden
/// under a later one of a folder above.
pub(super) fn is_mount_point(path: &Path) -> io::Result<bool> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut found = MaybeUninit::<libc::statx>::zeroed();
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT;
    // SAFETY: the path is a C string and the buffer a whole `statx`; both live through the call.
    let done = unsafe { libc::statx(libc::AT_FDCWD, name.as_ptr(), flags, 0, found.as_mut_ptr()) };
    if done != 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::NotFound { Ok(false) } else { Err(error) };
    }
    // SAFETY: it began as zeros, which is a valid value, and the kernel filled it in.
    let found = unsafe { found.assume_init() };
    let root = libc::STATX_ATTR_MOUNT_ROOT as u64;
    if found.stx_attributes_mask & root == 0 {
        // Linux before 5.8.
        return Ok(mount_points()?.iter().any(|p| p == path));
    }
    Ok(found.stx_attributes & root != 0)
}

/// Mount points at or below a folder that can be reached, the last mounted first.
pub(super) fn below(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in mount_points()?.into_iter().filter(|p| p.starts_with(dir)).rev() {
        if is_mount_point(&path)? {
            found.push(path);
        }
    }
    Ok(found)
}

/// Mounts a bpf file system of its own here, with a folder for each name.
pub(super) fn mount_bpffs(dir: &Path, folders: impl IntoIterator<Item = impl AsRef<Path>>) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_RELATIME;
    mount(Some("labctl"), dir, Some("bpf"), flags, Some("mode=0700"))?;
    for folder in folders {
        fs::create_dir(dir.join(folder))?;
    }
    Ok(())
}

/// Unmounts; lazily when a process still has a file open there.
pub(super) fn unmount(path: &Path) -> io::Result<()> {
    match umount2(path, MntFlags::empty()) {
        Err(nix::Error::EBUSY) => umount2(path, MntFlags::MNT_DETACH).map_err(io::Error::from),
        Err(nix::Error::EINVAL | nix::Error::ENOENT) | Ok(()) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_lines_are_read() {
        let line = br"36 35 98:0 /mnt1 /run/lab\040one\134 rw,noatime master:1 - ext3 /dev/root rw";
        assert_eq!(mount_point(line), Some(PathBuf::from(r"/run/lab one\")));
        assert_eq!(mount_point(b""), None);
        assert_eq!(unescape(br"end\04"), br"end\04");
    }
}
