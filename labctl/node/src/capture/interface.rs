//! Which interfaces can be captured on.
//!
//! Owns: finding them by name, and whether they are up and speak Ethernet. Does not own: the capture.

use std::io;

use labctl_wire::packet::Mac;
use nix::net::if_::{if_indextoname, if_nameindex, if_nametoindex};

use super::CaptureError;

/// An interface of this network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) index: u32,
    up: bool,
    /// `ARPHRD_*`.
    link_type: u16,
    /// Its own Ethernet address.
    pub(super) mac: Mac,
}

impl Interface {
    fn read(name: &str) -> io::Result<Self> {
        let index = if_nametoindex(name)?;
        let flags = request(name, libc::SIOCGIFFLAGS as libc::Ioctl)?;
        let hardware = request(name, libc::SIOCGIFHWADDR as libc::Ioctl)?;
        // SAFETY: SIOCGIFFLAGS filled this member of the union.
        let flags = unsafe { flags.ifr_ifru.ifru_flags };
        // SAFETY: SIOCGIFHWADDR filled this member of the union.
        let hardware = unsafe { hardware.ifr_ifru.ifru_hwaddr };
        let mut mac = [0; 6];
        mac.iter_mut().zip(hardware.sa_data).for_each(|(to, from)| *to = from as u8);
        let up = libc::c_int::from(flags) & libc::IFF_UP != 0;
        Ok(Self { name: name.to_owned(), index, up, link_type: hardware.sa_family, mac: Mac(mac) })
    }

    /// Whether frames come back in as they go out.
    pub(super) fn is_loopback(&self) -> bool {
        self.link_type == libc::ARPHRD_LOOPBACK
    }

    fn is_ethernet(&self) -> bool {
        self.link_type == libc::ARPHRD_ETHER || self.is_loopback()
    }

    /// How it is now, perhaps under another name.
    pub(super) fn state(&self) -> State {
        // nix 0.31 takes the C function's null pointer for success and returns an empty name.
        let name = if_indextoname(self.index).unwrap_or_default();
        if name.is_empty() {
            return State::Gone;
        }
        match Self::read(&name.to_string_lossy()) {
            Ok(now) if now.index == self.index && now.up => State::Up,
            // Down, or renamed or deleted between the two questions: the next look tells.
            _ => State::Down,
        }
    }
}

/// Whether an interface passes frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Up,
    Down,
    Gone,
}

/// The interfaces to capture on, and the names of those that `all` leaves out.
#[derive(Debug)]
pub(super) struct Selection {
    pub(super) chosen: Vec<Interface>,
    pub(super) skipped: Vec<String>,
}

/// The named interfaces, each of which must be usable.
pub(super) fn named(names: &[String]) -> Result<Selection, CaptureError> {
    let mut chosen: Vec<Interface> = Vec::new();
    for name in names {
        let interface = Interface::read(name).map_err(|_| CaptureError::NoInterface {
            name: name.clone(),
            available: all_names().unwrap_or_default().join(", "),
        })?;
        if !interface.is_ethernet() {
            return Err(CaptureError::LinkType { name: name.clone(), link_type: interface.link_type });
        }
        if !interface.up {
            return Err(CaptureError::Down { name: name.clone() });
        }
        if !chosen.contains(&interface) {
            chosen.push(interface);
        }
    }
    Ok(Selection { chosen, skipped: Vec::new() })
}

/// Every interface that is up and speaks Ethernet.
pub(super) fn all() -> Result<Selection, CaptureError> {
    let names =
        all_names().map_err(|source| CaptureError::System { step: "list interfaces".into(), source })?;
    let mut selection = Selection { chosen: Vec::new(), skipped: Vec::new() };
    for name in names {
        match Interface::read(&name) {
            Ok(interface) if interface.up && interface.is_ethernet() => selection.chosen.push(interface),
            // Down, of another link type, or gone since it was listed.
            _ => selection.skipped.push(name),
        }
    }
    if selection.chosen.is_empty() { Err(CaptureError::NoneUp) } else { Ok(selection) }
}

fn all_names() -> io::Result<Vec<String>> {
    let interfaces = if_nameindex()?;
    Ok(interfaces.iter().map(|i| i.name().to_string_lossy().into_owned()).collect())
}

/// One of the `SIOCGIF*` requests that take a name.
fn request(name: &str, code: libc::Ioctl) -> io::Result<libc::ifreq> {
    // SAFETY: `ifreq` is plain data for which zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&socket);
    // SAFETY: these requests read the name from and write to one `ifreq`, which `request` is.
    let done = unsafe { libc::ioctl(fd, code, &mut request) };
    if done == 0 { Ok(request) } else { Err(io::Error::last_os_error()) }
}
