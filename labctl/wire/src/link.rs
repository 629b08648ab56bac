//! Link types: what stands before the network layer in a captured packet.
//!
//! Owns: reading each link type as an Ethernet frame, which is all that the rest of the program knows, and what a link's
//! header tells beside: direction and interface. Does not own: the frame itself ([`crate::packet`]). Numbers and layouts:
//! tcpdump.org/linktypes.html.

use crate::point::Direction;

/// `LINKTYPE_ETHERNET`.
pub const ETHERNET: u16 = 1;

const NULL: u16 = 0;
/// `DLT_RAW` of several systems, which files of old programs have.
const RAW_OF_SYSTEMS: [u16; 2] = [12, 14];
const RAW: u16 = 101;
const LOOP: u16 = 108;
const COOKED: u16 = 113;
const IPV4: u16 = 228;
const IPV6: u16 = 229;
const COOKED_2: u16 = 276;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// Which Ethernet addresses the frames of a point have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Addresses {
    /// Both.
    #[default]
    Both,
    /// The sender's; the other is zero (Linux cooked capture, `tcpdump -i any`).
    Sender,
    /// None: both are zero.
    None,
}

impl Addresses {
    /// Whether frames tell who sent them on this link.
    pub const fn tell_sender(self) -> bool {
        matches!(self, Self::Both | Self::Sender)
    }

    /// Whether frames tell whom they are for on this link.
    pub const fn tell_receiver(self) -> bool {
        matches!(self, Self::Both)
    }
}

/// How packets of a link type are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Link(u16);

/// A packet as an Ethernet frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Framed<'p> {
    /// The Ethernet header in front of `rest`; `None` if the packet has one of its own.
    pub(crate) header: Option<[u8; 14]>,
    /// The captured bytes behind that header.
    pub(crate) rest: &'p [u8],
    /// By how many bytes the frame is longer than the packet in the file.
    pub(crate) longer: i64,
    /// What the link says of it.
    pub(crate) direction: Option<Direction>,
    /// Kernel's number of the interface, where packets of several are in one file.
    pub(crate) interface: Option<u32>,
}

impl Link {
    /// The link type with this number; `None` for one that is not understood.
    pub(crate) fn new(number: u16) -> Option<Self> {
        let known = [ETHERNET, NULL, RAW, LOOP, COOKED, IPV4, IPV6, COOKED_2].contains(&number);
        (known || RAW_OF_SYSTEMS.contains(&number)).then_some(Self(number))
    }

    /// Which addresses its frames have.
    pub(crate) const fn addresses(self) -> Addresses {
        match self.0 {
            ETHERNET => Addresses::Both,
            COOKED | COOKED_2 => Addresses::Sender,
            _ => Addresses::None,
        }
    }

    /// Whether each packet tells the interface that it passed.
    pub(crate) const fn tells_interface(self) -> bool {
        self.0 == COOKED_2
    }

    /// Reads a packet; one that is cut inside its link header becomes a frame of no known type.
    pub(crate) fn frame(self, data: &[u8]) -> Framed<'_> {
        let framed = match self.0 {
            ETHERNET => {
                return Framed { header: None, rest: data, longer: 0, direction: None, interface: None };
            }
            COOKED => cooked(data),
            COOKED_2 => cooked_2(data),
            NULL | LOOP => loopback(data),
            _ => bare(data),
        };
        framed.unwrap_or_else(|| behind(data, 0, [0; 6], 0xffff))
    }
}

/// A frame of this type whose payload begins at `at` of the packet.
fn behind(data: &[u8], at: usize, sender: [u8; 6], ethertype: u16) -> Framed<'_> {
    let mut header = [0u8; 14];
    header[6..12].copy_from_slice(&sender);
    header[12..].copy_from_slice(&ethertype.to_be_bytes());
    let rest = data.get(at..).unwrap_or(&[]);
    Framed { header: Some(header), rest, longer: 14 - at as i64, direction: None, interface: None }
}

/// An IP packet and nothing before it.
fn bare(data: &[u8]) -> Option<Framed<'_>> {
    let ethertype = match data.first()? >> 4 {
        4 => ETHERTYPE_IPV4,
        6 => ETHERTYPE_IPV6,
        _ => return None,
    };
    Some(behind(data, 0, [0; 6], ethertype))
}

/// BSD loopback: a word with the address family, in the byte order of the machine that captured (NULL) or of the network
/// (LOOP). The packet tells as well, and does not differ between systems.
fn loopback(data: &[u8]) -> Option<Framed<'_>> {
    let packet = bare(data.get(4..)?)?;
    Some(Framed { longer: packet.longer - 4, ..packet })
}

/// Linux cooked capture: packet type, ARPHRD type, address length, address (8), protocol.
fn cooked(data: &[u8]) -> Option<Framed<'_>> {
    let head = data.first_chunk::<16>()?;
    let length = u16::from_be_bytes([head[4], head[5]]);
    let ethertype = u16::from_be_bytes([head[14], head[15]]);
    let framed = behind(data, 16, sender(length, &head[6..14]), ethertype);
    Some(Framed { direction: direction(u16::from_be_bytes([head[0], head[1]])), ..framed })
}

/// Its second version: protocol, reserved, interface, ARPHRD type, packet type, address length, address (8).
fn cooked_2(data: &[u8]) -> Option<Framed<'_>> {
    let head = data.first_chunk::<20>()?;
    let ethertype = u16::from_be_bytes([head[0], head[1]]);
    let interface = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
    let framed = behind(data, 20, sender(u16::from(head[11]), &head[12..20]), ethertype);
    Some(Framed { direction: direction(u16::from(head[10])), interface: Some(interface), ..framed })
}

fn sender(length: u16, address: &[u8]) -> [u8; 6] {
    let address = address.first_chunk::<6>().copied().unwrap_or_default();
    if length == 6 { address } else { [0; 6] }
}

/// `PACKET_HOST`, `_BROADCAST`, `_MULTICAST`, `_OTHERHOST` arrive, `_OUTGOING` leaves (`linux/if_packet.h`).
const fn direction(kind: u16) -> Option<Direction> {
    match kind {
        0..=3 => Some(Direction::In),
        4 => Some(Direction::Out),
        _ => None,
    }
}
