//! rtnetlink in blocking batches: many requests in one `sendmsg`, then their acknowledgements.
//!
//! Owns: the sockets, sequence numbers, acknowledgements with the kernel's extended error text, the few fields
//! that we read from dumps. Does not own: what is asked.
//!
//! The kernel works a request off inside `sendmsg` and in the order of the buffer, so a batch costs one system
//! call and needs no event loop. Messages are built by the rtnetlink crate; answers are read attribute by
//! attribute, because a lab must come up on a kernel with attributes that the crate does not know yet.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::TimeVal;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NlasIterator,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::neighbour::NeighbourMessage;
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::packet_route::tc::TcMessage;
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use crate::host::MacAddress;

/// The kernel answers inside `sendmsg`; this only ends a wait that a kernel bug would make endless.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
/// Larger than any answer: a dump fills at most 32 KiB a message (`netlink_dump` in the kernel).
const BUFFER: usize = 64 << 10;
/// Multicast group of link events (`RTMGRP_LINK`).
const LINK_GROUP: u32 = 1;

// Message types, flags and attributes from linux/netlink.h, rtnetlink.h, if_link.h and if_addr.h.
const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const FLAG_CAPPED: u16 = 0x100;
const FLAG_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;
const IFINFOMSG: usize = 16;
const IFADDRMSG: usize = 8;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_OPERSTATE: u16 = 16;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_XDP: u16 = 43;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_XDP_PROG_ID: u16 = 4;
const RTM_NEWNEIGH: u16 = 28;
const NDMSG: usize = 12;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const RTM_NEWTFILTER: u16 = 44;
const TCMSG: usize = 20;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_ID: u16 = 11;
/// Parents of filters at the clsact qdisc's hooks: `TC_H_CLSACT` with `TC_H_MIN_INGRESS` and `TC_H_MIN_EGRESS`.
const CLSACT_INGRESS: u32 = 0xffff_fff2;
const CLSACT_EGRESS: u32 = 0xffff_fff3;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_BRPORT_STATE: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IF_OPER_UP: u8 = 6;
const BR_STATE_FORWARDING: u8 = 3;
/// Nested attributes carry this bit beside their type (`NLA_F_NESTED`).
const NESTED: u16 = 0x8000;

/// A request that the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("{action} {interface}: {source}{}{}", said(kernel), hint(source))]
pub struct NetlinkError {
    /// What was asked: `create veth`.
    pub action: &'static str,
    /// Of which interface.
    pub interface: String,
    /// The error number.
    pub source: io::Error,
    /// The kernel's own explanation, where it gives one.
    pub kernel: Option<String>,
}

fn said(kernel: &Option<String>) -> String {
    kernel.as_ref().map(|text| format!(" (kernel: {text})")).unwrap_or_default()
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => "; the kernel lacks the driver: modprobe veth bridge",
        Some(libc::EPERM) => "; run as root",
        _ => "",
    }
}

/// One thing to ask, with the words for its error.
pub(super) struct Request {
    action: &'static str,
    interface: String,
    payload: RouteNetlinkMessage,
    flags: u16,
}

impl Request {
    pub(super) fn new_link(action: &'static str, interface: &str, link: LinkMessage) -> Self {
        Self::new(action, interface, RouteNetlinkMessage::NewLink(link), NLM_F_CREATE | NLM_F_EXCL)
    }

    pub(super) fn set_link(action: &'static str, interface: &str, link: LinkMessage) -> Self {
        Self::new(action, interface, RouteNetlinkMessage::SetLink(link), 0)
    }

    pub(super) fn add_address(interface: &str, address: AddressMessage) -> Self {
        let payload = RouteNetlinkMessage::NewAddress(address);
        Self::new("add the address of", interface, payload, NLM_F_CREATE | NLM_F_EXCL)
    }

    pub(super) fn add_route(interface: &str, route: RouteMessage) -> Self {
        let payload = RouteNetlinkMessage::NewRoute(route);
        Self::new("add a route by", interface, payload, NLM_F_CREATE | NLM_F_EXCL)
    }

    fn new(action: &'static str, interface: &str, payload: RouteNetlinkMessage, flags: u16) -> Self {
        Self { action, interface: interface.to_owned(), payload, flags: NLM_F_REQUEST | flags }
    }

    fn failed(&self, source: io::Error, kernel: Option<String>) -> NetlinkError {
        NetlinkError { action: self.action, interface: self.interface.clone(), source, kernel }
    }

