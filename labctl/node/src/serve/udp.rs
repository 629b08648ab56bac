//! The backend's UDP side.
//!
//! Owns: receiving datagrams with the address that was asked, and replying from that very address. Does
//! not own: the lines themselves (`dialogue`).
//!
//! A hostNetwork backend bound to 0.0.0.0 on a host with several addresses would otherwise reply from
//! whatever address the route prefers, and the client's connected socket would not take it.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::AsRawFd;
use std::rc::Rc;

use labctl_wire::ServedBy;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::Identity;
use crate::dialogue::{DatagramReply, DatagramRequest, MAX_DATAGRAM};

/// A received datagram's envelope.
struct Envelope {
    len: usize,
    peer: SocketAddrV4,
    /// Address that the peer asked.
    asked: Ipv4Addr,
}

/// Answers for ever.
pub(super) async fn serve(socket: UdpSocket, identity: Rc<Identity>) {
    let port = match socket.local_addr() {
        Ok(SocketAddr::V4(local)) => local.port(),
        _ => return,
    };
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        let received = socket.async_io(Interest::READABLE, || receive(&socket, &mut buffer)).await;
        // An error belongs to an earlier reply (a port that closed): the next datagram is unaffected.
        let Ok(Some(envelope)) = received else { continue };
        let Some(reply) = reply(&buffer[..envelope.len], &envelope, port, &identity) else { continue };
        identity.activity.asked();
        // A reply that cannot be sent is a lost datagram; the client's deadline reports it.
        let _lost = socket.async_io(Interest::WRITABLE, || send(&socket, &reply, &envelope)).await;
    }
}

fn reply(datagram: &[u8], envelope: &Envelope, port: u16, identity: &Identity) -> Option<Vec<u8>> {
    let (request, wrong_at) = DatagramRequest::decode(datagram)?;
    let served_by = ServedBy {
        node: identity.node.clone(),
        pod: identity.pod.clone(),
        peer: envelope.peer,
        local: SocketAddrV4::new(envelope.asked, port),
    };
    let reply = DatagramReply { id: request.id, served_by, received: datagram.len() as u64, wrong_at };
    Some(reply.encode(request.seed, request.reply_bytes as usize))
}

/// One datagram; `None` if the kernel said not which address was asked.
fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<Option<Envelope>> {
    let mut control = nix::cmsg_space!(libc::in_pktinfo);
    let mut parts = [IoSliceMut::new(buffer)];
    let message =
        recvmsg::<SockaddrIn>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::MSG_DONTWAIT)?;
    let asked = message.cmsgs()?.find_map(|c| match c {
        ControlMessageOwned::Ipv4PacketInfo(info) => Some(info.ipi_addr),
        _ => None,
    });
    let (Some(peer), Some(asked)) = (message.address, asked) else { return Ok(None) };
    let asked = Ipv4Addr::from(u32::from_be(asked.s_addr));
    Ok(Some(Envelope { len: message.bytes, peer: peer.into(), asked }))
}

fn send(socket: &UdpSocket, reply: &[u8], envelope: &Envelope) -> io::Result<usize> {
    // Interface 0: the routing table chooses it, as for any reply.
    let source = libc::in_pktinfo {
        ipi_ifindex: 0,
        ipi_spec_dst: libc::in_addr { s_addr: u32::from(envelope.asked).to_be() },
        ipi_addr: libc::in_addr { s_addr: 0 },
    };
    let sent = sendmsg(
        socket.as_raw_fd(),
        &[IoSlice::new(reply)],
        &[ControlMessage::Ipv4PacketInfo(&source)],
        MsgFlags::MSG_DONTWAIT,
        Some(&SockaddrIn::from(envelope.peer)),
    )?;
    Ok(sent)
}
