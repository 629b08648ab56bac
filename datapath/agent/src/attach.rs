//! Attaching the tc programs: TCX links, pinned and replaced atomically; the clsact qdisc where the kernel
//! has no TCX (before 6.6), where the filter is replaced in place under a fixed priority and handle.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::tc::{
    self, NlOptions, SchedClassifierLink, SchedClassifierLinkId, TcAttachOptions, TcAttachType, TcError,
    TcHandle,
};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier};
use serde::{Deserialize, Serialize};

use crate::maps;
use crate::state::AttachMode;

/// Priority of our clsact filters. Low, so that a filter of the user can come first.
const CLSACT_PRIORITY: u16 = 0x1abc;

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachKind {
    /// A pinned TCX link.
    Tcx,
    /// A filter of the clsact qdisc.
    Clsact,
}

impl fmt::Display for AttachKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        })
    }
}

/// One program at one hook of one interface.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Point<'a> {
    pub(crate) program: &'static str,
    pub(crate) interface: &'a str,
    pub(crate) hook: TcAttachType,
}

impl Point<'_> {
    /// Where its link is pinned: `links/<interface>.<program>`.
    pub(crate) fn pin(&self, links: &Path) -> PathBuf {
        links.join(format!("{}~{}", self.program, self.interface))
    }

    /// Where the program of its clsact filter is pinned.
    fn filter_pin(&self, links: &Path) -> PathBuf {
        maps::filters_folder(links.parent().unwrap_or(links))
            .join(format!("{}~{}", self.program, self.interface))
    }
}

/// A program could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The kernel refused.
    #[error("attach {program} to {interface}")]
    Attach {
        /// Program name.
        program: String,
        /// Interface name.
        interface: String,
        /// What the kernel said.
        #[source]
        source: Box<ProgramError>,
    },
    /// The clsact qdisc could not be added.
    #[error("add the clsact qdisc to {interface}")]
    Qdisc {
        /// Interface name.
        interface: String,
        /// What the kernel said.
        #[source]
        source: Box<TcError>,
    },
    /// A pinned link is there and cannot be used.
    #[error("reuse the pinned link {}; remove the lab and bring it up again", path.display())]
    Link {
        /// Pin.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: LinkError,
    },
    /// A link could not be pinned.
    #[error("pin the link {}", path.display())]
    Pin {
        /// Pin.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

impl Point<'_> {
    fn attach_error(&self, source: ProgramError) -> AttachError {
        AttachError::Attach {
            program: self.program.into(),
            interface: self.interface.into(),
            source: Box::new(source),
        }
    }
}

/// Attaches a loaded program, or puts it in the place of its predecessor.
///
/// # Errors
/// [`AttachError`] with program and interface.
pub(crate) fn attach(
    program: &mut SchedClassifier,
    point: &Point<'_>,
    links: &Path,
    mode: AttachMode,
) -> Result<AttachKind, AttachError> {
    match mode {
        AttachMode::Clsact => attach_clsact(program, point, links).map(|()| AttachKind::Clsact),
        AttachMode::Tcx => attach_tcx(program, point, links).map(|()| AttachKind::Tcx),
        AttachMode::Auto => match attach_tcx(program, point, links) {
            Ok(()) => Ok(AttachKind::Tcx),
            Err(error) if is_unsupported(&error) => {
                attach_clsact(program, point, links).map(|()| AttachKind::Clsact)
            }
            Err(error) => Err(error),
        },
    }
}

/// Kernels before 6.6 answer BPF_LINK_CREATE for TCX with EINVAL.
fn is_unsupported(error: &AttachError) -> bool {
    let AttachError::Attach { source, .. } = error else { return false };
    match &**source {
        ProgramError::SyscallError(e) => e.io_error.raw_os_error() == Some(libc::EINVAL),
        _ => false,
    }
}

