//! What these tests need of their caller. Does not own: what labctl itself needs; `labctl doctor` says that.

use std::io::Write as _;

/// Whether the test must be left out because it does not run as root. Says so on the real stderr, which the test
/// harness does not swallow: a test that has checked nothing must not look like one that has.
pub(crate) fn missing(test: &str) -> bool {
    if nix::unistd::geteuid().is_root() {
        return false;
    }
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: network namespaces need root; try `make test`");
    true
}

/// Leaves the test unless it runs as root.
macro_rules! need_root {
    () => {
        if $crate::root::missing(module_path!()) {
            return;
        }
    };
}

pub(crate) use need_root;
