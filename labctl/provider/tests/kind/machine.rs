//! What this machine can do, plans to try, and what is left in Docker.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use labctl_model::{Plan, ProviderKind};
use tempfile::TempDir;

/// The seed's lab under another name, for kind.
pub(crate) fn plan(lab: &str) -> Plan {
    let text = include_str!("../../../../labs/dsr.yaml");
    let mut plan = labctl_model::parse("dsr.yaml", text).expect("the lab is valid");
    plan.lab = lab.to_owned();
    plan.provider = ProviderKind::Kind;
    plan.image = env::var("LABCTL_KIND_IMAGE").ok().filter(|image| !image.is_empty());
    plan
}

/// A state folder that goes with the value.
pub(crate) fn state_dir() -> TempDir {
    tempfile::tempdir().expect("a temporary folder can be made")
}

/// The static binary that nodes need.
pub(crate) fn binary() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/labctl")
}

/// Whether clusters can be made here; says what is missing.
pub(crate) fn can_make_clusters() -> bool {
    let missing = if docker(&["version", "--format", "{{.Server.Version}}"]).is_none() {
        Some("no Docker engine")
    } else if Command::new("kind").arg("version").output().is_err() {
        Some("no kind in PATH")
    } else if !binary().exists() {
        Some("no target/labctl: make build")
    } else {
        None
    };
    let Some(missing) = missing else { return true };
    assert!(
        env::var_os("LABCTL_REQUIRE_KIND").is_none_or(|v| v != "1"),
        "LABCTL_REQUIRE_KIND=1 and {missing}"
    );
    say(&format!("SKIPPED: {missing}"));
    false
}

/// Tells whoever watches the tests.
#[expect(clippy::print_stderr, reason = "a skip and the steps of a cluster must be seen")]
pub(crate) fn say(line: &str) {
    eprintln!("{line}");
}

/// Output of a docker command, `None` when it fails.
pub(crate) fn docker(arguments: &[&str]) -> Option<String> {
    let output = Command::new("docker").args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Containers and networks whose name has the lab's in it.
pub(crate) fn left_in_docker(lab: &str) -> Vec<String> {
    let filter = format!("name=labctl-{lab}");
    let containers = docker(&["ps", "-a", "--filter", &filter, "--format", "container {{.Names}}"]);
    let networks = docker(&["network", "ls", "--filter", &filter, "--format", "network {{.Name}}"]);
    let both = [containers, networks].into_iter().flatten();
    both.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()).collect()
}
