//! Just enough rtnetlink to ask the kernel "would you make a link of this kind?".
//!
//! The provider has a full netlink client; a probe must not depend on it, since it must also answer when
//! that client cannot work.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;

/// A NETLINK_ROUTE socket of the current network namespace.
pub(super) struct Netlink(OwnedFd);

impl Netlink {
    pub(super) fn open() -> io::Result<Self> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            Some(SockProtocol::NetlinkRoute),
        )?;
        Ok(Self(fd))
    }

    /// Creates a link of this kind (`ip link add type KIND`).
    pub(super) fn add_link(&self, kind: &str) -> io::Result<()> {
        // struct ifinfomsg, all zero: any family, the kernel chooses index and name.
        let mut body = vec![0u8; 16];
        attribute(&mut body, libc::IFLA_LINKINFO, &attribute_bytes(libc::IFLA_INFO_KIND, kind.as_bytes()));
        self.request(libc::RTM_NEWLINK, &body)
    }

    /// Adds the clsact qdisc to a link (`tc qdisc add dev IFINDEX clsact`).
    pub(super) fn add_clsact(&self, ifindex: u32) -> io::Result<()> {
        /// `TC_H_CLSACT` and its handle (`linux/pkt_sched.h`).
        const PARENT: u32 = 0xffff_fff1;
        const HANDLE: u32 = 0xffff_0000;
        // struct tcmsg: family and padding, ifindex, handle, parent, info.
        let mut body = vec![0u8; 4];
        for field in [ifindex, HANDLE, PARENT, 0] {
            body.extend(field.to_ne_bytes());
        }
        attribute(&mut body, libc::TCA_KIND, b"clsact\0");
        self.request(libc::RTM_NEWQDISC, &body)
    }

    /// Sends one request that creates something, and waits for the kernel's word.
    fn request(&self, kind: u16, body: &[u8]) -> io::Result<()> {
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let mut message = Vec::with_capacity(HEADER + body.len());
        message.extend(((HEADER + body.len()) as u32).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((flags as u16).to_ne_bytes());
        message.extend([0; 8]);
        message.extend(body);
        send(self.0.as_raw_fd(), &message, MsgFlags::empty())?;
        let mut answer = [0u8; 512];
        let length = recv(self.0.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        acknowledged(&answer[..length])
    }
}

/// An attribute (type, value) at the end of `message`, padded to four bytes.
fn attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    message.extend(attribute_bytes(kind, value));
}

fn attribute_bytes(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = 4 + value.len();
    let mut bytes = Vec::with_capacity(length.next_multiple_of(4));
    bytes.extend((length as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(length.next_multiple_of(4), 0);
    bytes
}

/// Reads an NLMSG_ERROR: its error number is zero for an acknowledgement.
fn acknowledged(answer: &[u8]) -> io::Result<()> {
    let kind = answer.get(4..6).map(|b| u16::from_ne_bytes([b[0], b[1]]));
    let error = answer.get(HEADER..HEADER + 4).map(|b| i32::from_ne_bytes([b[0], b[1], b[2], b[3]]));
    match (kind.map(i32::from), error) {
        (Some(libc::NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(libc::NLMSG_ERROR), Some(error)) => Err(io::Error::from_raw_os_error(-error)),
        _ => Err(io::Error::other("the kernel sent something that is not an acknowledgement")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_to_four_bytes() {
        assert_eq!(attribute_bytes(1, b"veth"), [8, 0, 1, 0, b'v', b'e', b't', b'h']);
        assert_eq!(attribute_bytes(1, b"bridge").len(), 12);
    }

    #[test]
    fn an_error_message_becomes_its_errno() {
        let mut answer = vec![0u8; 36];
        answer[4..6].copy_from_slice(&(libc::NLMSG_ERROR as u16).to_ne_bytes());
        assert!(acknowledged(&answer).is_ok());
        answer[16..20].copy_from_slice(&(-libc::EOPNOTSUPP).to_ne_bytes());
        assert_eq!(acknowledged(&answer).unwrap_err().raw_os_error(), Some(libc::EOPNOTSUPP));
        assert!(acknowledged(&[]).is_err());
    }
}
