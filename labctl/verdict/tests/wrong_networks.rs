//! Networks that are wrong in ways that nobody thinks of, each with the check that must notice, and healthy ones that look
//! odd.

#[expect(dead_code, reason = "this binary needs only part of the lab")]
mod lab;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use lab::build::{ACK, Body, Packet, RST, Sum};
use lab::{CLIENT, HOME, INGRESS, POD, Paper, Step, What, count, ip, link, mac_of, plan, vip};
use labctl_model::{Affinity, ExpectedStatus, Mode};
use labctl_verdict::{Evidence, Status, Verdict, judge};
use labctl_wire::Direction::{In, Out};

const MODES: [Mode; 4] = [Mode::Dsr, Mode::Snat, Mode::Hybrid, Mode::Local];

/// The checks that fail.
fn failed(evidence: &Evidence) -> BTreeSet<&'static str> {
    let judgement = judge(evidence);
    judgement.checks.iter().filter(|c| c.status == Status::Fail).map(|c| c.name).collect()
}

fn spoiled(mode: Mode, change: impl FnMut(&mut Step)) -> Evidence {
    Paper::new(plan(mode)).spoil(change).run()
}

/// The addresses of all interfaces known, as live captures know them.
fn known(mut evidence: Evidence) -> Evidence {
    let addresses = Paper::new(plan(evidence.plan.mode)).run().capture.link_addresses();
    evidence.capture.points.iter_mut().zip(addresses).for_each(|(info, mac)| info.mac = mac);
    evidence
}

#[test]
fn a_frame_that_leaves_for_another_host_fails_though_it_arrives() {
    // A neighbour entry sends the replies to the ingress node, which bounces them where no capture sees it.
    let bounced = known(spoiled(Mode::Dsr, |s| {
        if s.reply && s.is(HOME, Out) {
            s.packet.mac_dst = mac_of(ip(3));
        }
        if s.reply && s.is(CLIENT, In) {
            s.packet.mac_src = mac_of(ip(3));
        }
    }));
    assert_eq!(failed(&bounced), BTreeSet::from(["return-path", "l2-source"]));
    let request = known(spoiled(Mode::Snat, |s| {
        if !s.reply && s.is(INGRESS, Out) {
            s.packet.mac_dst = mac_of(ip(4));
        }
    }));
    assert_eq!(failed(&request), BTreeSet::from(["request-path"]));
}

#[test]
fn a_field_that_nothing_demands_to_change_fails() {
    for mode in MODES {
        let class = spoiled(mode, |s| {
            let inside = u8::from(s.is(POD, In));
            s.packet.payload.iter_mut().for_each(|b| *b ^= inside);
        });
        assert!(failed(&class).contains("unaltered"), "{mode}: a payload that is altered before the pod");
        let fragmentable = spoiled(mode, |s| {
            if s.is(CLIENT, In) {
                s.packet.fragment = 0;
            }
        });
        assert_eq!(failed(&fragmentable), BTreeSet::from(["unaltered"]), "{mode}: DF is gone");
        let window = spoiled(mode, |s| {
            if let (true, Body::Tcp { window, .. }) = (s.is(CLIENT, In), &mut s.packet.body) {
                *window /= 2;
            }
        });
        assert_eq!(failed(&window), BTreeSet::from(["unaltered"]), "{mode}: the window is another");
    }
}

#[test]
fn a_pods_address_in_an_option_fails() {
    for mode in MODES {
        // Record route (RFC 791 section 3.1), as the pod's own stack echoes it.
        let recorded = spoiled(mode, |s| {
            if s.reply && s.what == What::SynAck {
                s.packet.options = vec![7, 7, 8, 10, 0, 1, 108, 0];
            }
        });
        assert!(failed(&recorded).contains("reply-source"), "{mode}");
    }
}

/// Adds a frame that the client receives.
fn with_frame(mode: Mode, packet: &Packet) -> Evidence {
    let mut evidence = Paper::new(plan(mode)).run();
    let bytes = packet.bytes();
    let last = evidence.capture.packets().last().unwrap().ts_ns;
    evidence.capture.push(0, last + 200_000_000, In, bytes.len() as u32, &bytes);
    count(&mut evidence.capture);
    evidence
}

