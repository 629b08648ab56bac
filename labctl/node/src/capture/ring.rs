//! One interface's packet socket with its ring.
//!
//! Owns: everything that needs `unsafe`: the socket's options, the memory that the kernel shares, and reading
//! packets out of it. Does not own: when to read, when to stop (`capture`).
//!
//! TPACKET_V3: the kernel fills blocks of packets and hands a block over when it is full or when a short time
//! has passed. No unfiltered packet slips in: the socket is made with protocol 0, which receives nothing, and
//! only bound to a protocol once filter and ring are in place.
//!
//! The shared memory is only ever read through raw pointers with every offset checked against the block, and
//! a block is only read between the kernel's hand-over and our hand-back.

use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};

use labctl_wire::Direction;

use super::interface::Interface;
use crate::filter::{Instruction, Program};

/// The kernel hands over a block that is not full after this long.
pub(super) const RETIRE_MS: u32 = 4;
/// Only a unit of accounting in TPACKET_V3; any divisor of the block above the header does.
const FRAME: usize = 2048;
/// `TPACKET_ALIGN(sizeof(struct tpacket3_hdr))`: where the packet's `sockaddr_ll` begins.
const LINK_ADDRESS: usize = size_of::<libc::tpacket3_hdr>().next_multiple_of(16);
/// Bytes of a VLAN tag.
const TAG: usize = 4;
/// Bytes before a VLAN tag: both Ethernet addresses.
const ADDRESSES: usize = 12;

/// A step that the kernel refused.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) step: &'static str,
    pub(super) source: io::Error,
}

/// A packet as it lies in the ring.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub(super) ts_ns: u64,
    pub(super) original_len: u32,
    pub(super) direction: Direction,
    /// A transport checksum that the sending host left to the network card.
    pub(super) checksum_pending: bool,
    /// VLAN tag that the kernel took out of the frame: EtherType and number.
    tag: Option<(u16, u16)>,
    /// Place of the captured bytes in the ring, and how many there are.
    start: usize,
    len: usize,
}

/// Packets since the socket was bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counters {
    /// Passed the filter, dropped ones included.
    pub(super) received: u64,
    /// Passed the filter and found no room.
    pub(super) dropped: u64,
}

/// The block that is being read.
#[derive(Clone, Copy, Debug)]
struct Cursor {
    /// Packets not yet read, the current one included.
    left: u32,
    /// Offset of the current one in the ring.
    at: usize,
}

/// How a ring is made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Bytes of a block: a power of two of at least 128 KiB, so that it holds a 64 KiB segmentation-offload
    /// packet and its header.
    pub(super) block: usize,
    /// How many of them.
    pub(super) blocks: usize,
    /// Bytes kept of a frame; the filter cuts there, too.
    pub(super) snaplen: usize,
    /// Also take what a real network card would leave to other hosts.
    pub(super) promiscuous: bool,
}

/// A bound packet socket and its ring.
#[derive(Debug)]
pub(super) struct Ring {
    socket: OwnedFd,
    memory: Memory,
    /// Bytes of a block, and how many there are.
    block: usize,
    blocks: usize,
    /// Block to read next.
    next: usize,
    cursor: Option<Cursor>,
    /// Packets read.
    delivered: u64,
    counters: Counters,
    /// Frame with its VLAN tag put back.
    retagged: Vec<u8>,
    snaplen: usize,
}