fn attach_tcx(program: &mut SchedClassifier, point: &Point<'_>, links: &Path) -> Result<(), AttachError> {
    let pin = point.pin(links);
    let id = match pinned_link(&pin)?.map(|link| program.attach_to_link(link)) {
        // The link outlived its interface, and another has its name now.
        Some(Err(error)) if is_defunct(&error) => {
            fs::remove_file(&pin)
                .map_err(|e| AttachError::Pin { path: pin.clone(), reason: e.to_string() })?;
            attach_new_tcx(program, point)
        }
        Some(replaced) => replaced,
        None => attach_new_tcx(program, point),
    };
    let link = id.and_then(|id| program.take_link(id)).map_err(|e| point.attach_error(e))?;
    if pin.exists() {
        // The pin holds the link; the program in it was replaced.
        return Ok(());
    }
    let unpinnable = |reason: String| AttachError::Pin { path: pin.clone(), reason };
    let link = FdLink::try_from(link).map_err(|e| unpinnable(e.to_string()))?;
    link.pin(&pin).map_err(|e| unpinnable(e.to_string()))?;
    Ok(())
}

fn attach_new_tcx(
    program: &mut SchedClassifier,
    point: &Point<'_>,
) -> Result<SchedClassifierLinkId, ProgramError> {
    let options = TcAttachOptions::TcxOrder(LinkOrder::default());
    program.attach_with_options(point.interface, point.hook, options)
}

/// `tcx_link_update` in kernel/bpf/tcx.c: the link's interface is gone.
fn is_defunct(error: &ProgramError) -> bool {
    let ProgramError::SyscallError(error) = error else { return false };
    error.io_error.raw_os_error() == Some(libc::ENOLINK)
}

/// The link at a pin, if there is one.
fn pinned_link(pin: &Path) -> Result<Option<SchedClassifierLink>, AttachError> {
    let unusable = |source| AttachError::Link { path: pin.to_path_buf(), source };
    match PinnedLink::from_pin(pin) {
        Ok(link) => SchedClassifierLink::try_from(FdLink::from(link)).map(Some).map_err(unusable),
        Err(LinkError::SyscallError(e)) if e.io_error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(unusable(source)),
    }
}

fn attach_clsact(program: &mut SchedClassifier, point: &Point<'_>, links: &Path) -> Result<(), AttachError> {
    match tc::qdisc_add_clsact(point.interface) {
        Ok(()) => {}
        Err(TcError::NetlinkError(e)) if e.raw_os_error() == Some(libc::EEXIST) => {}
        Err(e) => {
            return Err(AttachError::Qdisc { interface: point.interface.into(), source: Box::new(e) });
        }
    }
    let handle = TcHandle::new(0, 1);
    let options = NlOptions { priority: CLSACT_PRIORITY, handle, ..NlOptions::default() };
    let fresh = program.attach_with_options(point.interface, point.hook, TcAttachOptions::Netlink(options));
    let id = match fresh {
        Ok(id) => Ok(id),
        // Taken, by our predecessor: the kernel swaps the program of that filter.
        Err(ProgramError::TcError(TcError::NetlinkError(e))) if e.raw_os_error() == Some(libc::EEXIST) => {
            let predecessor =
                SchedClassifierLink::attached(point.interface, point.hook, CLSACT_PRIORITY, handle, None);
            predecessor
                .map_err(|e| ProgramError::from(TcError::IoError(e)))
                .and_then(|link| program.attach_to_link(link))
        }
        Err(e) => Err(e),
    };
    let link = id.and_then(|id| program.take_link(id)).map_err(|e| point.attach_error(e))?;
    // The qdisc holds the filter; dropping the link would remove it.
    std::mem::forget(link);
    note_filter(program, &point.filter_pin(links))
}

/// Pins the program of a filter, in the place of its predecessor's.
fn note_filter(program: &mut SchedClassifier, pin: &Path) -> Result<(), AttachError> {
    let failed = |reason: String| AttachError::Pin { path: pin.to_path_buf(), reason };
    let made = pin.parent().map_or(Ok(()), fs::create_dir_all);
    made.and_then(|()| match fs::remove_file(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    })
    .map_err(|error| failed(error.to_string()))?;
    program.pin(pin).map_err(|error| failed(error.to_string()))
}

/// Removes links of interfaces that are not wanted any more.
pub(crate) fn remove_stale(links: &Path, wanted: &[PathBuf]) -> io::Result<()> {
    for entry in fs::read_dir(links)? {
        let path = entry?.path();
        if !wanted.contains(&path) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}