#[test]
fn a_reset_after_the_end_fails() {
    for mode in MODES {
        let client = "172.18.0.1:43210".parse().unwrap();
        let reset = Packet::tcp(vip(), client, RST | ACK, 1, 1);
        let found = failed(&with_frame(mode, &link(reset, mac_of(ip(3)), mac_of(ip(1)))));
        assert!(found.contains("no-resets"), "{mode}: {found:?}");
    }
}

#[test]
fn an_icmp_error_about_an_answered_request_fails() {
    for mode in MODES {
        let request = Packet::udp("172.18.0.1:43212".parse().unwrap(), vip(), b"id=3\n");
        let error = Packet::icmp(ip(3), ip(1), 3, 1, 0, request);
        let found = failed(&with_frame(mode, &link(error, mac_of(ip(3)), mac_of(ip(1)))));
        assert_eq!(found, BTreeSet::from(["icmp"]), "{mode}");
    }
}

#[test]
fn arp_that_shows_a_pod_on_the_segment_fails() {
    let mut evidence = Paper::new(plan(Mode::Dsr)).run();
    let mut bytes = vec![0xff; 6];
    bytes.extend(mac_of(ip(2)).0);
    bytes.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    bytes.extend(mac_of(ip(2)).0);
    bytes.extend(Ipv4Addr::new(10, 0, 1, 108).octets());
    bytes.extend([0; 6]);
    bytes.extend(ip(1).octets());
    let last = evidence.capture.packets().last().unwrap().ts_ns;
    evidence.capture.push(0, last, In, bytes.len() as u32, &bytes);
    count(&mut evidence.capture);
    assert_eq!(failed(&evidence), BTreeSet::from(["no-strangers"]));
}

#[test]
fn a_second_copy_of_a_packet_fails() {
    for mode in MODES {
        let twice = |step: &mut Step| {
            let copied = step.is(POD, In) && step.what == What::Syn;
            if copied { vec![step.clone()] } else { Vec::new() }
        };
        let evidence = Paper::new(plan(mode)).spoil_adding(twice).run();
        assert!(failed(&evidence).contains("loop"), "{mode}");
    }
}

#[test]
fn a_backend_that_is_not_the_one_on_the_path_fails() {
    let mut evidence = Paper::new(plan(Mode::Dsr)).run();
    evidence.exchanges[0].served_by.as_mut().unwrap().node = "worker".into();
    assert_eq!(failed(&evidence), BTreeSet::from(["backend"]));
}

#[test]
fn drops_on_another_node_excuse_no_loss() {
    let lost = |s: &mut Step| s.keep &= !(s.left_home() && s.what == What::Ack && s.number == 4);
    let mut evidence = spoiled(Mode::Dsr, lost);
    evidence.drops.insert("worker".into(), [("too-big".to_owned(), 9)].into());
    assert_eq!(failed(&evidence), BTreeSet::from(["conservation"]));
}

#[test]
fn affinity_that_is_not_kept_fails() {
    let mut plan = plan(Mode::Dsr);
    plan.service.session_affinity = Affinity::ClientIP;
    let second = labctl_model::PodPlan {
        name: "web-2".into(),
        address: Ipv4Addr::new(10, 0, 1, 109),
        host_network: false,
    };
    plan.nodes[2].pods.push(second);
    let evidence = Paper::new(plan).spoil(|s| {
        let inside =
            !s.packet.options.is_empty() || s.packet.src.port() == 8080 || s.packet.dst.port() == 8080;
        if s.exchange == 2 && inside {
            let pod = Ipv4Addr::new(10, 0, 1, 109);
            if s.packet.dst.port() == 8080 { s.packet.dst.set_ip(pod) } else { s.packet.src.set_ip(pod) }
        }
    });
    assert!(failed(&evidence.run()).contains("affinity"));
}