impl Ring {
    /// Begins to capture: after this every packet that passes `program` lies in the ring or is counted.
    pub(super) fn open(
        interface: &Interface,
        program: &Program,
        Shape { block, blocks, snaplen, promiscuous }: Shape,
    ) -> Result<Self, Refused> {
        let socket = socket()?;
        set_option(
            &socket,
            libc::PACKET_VERSION,
            &(libc::tpacket_versions::TPACKET_V3 as libc::c_int),
            "choose TPACKET_V3",
        )?;
        attach(&socket, program.instructions())?;
        let request = libc::tpacket_req3 {
            tp_block_size: block as libc::c_uint,
            tp_block_nr: blocks as libc::c_uint,
            tp_frame_size: FRAME as libc::c_uint,
            tp_frame_nr: (block / FRAME * blocks) as libc::c_uint,
            tp_retire_blk_tov: RETIRE_MS,
            tp_sizeof_priv: 0,
            tp_feature_req_word: 0,
        };
        set_option(&socket, libc::PACKET_RX_RING, &request, "set up the packet ring")?;
        let memory = Memory::map(&socket, block * blocks)?;
        if interface.is_loopback() {
            // Every frame passes the loopback interface twice, as sent and as received: one is enough.
            set_option(&socket, libc::PACKET_IGNORE_OUTGOING, &(1 as libc::c_int), "ignore sent frames")?;
        }
        if promiscuous {
            let membership = libc::packet_mreq {
                mr_ifindex: interface.index as libc::c_int,
                mr_type: libc::PACKET_MR_PROMISC as libc::c_ushort,
                mr_alen: 0,
                mr_address: [0; 8],
            };
            set_option(&socket, libc::PACKET_ADD_MEMBERSHIP, &membership, "turn on promiscuous mode")?;
        }
        bind(&socket, interface.index)?;
        Ok(Self {
            socket,
            memory,
            block,
            blocks,
            next: 0,
            cursor: None,
            delivered: 0,
            counters: Counters::default(),
            retagged: Vec::new(),
            snaplen,
        })
    }

    /// The packet to read next; `None` if the kernel has handed over no more.
    pub(super) fn peek(&mut self) -> Option<Header> {
        loop {
            match self.cursor {
                Some(Cursor { left: 0, .. }) => self.hand_back(),
                Some(Cursor { at, .. }) => return Some(self.header(at)),
                None => self.cursor = Some(self.take_block()?),
            }
        }
    }

    /// The captured bytes of the packet that [`Self::peek`] returned, with its VLAN tag where the wire had it.
    pub(super) fn frame(&mut self, header: &Header) -> &[u8] {
        let frame = self.memory.bytes(header.start, header.len);
        match header.tag {
            Some((ether_type, tag)) if frame.len() >= ADDRESSES => {
                self.retagged.clear();
                self.retagged.extend_from_slice(&frame[..ADDRESSES]);
                self.retagged.extend_from_slice(&ether_type.to_be_bytes());
                self.retagged.extend_from_slice(&tag.to_be_bytes());
                self.retagged.extend_from_slice(&frame[ADDRESSES..]);
                self.retagged.truncate(self.snaplen);
                &self.retagged
            }
            _ => frame,
        }
    }

    /// Steps over the packet that [`Self::peek`] returned.
    pub(super) fn advance(&mut self) {
        let Some(Cursor { left: 1.., at }) = self.cursor else { return };
        let next = self.memory.u32(at + offset_of!(libc::tpacket3_hdr, tp_next_offset)) as usize;
        if let Some(cursor) = &mut self.cursor {
            cursor.left -= 1;
            cursor.at = at + next;
        }
        self.delivered += 1;
    }

    /// Whether every packet that the kernel accepted has been read.
    ///
    /// # Errors
    /// The kernel does not give its counters.
    pub(super) fn is_drained(&mut self) -> io::Result<bool> {
        let Counters { received, dropped } = self.counters()?;
        Ok(self.delivered >= received - dropped)
    }

    /// Accepted packets that never came out of the ring.
    pub(super) fn missing(&self) -> u64 {
        (self.counters.received - self.counters.dropped).saturating_sub(self.delivered)
    }