    fn append(&self, buffer: &mut Vec<u8>, sequence: u32, flags: u16) {
        let mut header = NetlinkHeader::default();
        header.sequence_number = sequence;
        header.flags = self.flags | flags;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(self.payload.clone()));
        message.finalize();
        let start = buffer.len();
        buffer.resize(start + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut buffer[start..]);
    }
}

/// A link as the kernel reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) up: bool,
    /// Carrier found and queue active: packets pass.
    pub(crate) running: bool,
    /// The bridge forwards by this port; `None` if it is no port.
    pub(crate) forwarding: Option<bool>,
    pub(crate) mac: Option<MacAddress>,
    pub(crate) mtu: u32,
    /// Index of the other end of a veth pair, in the other end's namespace.
    pub(crate) peer: Option<u32>,
    pub(crate) alias: Option<String>,
    /// Index of the bridge or bond that it is a port of.
    pub(crate) master: Option<u32>,
    /// `veth`, `bridge`, `vxlan`; `None` for a device without such a kind.
    pub(crate) kind: Option<String>,
    /// Number of the XDP program that sees its frames first.
    pub(crate) xdp: Option<u32>,
}

/// A neighbour entry for an IPv4 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Neighbour {
    pub(crate) index: u32,
    pub(crate) address: Ipv4Addr,
    pub(crate) mac: MacAddress,
}

/// A program that a clsact filter runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Filter {
    pub(crate) index: u32,
    pub(crate) is_ingress: bool,
    pub(crate) id: u32,
    pub(crate) name: String,
}

/// An rtnetlink socket in the namespace of the thread that opened it.
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Opens a socket in the calling thread's namespace.
    pub(crate) fn open() -> Result<Self, NetlinkError> {
        let socket = open_socket(0).map_err(|source| socket_failed("open", source))?;
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(BUFFER) })
    }

    /// Sends all requests at once and waits for every acknowledgement. The kernel works off what follows
    /// a refused request too.
    ///
    /// # Errors
    /// The first request that was refused.
    pub(super) fn batch(&mut self, requests: Vec<Request>) -> Result<(), NetlinkError> {
        let first = self.sequence + 1;
        let mut bytes = Vec::with_capacity(requests.len() * 256);
        for request in &requests {
            self.sequence += 1;
            request.append(&mut bytes, self.sequence, NLM_F_ACK);
        }
        let Some(opening) = requests.first() else { return Ok(()) };
        self.socket.send(&bytes, 0).map_err(|source| opening.failed(source, None))?;
        let mut refused: Option<NetlinkError> = None;
        let mut missing = requests.len();
        while missing > 0 {
            let answers = self.receive().map_err(|source| opening.failed(source, None))?;
            for answer in Messages(answers) {
                let Some(request) = answer.sequence.checked_sub(first).and_then(|i| requests.get(i as usize))
                else {
                    continue;
                };
                if answer.kind != NLMSG_ERROR {
                    continue;
                }
                missing -= 1;
                if let Some((errno, text)) = answer.refusal() {
                    refused.get_or_insert_with(|| request.failed(io::Error::from_raw_os_error(errno), text));
                }
            }
        }
        refused.map_or(Ok(()), Err)
    }

    /// Every link of the namespace.
    pub(crate) fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let request = Request::new("list", "links", RouteNetlinkMessage::GetLink(LinkMessage::default()), 0);
        self.dump(&request, RTM_NEWLINK, parse_link)
    }

    /// Every IPv4 address of the namespace: link index, address, prefix length.
    pub(crate) fn addresses(&mut self) -> Result<Vec<(u32, Ipv4Addr, u8)>, NetlinkError> {
        let payload = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        self.dump(&Request::new("list", "addresses", payload, 0), RTM_NEWADDR, parse_address)
    }

    /// Every neighbour entry for an IPv4 address that has an Ethernet address.
    pub(crate) fn neighbours(&mut self) -> Result<Vec<Neighbour>, NetlinkError> {
        let payload = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
        self.dump(&Request::new("list", "neighbours", payload, 0), RTM_NEWNEIGH, parse_neighbour)
    }

    /// The programs that clsact filters of a link run.
    pub(crate) fn filters(&mut self, index: u32) -> Result<Vec<Filter>, NetlinkError> {
        let mut found = Vec::new();
        for parent in [CLSACT_INGRESS, CLSACT_EGRESS] {
            let mut message = TcMessage::default();
            message.header.index = index as i32;
            message.header.parent = parent.into();
            let payload = RouteNetlinkMessage::GetTrafficFilter(message);
            found.extend(self.dump(
                &Request::new("list", "filters", payload, 0),
                RTM_NEWTFILTER,
                parse_filter,
            )?);
        }
        Ok(found)
    }

    fn dump<T>(
        &mut self,
        request: &Request,
        kind: u16,
        parse: fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        self.sequence += 1;
        let sequence = self.sequence;
        let mut bytes = Vec::new();
        request.append(&mut bytes, sequence, NLM_F_DUMP);
        self.socket.send(&bytes, 0).map_err(|source| request.failed(source, None))?;
        let mut found = Vec::new();
        loop {
            let answers = self.receive().map_err(|source| request.failed(source, None))?;
            for answer in Messages(answers).filter(|a| a.sequence == sequence) {
                match answer.kind {
                    NLMSG_DONE => return Ok(found),
                    NLMSG_ERROR => {
                        let (errno, text) = answer.refusal().unwrap_or((libc::EIO, None));
                        return Err(request.failed(io::Error::from_raw_os_error(errno), text));
                    }
                    k if k == kind => found.extend(parse(answer.body)),
                    _ => {}
                }
            }
        }
    }

    fn receive(&mut self) -> io::Result<&[u8]> {
        self.buffer.clear();
        self.socket.recv(&mut self.buffer, 0)?;
        Ok(&self.buffer)
    }
}

