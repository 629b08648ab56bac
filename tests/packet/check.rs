//! What came out: is every checksum right, and is the frame the expected one? The sums are recomputed with
//! etherparse, which neither the builder nor the datapath uses.

use etherparse::{Icmpv4Slice, Ipv4HeaderSlice, TcpHeaderSlice, UdpHeader, UdpHeaderSlice};

use crate::frame::ETH;

/// Says what is wrong with the first wrong checksum of an Ethernet frame with IPv4: the header's, the
/// transport's, and those inside an ICMP error.
pub(crate) fn wrong_checksum(frame: &[u8]) -> Option<String> {
    if frame.len() < ETH || frame[12..14] != [0x08, 0x00] {
        return Some("it is no plain IPv4 frame".into());
    }
    wrong_in_packet(&frame[ETH..], true)
}

/// As [`wrong_checksum`], from the IPv4 header on; `whole` is false for a quote that was cut.
fn wrong_in_packet(packet: &[u8], whole: bool) -> Option<String> {
    let header = match Ipv4HeaderSlice::from_slice(packet) {
        Ok(header) => header,
        Err(error) => return Some(format!("the IPv4 header is broken: {error}")),
    };
    let (want, got) = (header.to_header().calc_header_checksum(), header.header_checksum());
    if want != got {
        return Some(format!("the IPv4 header checksum is {got:04x}, not {want:04x}"));
    }
    let total = usize::from(header.total_len());
    if total > packet.len() && whole {
        return Some(format!("the total length is {total}, but the packet has {} bytes", packet.len()));
    }
    if total > packet.len() || header.is_fragmenting_payload() {
        return None;
    }
    wrong_transport(&header, &packet[usize::from(header.ihl()) * 4..total])
}

fn wrong_transport(header: &Ipv4HeaderSlice<'_>, transport: &[u8]) -> Option<String> {
    let name = match header.protocol().0 {
        1 => "ICMP",
        6 => "TCP",
        17 => "UDP",
        _ => return None,
    };
    let (want, got) = match header.protocol().0 {
        1 => {
            let icmp = Icmpv4Slice::from_slice(transport).ok()?;
            (icmp.icmp_type().calc_checksum(icmp.payload()), icmp.checksum())
        }
        6 => {
            let tcp = TcpHeaderSlice::from_slice(transport).ok()?;
            let payload = &transport[tcp.slice().len()..];
            (tcp.calc_checksum_ipv4(header, payload).ok()?, tcp.checksum())
        }
        _ => {
            let udp = UdpHeaderSlice::from_slice(transport).ok()?;
            if udp.checksum() == 0 {
                return None;
            }
            let payload = transport.get(8..usize::from(udp.length()))?;
            let (from, to) = (header.source(), header.destination());
            let fresh = UdpHeader { checksum: 0, ..udp.to_header() };
            (fresh.calc_checksum_ipv4_raw(from, to, payload).ok()?, udp.checksum())
        }
    };
    if want != got {
        return Some(format!("the {name} checksum is {got:04x}, not {want:04x}"));
    }
    let quotes = name == "ICMP" && matches!(transport.first(), Some(3 | 11 | 12));
    if quotes {
        return wrong_in_packet(&transport[8..], false).map(|wrong| format!("in the quote, {wrong}"));
    }
    None
}

/// Fails with a sentence unless two frames are the same, byte for byte, and all checksums are right.
#[track_caller]
pub(crate) fn assert_frame(got: &[u8], want: &[u8]) {
    if let Some(wrong) = wrong_checksum(want) {
        panic!("the test expects a broken frame: {wrong}");
    }
    if got == want {
        return;
    }
    let sums = wrong_checksum(got).map_or(String::new(), |wrong| format!("; also, {wrong}"));
    panic!("{}{sums}\n got {}\nwant {}", first_difference(got, want), hex(got), hex(want));
}

/// Names the first field that differs.
fn first_difference(got: &[u8], want: &[u8]) -> String {
    let ihl = |frame: &[u8]| frame.get(ETH).map_or(0, |b| usize::from(b & 0x0f) * 4);
    let (l3, l4) = (ETH, ETH + ihl(want));
    if got.get(..ETH) == want.get(..ETH) && ihl(got) != ihl(want) {
        return format!("the header length is {} bytes, not {}", ihl(got), ihl(want));
    }
    let fields = [
        ("the source", l3 + 12, l3 + 16),
        ("the destination", l3 + 16, l3 + 20),
        ("the options", l3 + 20, l4),
        ("the source port", l4, l4 + 2),
        ("the destination port", l4 + 2, l4 + 4),
        ("the TTL", l3 + 8, l3 + 9),
        ("the total length", l3 + 2, l3 + 4),
        ("the IPv4 header checksum", l3 + 10, l3 + 12),
        ("the Ethernet header", 0, l3),
        ("the IPv4 header", l3, l4),
        ("the transport header or the payload", l4, got.len().max(want.len())),
    ];
    for (name, start, end) in fields {
        let part = |frame: &[u8]| frame.get(start..end.min(frame.len())).unwrap_or(&[]).to_vec();
        if part(got) != part(want) {
            return format!("{name} is {}, not {}", hex(&part(got)), hex(&part(want)));
        }
    }
    "the length differs".into()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" ")
}
