//! Who made a namespace: a line in the alias of its loopback interface.
//!
//! Owns: writing and reading the mark. Does not own: what follows from it.
//!
//! A name in `/run/netns` says little: lab `a` with node `b-c` and lab `a-b` with node `c` share a prefix, a user
//! may have made the name, and the state file may be gone. The mark is inside the namespace, so it lives
//! exactly as long, and `ip -n <namespace> link show lo` shows it to users.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rtnetlink::LinkUnspec;

use super::namespace;
use super::netlink::{Netlink, Request};

/// Index of the loopback interface in every namespace (`LOOPBACK_IFINDEX` in the kernel).
const LOOPBACK: u32 = 1;
/// The kernel takes aliases of up to 255 bytes (`IFALIASZ`).
const MAX_LEN: usize = 255;

/// The maker of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) lab: String,
    pub(super) host: String,
    pub(super) run_dir: PathBuf,
}

impl Mark {
    fn text(&self) -> String {
        format!("labctl lab={} host={} run={}", self.lab, self.host, self.run_dir.display())
    }

    fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix("labctl lab=")?;
        let (lab, rest) = rest.split_once(" host=")?;
        let (host, run_dir) = rest.split_once(" run=")?;
        Some(Self { lab: lab.to_owned(), host: host.to_owned(), run_dir: run_dir.into() })
    }

    /// Whether the kernel can store it.
    pub(super) fn fits(&self) -> bool {
        self.text().len() <= MAX_LEN
    }

    pub(super) fn is_of(&self, run_dir: &Path, lab: &str) -> bool {
        self.lab == lab && self.run_dir == run_dir
    }

    /// Sets the mark and takes loopback up, in one message.
    pub(super) fn request(&self) -> Request {
        let link = LinkUnspec::new_with_index(LOOPBACK).alias(self.text()).up().build();
        Request::set_link("mark and raise", "lo", link)
    }
}

/// What a namespace file holds.
pub(super) enum Holding {
    /// A namespace with our kind of mark.
    Marked(Mark),
    /// A namespace that labctl did not make.
    Unmarked,
    /// No namespace at all.
    Nothing,
}

/// Reads the marks of many namespaces on one thread.
pub(super) fn read_all<'a>(files: impl IntoIterator<Item = &'a File> + Send) -> Vec<io::Result<Holding>> {
    namespace::on_own_thread(|| files.into_iter().map(read).collect())
}

/// Moves the calling thread.
fn read(file: &File) -> io::Result<Holding> {
    if !namespace::is_namespace(file) {
        return Ok(Holding::Nothing);
    }
    namespace::join(file.as_fd())?;
    let links = Netlink::open().and_then(|mut n| n.links()).map_err(io::Error::other)?;
    let alias = links.into_iter().find(|l| l.index == LOOPBACK).and_then(|l| l.alias);
    Ok(alias.as_deref().and_then(Mark::parse).map_or(Holding::Unmarked, Holding::Marked))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mark_survives_text() {
        let mark = Mark { lab: "a-b".into(), host: "c".into(), run_dir: "/tmp/with space/run=x".into() };
        assert_eq!(Mark::parse(&mark.text()), Some(mark));
        assert_eq!(Mark::parse("uplink of rack 7"), None);
    }

    #[test]
    fn labs_that_share_a_prefix_differ() {
        let mark = Mark { lab: "a".into(), host: "b-c".into(), run_dir: "/run/labctl".into() };
        assert!(mark.is_of(Path::new("/run/labctl"), "a"));
        assert!(!mark.is_of(Path::new("/run/labctl"), "a-b"));
        assert!(!mark.is_of(Path::new("/tmp/other"), "a"));
    }
}
