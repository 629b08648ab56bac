//! One datagram and its reply.
//!
//! Owns: sending, and waiting for the reply from exactly the frontend that was asked. Does not own: the
//! deadline (`fetch`) or the lines (`dialogue`). The socket is connected, so a reply that comes from a pod's
//! own address is not accepted, as no real client would accept it, and ICMP errors surface as failures.

use std::time::Instant;

use socket2::Type;
use tokio::net::UdpSocket;

use super::Request;
use super::progress::{Progress, Trouble, connecting_socket};
use crate::dialogue::{DatagramReply, DatagramRequest, MAX_DATAGRAM};

pub(super) async fn ask(request: &Request, progress: &Progress) -> Result<(), Trouble> {
    progress.wait_for("datagram");
    let socket = connecting_socket(request, Type::DGRAM, progress)?;
    let socket =
        UdpSocket::from_std(socket.into()).map_err(Trouble::io("cannot hand udp to the event loop"))?;
    let datagram = encode(request);
    let sent = Instant::now();
    socket.send(&datagram).await.map_err(Trouble::io("cannot send the datagram"))?;
    let reply = receive(&socket, request, progress, sent).await?;
    judge(&reply, request, datagram.len(), progress)
}

fn encode(request: &Request) -> Vec<u8> {
    // The sizes were checked against the largest datagram before anything was sent.
    let size = |bytes: u64| usize::try_from(bytes).unwrap_or(MAX_DATAGRAM).min(MAX_DATAGRAM);
    DatagramRequest { id: request.id, reply_bytes: size(request.response_bytes) as u32, seed: request.seed() }
        .encode(size(request.upload_bytes))
}

/// The reply to this request; a late reply to an earlier one from the same port is passed over.
async fn receive(
    socket: &UdpSocket,
    request: &Request,
    progress: &Progress,
    sent: Instant,
) -> Result<Vec<u8>, Trouble> {
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        let len = socket.recv(&mut buffer).await.map_err(Trouble::io("no reply"))?;
        let stale =
            DatagramReply::decode(&buffer[..len], request.seed()).is_some_and(|(r, _)| r.id != request.id);
        if !stale {
            progress.set_first_byte(sent.elapsed());
            progress.add_received(len);
            buffer.truncate(len);
            return Ok(buffer);
        }
    }
}

fn judge(reply: &[u8], request: &Request, sent: usize, progress: &Progress) -> Result<(), Trouble> {
    let corrupt = |detail: String| Err(Trouble::Corrupt(detail));
    let Some((head, wrong_at)) = DatagramReply::decode(reply, request.seed()) else {
        return corrupt("the reply does not come from a labctl backend".into());
    };
    progress.set_served_by(Some(head.served_by));
    if let Some(offset) = wrong_at {
        return corrupt(format!("the reply datagram differs at byte {offset}"));
    }
    if let Some(offset) = head.wrong_at {
        return corrupt(format!("the backend saw a wrong byte at {offset} of the request datagram"));
    }
    if head.received != sent as u64 {
        return corrupt(format!("the backend received {} bytes instead of {sent}", head.received));
    }
    let line = reply.iter().position(|b| *b == b'\n').map_or(reply.len(), |i| i + 1) as u64;
    let asked = request.response_bytes.max(line);
    if reply.len() as u64 != asked {
        return corrupt(format!("the reply datagram has {} bytes instead of {asked}", reply.len()));
    }
    Ok(())
}
