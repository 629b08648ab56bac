//! Programs that labctl can make use of and never needs.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::{Area, Finding};

/// A tool, what it is good for, and what installs it with each package tool (`None`: not packaged).
struct Tool {
    name: &'static str,
    purpose: &'static str,
    debian: Option<&'static str>,
    fedora: Option<&'static str>,
    alpine: Option<&'static str>,
    elsewhere: &'static str,
}

const TOOLS: &[Tool] = &[
    Tool {
        name: "kubectl",
        purpose: "looking into clusters",
        debian: None,
        fedora: Some("kubernetes-client"),
        alpine: Some("kubectl"),
        elsewhere: "https://kubernetes.io/docs/tasks/tools/",
    },
    Tool {
        name: "tcpdump",
        purpose: "a second opinion on captures",
        debian: Some("tcpdump"),
        fedora: Some("tcpdump"),
        alpine: Some("tcpdump"),
        elsewhere: "https://www.tcpdump.org/",
    },
    Tool {
        name: "tshark",
        purpose: "reading flow.pcapng: labctl capture -w - | tshark -r -",
        debian: Some("tshark"),
        fedora: Some("wireshark-cli"),
        alpine: Some("tshark"),
        elsewhere: "https://www.wireshark.org/download.html",
    },
    Tool {
        name: "nft",
        purpose: "trying firewalls in a lab",
        debian: Some("nftables"),
        fedora: Some("nftables"),
        alpine: Some("nftables"),
        elsewhere: "https://netfilter.org/projects/nftables/",
    },
    Tool {
        name: "curl",
        purpose: "requests by hand, and labctl node fetch --curl",
        debian: Some("curl"),
        fedora: Some("curl"),
        alpine: Some("curl"),
        elsewhere: "https://curl.se/download.html",
    },
];

pub(super) fn findings() -> Vec<Finding> {
    let dirs = in_path();
    TOOLS.iter().map(|tool| finding(tool, &dirs).optional()).collect()
}

fn finding(tool: &Tool, dirs: &[PathBuf]) -> Finding {
    match find(tool.name, dirs) {
        None => {
            Finding::missing(Area::Tools, tool.name, format!("not installed ({})", tool.purpose), fix(tool))
        }
        Some(path) => Finding::ok(Area::Tools, tool.name, path.display().to_string()),
    }
}

/// The folders of the search path.
pub(super) fn in_path() -> Vec<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect()
}

/// The first executable of this name on the search path.
pub(super) fn find(name: &str, dirs: &[PathBuf]) -> Option<PathBuf> {
    dirs.iter().map(|dir| dir.join(name)).find(|path| {
        path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    })
}

/// The command that installs it on this distribution.
fn fix(tool: &Tool) -> String {
    let has = |program: &str| {
        Path::new("/usr/bin").join(program).exists() || Path::new("/sbin").join(program).exists()
    };
    let packaged = [
        ("apt-get", "apt-get install", tool.debian),
        ("dnf", "dnf install", tool.fedora),
        ("apk", "apk add", tool.alpine),
    ];
    packaged
        .into_iter()
        .find_map(|(program, install, package)| {
            package.filter(|_| has(program)).map(|package| format!("{install} {package}"))
        })
        .unwrap_or_else(|| format!("see {}", tool.elsewhere))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_executable_files_count() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = [dir.path().to_owned()];
        let tool = dir.path().join("tshark");
        std::fs::write(&tool, "").unwrap();
        assert_eq!(find("tshark", &dirs), None);
        std::fs::set_permissions(&tool, PermissionsExt::from_mode(0o755)).unwrap();
        assert_eq!(find("tshark", &dirs), Some(tool));
        assert_eq!(find("kind", &dirs), None);
    }
}