/// Link events of one namespace, kept by the kernel from the moment of opening.
pub(super) struct LinkWatch(Socket);

impl LinkWatch {
    /// Opens a socket in the calling thread's namespace.
    pub(super) fn open() -> Result<Self, NetlinkError> {
        let open = || {
            let socket = open_socket(LINK_GROUP)?;
            socket.set_non_blocking(true)?;
            Ok(socket)
        };
        open().map(Self).map_err(|source| socket_failed("watch", source))
    }

    /// Forgets all events so far. What they said is asked anew by a dump, so a lost one does no harm.
    pub(super) fn drain(&self) {
        let mut buffer = Vec::with_capacity(BUFFER);
        loop {
            buffer.clear();
            match self.0.recv(&mut buffer, 0) {
                Ok(_) => {}
                // The queue ran over: there is more behind it.
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(_) => return,
            }
        }
    }
}

impl AsFd for LinkWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn open_socket(groups: u32) -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind(&SocketAddr::new(0, groups))?;
    // Kernels before 4.12 know neither; errors then come without text.
    let _ = socket.set_ext_ack(true);
    let _ = socket.set_cap_ack(true);
    let deadline = TimeVal::new(ANSWER_DEADLINE.as_secs() as libc::time_t, 0);
    setsockopt(&socket, ReceiveTimeout, &deadline)?;
    Ok(socket)
}

fn socket_failed(action: &'static str, source: io::Error) -> NetlinkError {
    NetlinkError { action, interface: "netlink socket".into(), source, kernel: None }
}

/// One message of an answer.
struct Answer<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: &'a [u8],
}

impl Answer<'_> {
    /// Error number and text; `None` for an acknowledgement.
    fn refusal(&self) -> Option<(i32, Option<String>)> {
        let errno = -i32::from_ne_bytes(*self.body.first_chunk()?);
        (errno != 0).then(|| (errno, self.text()))
    }

    /// The extended acknowledgement's words: attributes after the error number and our own message,
    /// which is cut to its header if the capped flag says so.
    fn text(&self) -> Option<String> {
        if self.flags & FLAG_ACK_TLVS == 0 {
            return None;
        }
        let ours = self.body.get(4..)?;
        let len = if self.flags & FLAG_CAPPED != 0 { HEADER } else { u32_at(ours, 0)? as usize };
        attributes(ours.get(len.next_multiple_of(4)..)?)
            .find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG)
            .map(|(_, text)| string(text))
    }
}

/// Cuts a buffer into messages; stops at the first that does not fit.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Answer<'a>;

    fn next(&mut self) -> Option<Answer<'a>> {
        let len = u32_at(self.0, 0)? as usize;
        let message = self.0.get(..len).filter(|m| m.len() >= HEADER)?;
        let answer = Answer {
            kind: u16::from_ne_bytes([message[4], message[5]]),
            flags: u16::from_ne_bytes([message[6], message[7]]),
            sequence: u32_at(message, 8)?,
            body: &message[HEADER..],
        };
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(answer)
    }
}

fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(bytes).map_while(Result::ok).map(|nla| {
        let value = nla.into_inner();
        let len = usize::from(u16::from_ne_bytes([value[0], value[1]]));
        (u16::from_ne_bytes([value[2], value[3]]) & !NESTED, &value[4..len])
    })
}