    /// The kernel's counters since the beginning; it forgets them when it is asked, so they add up here.
    pub(super) fn counters(&mut self) -> io::Result<Counters> {
        let mut stats = libc::tpacket_stats_v3 { tp_packets: 0, tp_drops: 0, tp_freeze_q_cnt: 0 };
        let mut len = size_of::<libc::tpacket_stats_v3>() as libc::socklen_t;
        // SAFETY: `stats` is valid for `len` bytes and the kernel writes no more than that.
        let done = unsafe {
            let out = ptr::from_mut(&mut stats).cast();
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                out,
                &mut len,
            )
        };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
        // For TPACKET_V3 the kernel has already added the drops to the packets.
        self.counters.received += u64::from(stats.tp_packets);
        self.counters.dropped += u64::from(stats.tp_drops);
        Ok(self.counters)
    }

    /// Takes no further packet; what is in the ring stays.
    pub(super) fn silence(&self) -> io::Result<()> {
        /// `BPF_RET | BPF_K`
        const RETURN: u16 = 0x06;
        let nothing = [Instruction { code: RETURN, jt: 0, jf: 0, k: 0 }];
        attach(&self.socket, &nothing).map_err(|refused| refused.source)
    }

    /// The error that the socket waits to report, `ENETDOWN` when the interface went down or away.
    pub(super) fn take_error(&self) -> Option<io::Error> {
        socket2::SockRef::from(&self.socket).take_error().unwrap_or_else(Some)
    }

    /// A block that the kernel has handed over.
    fn take_block(&mut self) -> Option<Cursor> {
        let start = self.next * self.block;
        if self.status(start).load(Ordering::Acquire) & libc::TP_STATUS_USER == 0 {
            return None;
        }
        let head = start + offset_of!(libc::tpacket_block_desc, hdr);
        let packets = self.memory.u32(head + offset_of!(libc::tpacket_hdr_v1, num_pkts));
        let first = self.memory.u32(head + offset_of!(libc::tpacket_hdr_v1, offset_to_first_pkt));
        Some(Cursor { left: packets, at: start + first as usize })
    }

    /// Gives the block that was read back to the kernel.
    fn hand_back(&mut self) {
        self.cursor = None;
        self.status(self.next * self.block).store(libc::TP_STATUS_KERNEL, Ordering::Release);
        self.next = (self.next + 1) % self.blocks;
    }

    fn status(&self, block: usize) -> &AtomicU32 {
        let head = block + offset_of!(libc::tpacket_block_desc, hdr);
        self.memory.atomic(head + offset_of!(libc::tpacket_hdr_v1, block_status))
    }

    fn header(&self, at: usize) -> Header {
        let word = |offset| self.memory.u32(at + offset);
        let variant = offset_of!(libc::tpacket3_hdr, hv1);
        let status = word(offset_of!(libc::tpacket3_hdr, tp_status));
        let seconds = word(offset_of!(libc::tpacket3_hdr, tp_sec));
        let nanos = word(offset_of!(libc::tpacket3_hdr, tp_nsec));
        let tci = word(variant + offset_of!(libc::tpacket_hdr_variant1, tp_vlan_tci)) as u16;
        let tpid = self.memory.u16(at + variant + offset_of!(libc::tpacket_hdr_variant1, tp_vlan_tpid));
        let tag = (status & libc::TP_STATUS_VLAN_VALID != 0).then(|| {
            let known = status & libc::TP_STATUS_VLAN_TPID_VALID != 0;
            (if known { tpid } else { libc::ETH_P_8021Q as u16 }, tci)
        });
        let kind = self.memory.u8(at + LINK_ADDRESS + offset_of!(libc::sockaddr_ll, sll_pkttype));
        let outgoing = kind == libc::PACKET_OUTGOING;
        let added = if tag.is_some() { TAG as u32 } else { 0 };
        Header {
            ts_ns: u64::from(seconds) * 1_000_000_000 + u64::from(nanos),
            original_len: word(offset_of!(libc::tpacket3_hdr, tp_len)).saturating_add(added),
            direction: if outgoing { Direction::Out } else { Direction::In },
            checksum_pending: status & libc::TP_STATUS_CSUMNOTREADY != 0,
            tag,
            start: at + usize::from(self.memory.u16(at + offset_of!(libc::tpacket3_hdr, tp_mac))),
            len: word(offset_of!(libc::tpacket3_hdr, tp_snaplen)) as usize,
        }
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The memory of a ring, unmapped when dropped.
#[derive(Debug)]
struct Memory {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to the process and not to a thread, and `Memory` is its only owner.
unsafe impl Send for Memory {}

impl Memory {
    fn map(socket: &OwnedFd, len: usize) -> Result<Self, Refused> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of this program.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                socket.as_raw_fd(),
                0,
            )
        };
        match NonNull::new(start) {
            Some(start) if start.as_ptr() != libc::MAP_FAILED => Ok(Self { start: start.cast(), len }),
            _ => Err(refused("map the packet ring")),
        }
    }

    /// Pointer to `len` bytes at `offset`.
    ///
    /// # Panics
    /// If they do not lie in the ring: the kernel would have broken its promise, and going on would read
    /// somebody else's memory.
    fn at(&self, offset: usize, len: usize) -> *const u8 {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len), "a packet beyond the ring's end");
        // SAFETY: the assertion above keeps the offset inside the mapping.
        unsafe { self.start.as_ptr().add(offset) }
    }

    fn bytes(&self, offset: usize, len: usize) -> &[u8] {
        // SAFETY: `at` checked the range, the mapping lives as long as `self`, and the kernel does not write
        // to a block between its hand-over and our hand-back, which needs `&mut Ring`.
        unsafe { std::slice::from_raw_parts(self.at(offset, len), len) }
    }

    fn u8(&self, offset: usize) -> u8 {
        self.bytes(offset, 1)[0]
    }

    fn u16(&self, offset: usize) -> u16 {
        let bytes = self.bytes(offset, 2);
        u16::from_ne_bytes([bytes[0], bytes[1]])
    }

    fn u32(&self, offset: usize) -> u32 {
        let bytes = self.bytes(offset, 4);
        u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    fn atomic(&self, offset: usize) -> &AtomicU32 {
        let place = self.at(offset, size_of::<u32>()).cast_mut().cast::<u32>();
        assert!(place.is_aligned(), "a block status that is not aligned");
        // SAFETY: in range and aligned as checked; writable; the kernel, too, accesses this word atomically.
        unsafe { AtomicU32::from_ptr(place) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: this is the mapping that `map` made, and nothing borrows from it any more.
        let _unmapped = unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

fn refused(step: &'static str) -> Refused {
    Refused { step, source: io::Error::last_os_error() }
}

/// A packet socket of protocol 0, which receives nothing yet.
fn socket() -> Result<OwnedFd, Refused> {
    // SAFETY: no memory is passed.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(refused("open a packet socket"));
    }
    // SAFETY: the call above has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn set_option<T>(socket: &OwnedFd, name: libc::c_int, value: &T, step: &'static str) -> Result<(), Refused> {
    set(socket, libc::SOL_PACKET, name, value, step)
}

fn set<T>(
    socket: &OwnedFd,
    level: libc::c_int,
    name: libc::c_int,
    value: &T,
    step: &'static str,
) -> Result<(), Refused> {
    let len = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` is valid for `len` bytes.
    let done = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, ptr::from_ref(value).cast(), len) };
    if done == 0 { Ok(()) } else { Err(refused(step)) }
}

fn attach(socket: &OwnedFd, program: &[Instruction]) -> Result<(), Refused> {
    const { assert!(size_of::<Instruction>() == size_of::<libc::sock_filter>()) };
    let program = libc::sock_fprog {
        len: program.len() as libc::c_ushort,
        // `Instruction` is laid out as `sock_filter`, and the kernel only copies from here.
        filter: program.as_ptr().cast_mut().cast(),
    };
    set(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program, "attach the filter")
}

fn bind(socket: &OwnedFd, index: u32) -> Result<(), Refused> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as libc::c_ushort,
        sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
        sll_ifindex: index as libc::c_int,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: `address` is valid for `len` bytes.
    let done = unsafe { libc::bind(socket.as_raw_fd(), ptr::from_ref(&address).cast(), len) };
    if done == 0 { Ok(()) } else { Err(refused("bind the packet socket")) }
}
