//! checksums: no packet of an exchange has a wrong IPv4, TCP, UDP or ICMP checksum at any point. One that is left
//! to the NIC is right on a veth with offloads, and wrong where the lab has switched them off. The same in every
//! mode.

use labctl_wire::Direction;
use labctl_wire::packet::{Checksum, Ipv4, Transport};

use crate::proof::{Findings, Footing};
use crate::story::Story;

pub(super) fn check(story: &Story<'_>) -> Findings {
    let mut findings = Findings::resting(Footing::Seen);
    let mut counts = Counts::default();
    for seen in story.seen() {
        counts.packets += 1;
        let frame = story.evidence.capture.frame(seen.index);
        let Some(ip) = frame.ipv4() else { continue };
        let name = || seen.case.name();
        if ip.checksum == Checksum::Wrong {
            findings.offence(seen.index, format!("{}: wrong IPv4 header checksum", name()));
        }
        match of_transport(ip) {
            Some((protocol, Checksum::Wrong)) => {
                findings.offence(seen.index, format!("{}: wrong {protocol} checksum", name()));
            }
            Some((protocol, Checksum::Partial)) => {
                counts.partial += 1;
                if story.offloads_off() && seen.direction == Direction::In {
                    let why = format!("{}: unfinished {protocol} checksum with offloads off", name());
                    findings.offence(seen.index, why);
                }
            }
            Some((_, Checksum::Right | Checksum::Absent)) => counts.right += 1,
            Some((_, Checksum::Unknown)) | None => counts.unknown += 1,
        }
    }
    let Counts { packets, right, partial, unknown } = counts;
    findings.number("packets", packets);
    findings.number("right", right);
    findings.number("left_to_nic", partial);
    findings.number("not_computable", unknown);
    let text = format!(
        "no wrong checksum in {packets} packets: {right} right, {partial} left to the NIC, {unknown} cut off or fragmented"
    );
    findings.state(right + partial, "packet whose transport checksum can be computed", text);
    findings
}

#[derive(Default)]
struct Counts {
    packets: u64,
    right: u64,
    partial: u64,
    unknown: u64,
}

fn of_transport(ip: &Ipv4) -> Option<(&'static str, Checksum)> {
    match &ip.transport {
        Transport::Tcp(tcp) => Some(("TCP", tcp.checksum)),
        Transport::Udp(udp) => Some(("UDP", udp.checksum)),
        Transport::Icmp(icmp) => Some(("ICMP", icmp.checksum)),
        _ => None,
    }
}
