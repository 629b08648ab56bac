//! Packets that travel inside others between the nodes.
//!
//! Owns: taking the outer packet away, so that one and the same packet is known again before and inside a tunnel, and saying
//! which tunnels there were. Does not own: any judgement of them. Only IPv4 in IPv4 and in UDP over IPv4: RFC 2003, VXLAN (RFC
//! 7348), Geneve (RFC 8926), GUE (draft-ietf-intarea-gue, variants 0 and 1).

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};

use labctl_wire::CaptureFile;
use labctl_wire::packet::{Frame, Transport};

use crate::words::plural;

/// A tunnel in a tunnel is still taken apart; more is no network but an attack on the reader.
const DEEPEST: usize = 2;

const IP_IN_IP: u8 = 4;
const ETHERTYPE_IPV4: u16 = 0x0800;
/// Transparent Ethernet bridging.
const ETHERTYPE_ETHERNET: u16 = 0x6558;

/// Cilium's Geneve option: class, and type with the critical bit (`bpf/lib/tunnel.h`).
const CILIUM_CLASS: u16 = 0x014b;
const CILIUM_DSR: u8 = 0x81;

/// What a tunnel carried.
#[derive(Debug)]
struct Inside<'p> {
    kind: &'static str,
    /// The inner IPv4 packet, as far as it was captured.
    packet: &'p [u8],
    /// The frontend that an option of the tunnel names.
    frontend: Option<SocketAddrV4>,
}

/// Replaces each tunnelled packet by what it carries.
pub(super) fn take_apart(capture: &mut CaptureFile, notes: &mut Vec<String>) {
    let mut tunnels: BTreeMap<(&'static str, Ipv4Addr, Ipv4Addr), (usize, Option<SocketAddrV4>)> =
        BTreeMap::new();
    for packet in 0..capture.packets().len() {
        for _ in 0..DEEPEST {
            let frame = capture.headers(packet);
            let (Some(ip), Some(inside)) = (frame.ipv4(), inside(capture.data(packet), &frame)) else {
                break;
            };
            let (count, frontend) = tunnels.entry((inside.kind, ip.src, ip.dst)).or_default();
            *count += 1;
            *frontend = frontend.or(inside.frontend);
            let mut bytes = capture.data(packet)[..12].to_vec();
            bytes.extend(ETHERTYPE_IPV4.to_be_bytes());
            bytes.extend(inside.packet);
            capture.replace(packet, &bytes);
        }
    }
    for ((kind, from, to), (count, frontend)) in tunnels {
        let names =
            frontend.map_or_else(String::new, |socket| format!(", with an option that names {socket}"));
        let count = plural(count, "packet");
        notes.push(format!("{count} in {kind} from {from} to {to}{names}: judged by what they carry"));
    }
}

fn inside<'p>(data: &'p [u8], frame: &Frame) -> Option<Inside<'p>> {
    let ip = frame.ipv4()?;
    let at = frame.header_len + ip.header_len;
    match &ip.transport {
        Transport::Other(IP_IN_IP) => {
            Some(Inside { kind: "IPIP", packet: ipv4(data.get(at..)?)?, frontend: None })
        }
        Transport::Udp(udp) => {
            let payload = data.get(udp.payload.clone())?;
            match udp.dst_port {
                4789 | 8472 => vxlan(payload),
                6081 => geneve(payload),
                6080 | 19_523 => gue(payload),
                _ => None,
            }
        }
        _ => None,
    }
}

/// The packet, if it is one of IPv4.
fn ipv4(data: &[u8]) -> Option<&[u8]> {
    (data.len() >= 20 && data[0] >> 4 == 4).then_some(data)
}

/// The IPv4 packet of an Ethernet frame.
fn framed(data: &[u8]) -> Option<&[u8]> {
    let (head, rest) = data.split_first_chunk::<14>()?;
    (u16::from_be_bytes([head[12], head[13]]) == ETHERTYPE_IPV4).then(|| ipv4(rest))?
}

fn vxlan(payload: &[u8]) -> Option<Inside<'_>> {
    let (head, rest) = payload.split_first_chunk::<8>()?;
    // The flag that the network's number is valid.
    let packet = if head[0] & 0x08 != 0 { framed(rest)? } else { return None };
    Some(Inside { kind: "VXLAN", packet, frontend: None })
}

fn geneve(payload: &[u8]) -> Option<Inside<'_>> {
    let (head, rest) = payload.split_first_chunk::<8>()?;
    // Version 0; the length of the options is in words.
    let length = usize::from(head[0] & 0x3f) * 4;
    let (options, rest) = (rest.get(..length)?, rest.get(length..)?);
    let packet = match (head[0] >> 6, u16::from_be_bytes([head[2], head[3]])) {
        (0, ETHERTYPE_IPV4) => ipv4(rest)?,
        (0, ETHERTYPE_ETHERNET) => framed(rest)?,
        _ => return None,
    };
    Some(Inside { kind: "Geneve", packet, frontend: cilium_frontend(options) })
}

/// Cilium's option: address, port, padding, in network order.
fn cilium_frontend(mut options: &[u8]) -> Option<SocketAddrV4> {
    loop {
        let (head, rest) = options.split_first_chunk::<4>()?;
        let value = rest.get(..usize::from(head[3] & 0x1f) * 4)?;
        if (u16::from_be_bytes([head[0], head[1]]), head[2]) == (CILIUM_CLASS, CILIUM_DSR) {
            let [a, b, c, d, high, low, ..] = *value else { return None };
            return Some(SocketAddrV4::new(Ipv4Addr::new(a, b, c, d), u16::from_be_bytes([high, low])));
        }
        options = &rest[value.len()..];
    }
}

/// Variant 0: header length in words, protocol number; variant 1: the packet itself.
fn gue(payload: &[u8]) -> Option<Inside<'_>> {
    let packet = match payload.first()? >> 6 {
        0 => {
            let (head, rest) = payload.split_first_chunk::<4>()?;
            let is_data = head[0] & 0x20 == 0 && head[1] == IP_IN_IP;
            ipv4(rest.get(usize::from(head[0] & 0x1f) * 4..)?).filter(|_| is_data)?
        }
        1 => ipv4(payload)?,
        _ => return None,
    };
    Some(Inside { kind: "GUE", packet, frontend: None })
}
