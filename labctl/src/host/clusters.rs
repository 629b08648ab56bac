//! What labs on clusters take: Docker, kind, room for several kubelets. Labs on namespaces need nothing of it.

use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::process::Command;

use super::tools::{find, in_path};
use super::{Area, Finding};

/// Limits that systemd, containerd and a kubelet in each of a few nodes use up: the least, and what kind's
/// documentation suggests (<https://kind.sigs.k8s.io/docs/user/known-issues/#pod-errors-due-to-too-many-open-files>).
const LIMITS: [(&str, &str, u64, u64); 2] = [
    ("inotify-instances", "fs.inotify.max_user_instances", 512, 1024),
    ("inotify-watches", "fs.inotify.max_user_watches", 65_536, 524_288),
];

/// Name of the finding about Docker.
pub(super) const DOCKER: &str = "docker";

/// Where Docker's socket is when nobody says otherwise.
const SOCKET: &str = "/var/run/docker.sock";

pub(super) fn findings() -> Vec<Finding> {
    let mut findings = vec![docker(), kind()];
    findings.extend(LIMITS.iter().filter_map(limit));
    findings
}

/// The client without its daemon is of no use, and is the usual state of a fresh machine.
fn docker() -> Finding {
    let missing = |detail: String, fix: &str| Finding::missing(Area::Clusters, DOCKER, detail, fix);
    let host = std::env::var("DOCKER_HOST").unwrap_or_else(|_| format!("unix://{SOCKET}"));
    let Some(socket) = host.strip_prefix("unix://") else {
        let detail = format!("DOCKER_HOST is {host}, and labs need the Docker of this machine");
        return missing(detail, "unset DOCKER_HOST");
    };
    // kind calls the client.
    if find("docker", &in_path()).is_none() {
        return missing("not installed".to_owned(), "see https://docs.docker.com/engine/install/");
    }
    match UnixStream::connect(socket) {
        Ok(_) => Finding::ok(Area::Clusters, DOCKER, format!("daemon at {socket}")),
        Err(error) => missing(
            format!("no daemon at {socket}: {error}"),
            if error.kind() == ErrorKind::PermissionDenied {
                "run as root, or: usermod -aG docker \"$USER\" and log in again"
            } else {
                "systemctl start docker"
            },
        ),
    }
}

fn kind() -> Finding {
    const FIX: &str = "see https://kind.sigs.k8s.io/docs/user/quick-start/#installation";
    let Some(path) = find("kind", &in_path()) else {
        return Finding::missing(Area::Clusters, "kind", "not installed", FIX);
    };
    match Command::new(&path).arg("version").output() {
        Ok(said) if said.status.success() => {
            let version = String::from_utf8_lossy(&said.stdout);
            Finding::ok(Area::Clusters, "kind", format!("{}, {}", path.display(), version.trim()))
        }
        Ok(said) => Finding::missing(
            Area::Clusters,
            "kind",
            format!("{} version: {}", path.display(), String::from_utf8_lossy(&said.stderr).trim()),
            FIX,
        ),
        Err(error) => Finding::missing(Area::Clusters, "kind", format!("{}: {error}", path.display()), FIX),
    }
}

/// `None` where the kernel does not say.
fn limit((name, key, least, suggested): &(&'static str, &str, u64, u64)) -> Option<Finding> {
    let text = std::fs::read_to_string(format!("/proc/sys/{}", key.replace('.', "/"))).ok()?;
    let value: u64 = text.trim().parse().ok()?;
    Some(if value >= *least {
        Finding::ok(Area::Clusters, name, format!("{value}"))
    } else {
        let detail = format!("{key} is {value}, several nodes need {least}");
        Finding::missing(Area::Clusters, name, detail, format!("sysctl -w {key}={suggested}"))
    })
}
