//! One captured packet as one line, in tcpdump's manner.
//!
//! Owns: the rendering. Does not own: where the line goes. `labctl capture` on a terminal prints these, and
//! checks quote them as evidence.

use std::fmt;

use datapath_types::option::WireOrder;

use crate::packet::{Checksum, DsrOption, Frame, Icmp, Ipv4, Network, Tcp, Transport, Udp};
use crate::point::{CapturePoint, Direction};

/// Renders a packet: `10:00:00.123456 worker:eth0 in 172.18.0.1.43210 > 172.18.0.3.32000: tcp [S] seq 1 win
/// 64240 len 0 ttl 64 dsr 172.18.0.3:32000`. The time is UTC. Without `order` a DSR option shows both
/// readings, network order first.
pub fn line(
    ts_ns: u64,
    direction: Direction,
    frame: &Frame,
    point: &CapturePoint,
    order: Option<WireOrder>,
) -> String {
    format!("{} {point} {direction} {}", Clock(ts_ns), Content { frame, order })
}

/// A time of day, UTC, microseconds.
struct Clock(u64);

impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, micros) = (self.0 / 1_000_000_000 % 86_400, self.0 % 1_000_000_000 / 1_000);
        let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        write!(f, "{hour:02}:{minute:02}:{second:02}.{micros:06}")
    }
}

/// A frame without time and place.
struct Content<'a> {
    frame: &'a Frame,
    order: Option<WireOrder>,
}

impl fmt::Display for Content<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.frame.network {
            Network::Ipv4(ip) => self.ipv4(f, ip),
            Network::Arp(arp) if arp.operation == 1 => {
                write!(f, "arp who-has {} tell {}", arp.target, arp.sender)
            }
            Network::Arp(arp) => write!(f, "arp reply {} is-at {}", arp.sender, arp.sender_mac),
            Network::Other(kind) => {
                let Frame { src, dst, original_len, .. } = self.frame;
                write!(f, "{src} > {dst}: ethertype {kind:#06x} len {original_len}")
            }
            Network::Malformed(why) => write!(f, "malformed: {why}, len {}", self.frame.original_len),
        }
    }
}

impl Content<'_> {
    fn ipv4(&self, f: &mut fmt::Formatter<'_>, ip: &Ipv4) -> fmt::Result {
        match &ip.transport {
            Transport::Tcp(tcp) => tcp_line(f, ip, tcp)?,
            Transport::Udp(udp) => udp_line(f, ip, udp)?,
            Transport::Icmp(icmp) => icmp_line(f, ip, icmp)?,
            Transport::LaterFragment => write!(f, "{} > {}: ip proto {}", ip.src, ip.dst, ip.protocol)?,
            Transport::Other(protocol) => write!(f, "{} > {}: ip proto {protocol}", ip.src, ip.dst)?,
            Transport::Cut => write!(f, "{} > {}: ip proto {} cut off", ip.src, ip.dst, ip.protocol)?,
        }
        write!(f, " ttl {}", ip.ttl)?;
        if ip.is_fragment() {
            let more = if ip.more_fragments { "+" } else { "" };
            write!(f, " frag {}@{}{more}", ip.id, ip.fragment_offset)?;
        }
        if let Some(dsr) = &ip.options.dsr {
            self.dsr(f, dsr)?;
        }
        if ip.checksum == Checksum::Wrong {
            f.write_str(" bad-ip-cksum")?;
        }
        Ok(())
    }

    fn dsr(&self, f: &mut fmt::Formatter<'_>, dsr: &DsrOption) -> fmt::Result {
        match self.order {
            Some(order) => write!(f, " dsr {}", dsr.read(order)),
            None => write!(f, " dsr {}|{}", dsr.network, dsr.cilium),
        }
    }
}

fn tcp_line(f: &mut fmt::Formatter<'_>, ip: &Ipv4, tcp: &Tcp) -> fmt::Result {
    write!(f, "{}.{} > {}.{}: tcp [{}]", ip.src, tcp.src_port, ip.dst, tcp.dst_port, tcp.flags)?;
    write!(f, " seq {}", tcp.seq)?;
    if tcp.flags.has(crate::packet::TcpFlags::ACK) {
        write!(f, " ack {}", tcp.ack)?;
    }
    write!(f, " win {} len {}", tcp.window, tcp.payload_len)?;
    checksum(f, tcp.checksum)
}

fn udp_line(f: &mut fmt::Formatter<'_>, ip: &Ipv4, udp: &Udp) -> fmt::Result {
    write!(f, "{}.{} > {}.{}: udp", ip.src, udp.src_port, ip.dst, udp.dst_port)?;
    write!(f, " len {}", udp.payload_len)?;
    checksum(f, udp.checksum)
}

fn icmp_line(f: &mut fmt::Formatter<'_>, ip: &Ipv4, icmp: &Icmp) -> fmt::Result {
    write!(f, "{} > {}: icmp {}", ip.src, ip.dst, icmp_name(icmp.kind, icmp.code))?;
    if icmp.kind != 0 && icmp_name(icmp.kind, icmp.code) == "message" {
        write!(f, " {}/{}", icmp.kind, icmp.code)?;
    }
    if let Some(mtu) = icmp.mtu {
        write!(f, " mtu {mtu}")?;
    }
    if let Some((src, dst)) = icmp.quote.as_ref().and_then(|q| q.sockets()) {
        write!(f, " about {}.{} > {}.{}", src.ip(), src.port(), dst.ip(), dst.port())?;
    }
    checksum(f, icmp.checksum)
}

/// What users know the message by.
const fn icmp_name(kind: u8, code: u8) -> &'static str {
    match (kind, code) {
        (0, 0) => "echo reply",
        (8, 0) => "echo request",
        (3, 0) => "net unreachable",
        (3, 1) => "host unreachable",
        (3, 3) => "port unreachable",
        (3, 4) => "fragmentation needed",
        (3, 13) => "administratively prohibited",
        (5, _) => "redirect",
        (11, 0) => "time exceeded",
        _ => "message",
    }
}

fn checksum(f: &mut fmt::Formatter<'_>, checksum: Checksum) -> fmt::Result {
    f.write_str(if checksum == Checksum::Wrong { " bad-cksum" } else { "" })
}