#[test]
fn an_expectation_is_not_met_by_a_check_that_does_not_apply() {
    for expected in [ExpectedStatus::Pass, ExpectedStatus::Fail] {
        let mut plan = plan(Mode::Dsr);
        plan.expect.insert("affinity".into(), expected);
        assert_eq!(judge(&Paper::new(plan).run()).verdict, Verdict::Fail);
    }
}

#[test]
fn a_capture_file_that_lacks_packets_proves_nothing() {
    let mut evidence = Paper::new(plan(Mode::Dsr)).run();
    evidence.capture.points[1].received = evidence.capture.points[1].received.map(|n| n + 1);
    let judgement = judge(&evidence);
    assert_eq!(judgement.verdict, Verdict::Inconclusive);
    let path = judgement.checks.iter().find(|c| c.name == "return-path").unwrap();
    assert!(path.summary.contains("are in the file"), "{}", path.summary);
}

/// Healthy, though it looks odd: TTL kept at the node that was asked (Cilium up to 1.13).
#[test]
fn a_foreign_load_balancer_may_keep_the_ttl_where_it_was_asked() {
    let keep = |s: &mut Step| s.packet.ttl += u8::from(s.left_ingress());
    let mut evidence = spoiled(Mode::Dsr, keep);
    assert_eq!(failed(&evidence), BTreeSet::from(["ttl"]), "ours must not");
    evidence.plan.datapath.external = true;
    assert_eq!(failed(&evidence), BTreeSet::new());
    let mut twice = spoiled(Mode::Dsr, |s| s.packet.ttl += 2 * u8::from(s.left_ingress()));
    twice.plan.datapath.external = true;
    assert_eq!(failed(&twice), BTreeSet::from(["ttl"]), "but it must not add to it");
}

/// Healthy, though it looks odd: a client uses a port again whose old connection its peer still remembers.
#[test]
fn a_reset_that_clears_an_old_connection_passes() {
    let old = |step: &mut Step| {
        let opening = step.what == What::Syn && !step.reply && step.exchange == 1;
        if !(opening && step.is(POD, In)) {
            return Vec::new();
        }
        let client = step.packet.src;
        let pod = step.packet.dst;
        let way = [(POD, Out), ("worker2:lxc1", In), (HOME, Out), (CLIENT, In)];
        let mut steps = Vec::new();
        for (i, (point, direction)) in way.into_iter().enumerate() {
            let src = if i < 2 { pod } else { vip() };
            let mut packet = Packet { id: 77, ..Packet::tcp(src, client, ACK, 4711, 999) };
            packet.ttl -= u8::from(i > 1);
            let (from, to) = if i < 2 {
                (mac_of(*pod.ip()), mac_of([10, 0, 1, 1].into()))
            } else {
                (mac_of(ip(2)), mac_of(ip(1)))
            };
            let packet = Packet { sum: Sum::Right, ..link(packet, from, to) };
            steps.push(Step {
                point: point.into(),
                direction,
                packet,
                reply: true,
                what: What::Ack,
                ..step.clone()
            });
        }
        let way =
            [(CLIENT, Out), (INGRESS, In), (INGRESS, Out), (HOME, In), ("worker2:lxc1", Out), (POD, In)];
        for (i, (point, direction)) in way.into_iter().enumerate() {
            let dst = if i < 2 { vip() } else { pod };
            let mut packet = Packet { id: 78, ..Packet::tcp(client, dst, RST, 999, 0) };
            packet.ttl -= u8::from(i > 1) + u8::from(i > 3);
            let (from, to) = match i {
                0 | 1 => (mac_of(ip(1)), mac_of(ip(3))),
                2 | 3 => (mac_of(ip(3)), mac_of(ip(2))),
                _ => (mac_of([10, 0, 1, 1].into()), mac_of(*pod.ip())),
            };
            let packet = link(packet, from, to);
            steps.push(Step {
                point: point.into(),
                direction,
                packet,
                reply: false,
                what: What::Ack,
                ..step.clone()
            });
        }
        steps
    };
    let evidence = Paper::new(plan(Mode::Dsr)).spoil_adding(old).run();
    assert_eq!(failed(&evidence), BTreeSet::new());
    assert_eq!(judge(&evidence).verdict, Verdict::Pass);
}
