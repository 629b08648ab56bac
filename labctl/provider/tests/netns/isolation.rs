//! A process with its own `/run` and network for each test.

use std::env;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

/// Set in the process that runs the test's body, to its run directory.
const INSIDE: &str = "LABCTL_TEST_INSIDE";

/// How mounts of the test's process relate to others, as on different distributions.
#[derive(Clone, Copy)]
pub(crate) enum Propagation {
    /// Without an init system, in containers.
    Private,
    /// Under systemd.
    Shared,
}

/// Runs `body` in isolation. `name` is the test's full path, as `cargo test` prints it.
pub(crate) fn isolated(name: &str, body: fn()) {
    isolated_with(name, Propagation::Private, body);
}

pub(crate) fn isolated_with(name: &str, propagation: Propagation, body: fn()) {
    if env::var_os(INSIDE).is_some() {
        prepare(propagation).expect("the process has its own mounts");
        return body();
    }
    if !nix::unistd::geteuid().is_root() {
        report(&format!("skipped {name}: network namespaces need root"));
        return;
    }
    let mut test = Command::new(env::current_exe().expect("the test has a file"));
    test.args(["--exact", name, "--nocapture", "--test-threads=1"]).env(INSIDE, own_run_dir(name));
    // SAFETY: between fork and exec only one system call runs, and it allocates nothing.
    unsafe {
        test.pre_exec(|| Ok(unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)?));
    }
    let status = test.status().expect("the test starts again");
    assert!(status.success(), "{name} failed in its own process, see above");
}

/// Tests share the machine's process numbers, and a role is known by lab and run directory: each test has
/// a run directory that no other one has.
fn own_run_dir(name: &str) -> String {
    format!("/run/{}-{}", name.replace("::", "-"), std::process::id())
}

/// The run directory of the test that runs in this process.
pub(crate) fn run_dir() -> PathBuf {
    PathBuf::from(env::var_os(INSIDE).expect("only isolated tests make labs"))
}

/// An empty `/run`, without what other labs of the machine have mounted below it.
fn prepare(propagation: Propagation) -> io::Result<()> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none)?;
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    for point in points.filter(|p| Path::new(p).starts_with("/run")) {
        // Those below another one go with it.
        let _ = umount2(point, MntFlags::MNT_DETACH);
    }
    mount(Some("test"), "/run", Some("tmpfs"), MsFlags::empty(), none)?;
    if matches!(propagation, Propagation::Shared) {
        mount(none, "/", none, MsFlags::MS_SHARED | MsFlags::MS_REC, none)?;
    }
    Ok(())
}

#[expect(clippy::print_stderr, reason = "a skip must say why, and a test has no other voice")]
pub(crate) fn report(text: &str) {
    eprintln!("{text}");
}

/// Arguments that make this binary run one test again, as a process that can be killed.
pub(crate) fn again(name: &str) -> Command {
    let mut test = Command::new(env::current_exe().expect("the test has a file"));
    test.args(["--exact", name, "--nocapture", "--test-threads=1"]);
    test
}