fn parse_link(body: &[u8]) -> Option<Link> {
    let mut link = Link {
        index: u32_at(body, 4)?,
        name: String::new(),
        up: u32_at(body, 8)? & libc::IFF_UP as u32 != 0,
        running: false,
        forwarding: None,
        mac: None,
        mtu: 0,
        peer: None,
        alias: None,
        master: None,
        kind: None,
        xdp: None,
    };
    for (kind, value) in attributes(body.get(IFINFOMSG..)?) {
        match kind {
            IFLA_IFNAME => link.name = string(value),
            IFLA_ADDRESS => link.mac = value.try_into().ok().map(MacAddress),
            IFLA_MTU => link.mtu = u32_at(value, 0)?,
            IFLA_LINK => link.peer = u32_at(value, 0),
            IFLA_OPERSTATE => link.running = value.first() == Some(&IF_OPER_UP),
            IFLA_IFALIAS => link.alias = Some(string(value)),
            IFLA_LINKINFO => {
                link.forwarding = port_forwards(value);
                link.kind = attribute(value, IFLA_INFO_KIND).map(string);
            }
            IFLA_MASTER => link.master = u32_at(value, 0),
            IFLA_XDP => link.xdp = attribute(value, IFLA_XDP_PROG_ID).and_then(|id| u32_at(id, 0)),
            _ => {}
        }
    }
    Some(link)
}

/// The value of one attribute.
fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

fn parse_neighbour(body: &[u8]) -> Option<Neighbour> {
    if i32::from(*body.first()?) != libc::AF_INET {
        return None;
    }
    let rest = body.get(NDMSG..)?;
    Some(Neighbour {
        index: u32_at(body, 4)?,
        address: Ipv4Addr::from(<[u8; 4]>::try_from(attribute(rest, NDA_DST)?).ok()?),
        mac: MacAddress(attribute(rest, NDA_LLADDR)?.try_into().ok()?),
    })
}

fn parse_filter(body: &[u8]) -> Option<Filter> {
    let rest = body.get(TCMSG..)?;
    if attribute(rest, TCA_KIND).map(string).as_deref() != Some("bpf") {
        return None;
    }
    let options = attribute(rest, TCA_OPTIONS)?;
    Some(Filter {
        index: u32_at(body, 4)?,
        is_ingress: u32_at(body, 12)? == CLSACT_INGRESS,
        id: u32_at(attribute(options, TCA_BPF_ID)?, 0)?,
        name: attribute(options, TCA_BPF_NAME).map(string).unwrap_or_default(),
    })
}

fn port_forwards(link_info: &[u8]) -> Option<bool> {
    let data = attribute(link_info, IFLA_INFO_SLAVE_DATA)?;
    let state = attribute(data, IFLA_BRPORT_STATE)?;
    Some(state.first() == Some(&BR_STATE_FORWARDING))
}

fn parse_address(body: &[u8]) -> Option<(u32, Ipv4Addr, u8)> {
    if i32::from(*body.first()?) != libc::AF_INET {
        return None;
    }
    let (_, value) = attributes(body.get(IFADDRMSG..)?).find(|(kind, _)| *kind == IFA_LOCAL)?;
    Some((u32_at(body, 4)?, Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?), body[1]))
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().map(|b| u32::from_ne_bytes(*b))
}

fn string(value: &[u8]) -> String {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extended_error_text_is_read() {
        // nlmsghdr, error -17, our own header (capped), attribute 1 "taken".
        let mut bytes = Vec::new();
        bytes.extend(48u32.to_ne_bytes());
        bytes.extend(NLMSG_ERROR.to_ne_bytes());
        bytes.extend((FLAG_CAPPED | FLAG_ACK_TLVS).to_ne_bytes());
        bytes.extend(7u32.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend((-17i32).to_ne_bytes());
        bytes.extend([0; 16]);
        bytes.extend(10u16.to_ne_bytes());
        bytes.extend(1u16.to_ne_bytes());
        bytes.extend(b"taken\0\0\0");
        let answer = Messages(&bytes).next().expect("one message");
        assert_eq!(answer.sequence, 7);
        assert_eq!(answer.refusal(), Some((17, Some("taken".to_owned()))));
    }

    #[test]
    fn truncated_answers_end_the_walk() {
        assert!(Messages(&[]).next().is_none());
        assert!(Messages(&[200, 0, 0, 0, 2, 0, 0, 0]).next().is_none());
        assert!(Messages(&[4, 0, 0, 0, 2, 0, 0, 0]).next().is_none());
        assert_eq!(parse_link(&[0; 7]), None);
    }
}
