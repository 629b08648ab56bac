//! Which of the needed capabilities this process holds (capabilities(7)).

use super::{Area, Finding};
use crate::exit::Exit;
use crate::failure::Failure;

/// The capabilities that the netns provider uses, by bit number in `linux/capability.h`, and why.
const NEEDED: [(u32, &str); 3] = [
    // Namespaces and mounts.
    (21, "CAP_SYS_ADMIN"),
    // Links, routes, attaching programs.
    (12, "CAP_NET_ADMIN"),
    // Packet sockets of the captures.
    (13, "CAP_NET_RAW"),
];

/// Refuses to go on without the privileges that labs need; `command` is what to type after `sudo`.
///
/// # Errors
/// [`Exit::HostUnfit`] with what is missing.
pub(crate) fn require(command: &str) -> Result<(), Failure> {
    match missing() {
        missing if missing.is_empty() => Ok(()),
        missing => Err(Failure::new(
            Exit::HostUnfit,
            format!("labs on network namespaces need root: this process lacks {}", missing.join(", ")),
        )
        .hint(remedy(&missing, command))),
    }
}

/// Root without a capability is in a container or a session that was started so; sudo would not help it.
fn remedy(missing: &[&str], command: &str) -> String {
    if nix::unistd::geteuid().is_root() {
        format!("start this container or session with {}", missing.join(", "))
    } else {
        format!("sudo {command}")
    }
}

/// The needed capabilities that this process does not hold.
fn missing() -> Vec<&'static str> {
    match effective_capabilities() {
        Some(held) => lacking(held),
        None if nix::unistd::geteuid().is_root() => Vec::new(),
        None => NEEDED.map(|(_, name)| name).to_vec(),
    }
}

pub(super) fn findings() -> Vec<Finding> {
    let uid = nix::unistd::geteuid();
    let missing = missing();
    let finding = if missing.is_empty() {
        Finding::ok(Area::Privileges, "root", format!("uid {uid}, {}", NEEDED.map(|(_, n)| n).join(", ")))
    } else {
        let fix = remedy(&missing, "labctl doctor");
        Finding::missing(Area::Privileges, "root", format!("uid {uid} lacks {}", missing.join(", ")), fix)
    };
    vec![finding]
}

fn lacking(held: u64) -> Vec<&'static str> {
    NEEDED.iter().filter(|(bit, _)| held & (1 << bit) == 0).map(|(_, name)| *name).collect()
}

/// `CapEff` of this process: a hexadecimal bit mask (proc_pid_status(5)).
fn effective_capabilities() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_names_what_is_missing() {
        assert_eq!(lacking(0), ["CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_NET_RAW"]);
        assert_eq!(lacking(1 << 21 | 1 << 12), ["CAP_NET_RAW"]);
        assert!(lacking(u64::MAX).is_empty());
    }
}
