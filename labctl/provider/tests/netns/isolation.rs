//! A process with its own `/run` and network for each test.

use std::env;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Set in the process that runs the test's body.
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
        return body();
    }
    if !nix::unistd::geteuid().is_root() {
        report(&format!("skipped {name}: network namespaces need root"));
        return;
    }
    let mut test = Command::new(env::current_exe().expect("the test has a file"));
    test.args(["--exact", name, "--nocapture", "--test-threads=1"]).env(INSIDE, "1");
    // SAFETY: between fork and exec only the system calls of `enter` run; they allocate nothing that another
    // thread of the parent could hold a lock for.
    unsafe { test.pre_exec(move || enter(propagation)) };
    let status = test.status().expect("the test starts again");
    assert!(status.success(), "{name} failed in its own process, see above");
}

fn enter(propagation: Propagation) -> io::Result<()> {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)?;
    mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none)?;
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
