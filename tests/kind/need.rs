//! What these tests need of the machine: a Docker engine that answers, kind, and root for the second witness.
//! Does not own: what labctl itself needs; `labctl doctor` says that.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Set where the tests must run: a skip then fails.
const REQUIRE: &str = "LABCTL_REQUIRE_KIND";
/// Node image of the clusters; kind's own default without it.
const IMAGE: &str = "LABCTL_KIND_IMAGE";
/// A program that starts the real kube-proxy on the cluster that it is given by name, for node images whose cluster
/// comes without one.
const KUBE_PROXY: &str = "LABCTL_KIND_KUBE_PROXY";

/// Whether the test must be left out. Says so on the real stderr, which the test harness does not swallow: a test
/// that has checked nothing must not look like one that has.
///
/// # Panics
/// When it must be left out on a machine that promises to run it.
pub(crate) fn missing(test: &str) -> bool {
    let Some(lack) = lack() else { return false };
    skip(test, lack);
    true
}

/// Says that a test is left out.
///
/// # Panics
/// On a machine that promises to run it.
pub(crate) fn skip(test: &str, lack: &str) {
    assert!(std::env::var_os(REQUIRE).is_none_or(|v| v.is_empty()), "{REQUIRE} is set, and {lack}");
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {lack}");
}

fn lack() -> Option<&'static str> {
    if !nix::unistd::geteuid().is_root() {
        return Some("tcpdump on the Docker bridge and the lab to compare with need root; try `make test`");
    }
    if !runs("docker", "version") {
        return Some("no Docker engine answers");
    }
    if !runs("kind", "version") {
        return Some("kind is not installed (https://kind.sigs.k8s.io)");
    }
    None
}

fn runs(program: &str, argument: &str) -> bool {
    let mut command = Command::new(program);
    command.arg(argument).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// The node image that the tests are told to use.
pub(crate) fn image() -> Option<String> {
    std::env::var(IMAGE).ok().filter(|image| !image.is_empty())
}

/// The program that starts kube-proxy, if the clusters come without one.
pub(crate) fn kube_proxy() -> Option<PathBuf> {
    std::env::var_os(KUBE_PROXY).filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// Leaves the test unless this machine can run it.
macro_rules! need_kind {
    () => {
        if $crate::need::missing(module_path!()) {
            return;
        }
    };
}

pub(crate) use need_kind;
