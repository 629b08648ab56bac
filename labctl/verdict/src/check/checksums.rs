//! checksums: no packet of an exchange has a wrong IPv4, TCP, UDP or ICMP checksum at any point. One that is left
//! to the NIC is right on a veth with offloads, and wrong where the lab has switched them off. The same in every
//! mode.

use labctl_wire::Direction;
use labctl_wire::packet::{Checksum, Transport};

use crate::context::{Context, Seen};
use crate::findings::Findings;

pub(super) fn check(context: &Context<'_>) -> Findings {
    let mut findings = Findings::default();
    let mut counts = Counts::default();
    for seen in context.seen() {
        counts.packets += 1;
        let name = seen.case.name();
        if seen.ip.checksum == Checksum::Wrong {
            findings.offence(seen.index, format!("{name}: wrong IPv4 header checksum"));
        }
        match transport_checksum(&seen) {
            Some((protocol, Checksum::Wrong)) => {
                findings.offence(seen.index, format!("{name}: wrong {protocol} checksum"));
            }
            Some((protocol, Checksum::Partial)) => {
                counts.partial += 1;
                if context.offloads_off() && seen.direction() == Direction::In {
                    findings.offence(
                        seen.index,
                        format!("{name}: unfinished {protocol} checksum with offloads off"),
                    );
                }
            }
            Some((_, Checksum::Right | Checksum::Absent)) => counts.right += 1,
            Some((_, Checksum::Unknown)) | None => counts.unknown += 1,
        }
    }
    findings.require_all(context);
    if counts.right + counts.partial == 0 {
        findings.doubt("no packet was captured whole, so no transport checksum could be computed");
    }
    let Counts { packets, right, partial, unknown } = counts;
    findings.number("packets", packets);
    findings.number("right", right);
    findings.number("left_to_nic", partial);
    findings.number("not_computable", unknown);
    findings.claim(format!("no wrong checksum in {packets} packets: {right} right, {partial} left to the NIC, {unknown} cut off or fragmented"));
    findings
}

#[derive(Default)]
struct Counts {
    packets: u32,
    right: u32,
    partial: u32,
    unknown: u32,
}

fn transport_checksum(seen: &Seen<'_, '_>) -> Option<(&'static str, Checksum)> {
    match &seen.ip.transport {
        Transport::Tcp(tcp) => Some(("TCP", tcp.checksum)),
        Transport::Udp(udp) => Some(("UDP", udp.checksum)),
        Transport::Icmp(icmp) => Some(("ICMP", icmp.checksum)),
        _ => None,
    }
}
