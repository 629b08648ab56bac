//! Which of the needed capabilities this process holds (capabilities(7)).

use super::{Area, Finding};

/// The capabilities that the netns provider uses, by bit number in `linux/capability.h`, and why.
const NEEDED: [(u32, &str); 3] = [
    // Namespaces and mounts.
    (21, "CAP_SYS_ADMIN"),
    // Links, routes, attaching programs.
    (12, "CAP_NET_ADMIN"),
    // Packet sockets of the captures.
    (13, "CAP_NET_RAW"),
];

pub(super) fn findings() -> Vec<Finding> {
    let uid = nix::unistd::geteuid();
    let missing = match effective_capabilities() {
        Some(held) => lacking(held),
        None if uid.is_root() => Vec::new(),
        None => NEEDED.map(|(_, name)| name).to_vec(),
    };
    let finding = if missing.is_empty() {
        Finding::ok(Area::Privileges, "root", format!("uid {uid}, {}", NEEDED.map(|(_, n)| n).join(", ")))
    } else {
        let fix = if uid.is_root() {
            format!("start this container or session with {}", missing.join(", "))
        } else {
            "sudo labctl doctor".to_owned()
        };
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
