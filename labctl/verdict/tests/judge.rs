//! Right runs pass every check in every mode; each check fails, alone, when its own rule is broken; and none passes
//! on a capture that proves nothing.

mod lab;

use std::collections::BTreeMap;

use lab::build::{ACK, Body, Packet, RST, Sum};
use lab::{
    CLIENT, CONTROL, HOME, INGRESS, POD, Paper, Step, What, count, ip, link, mac_of, place_backend, plan, vip,
};
use labctl_model::{ExpectedStatus, Fault, FaultPlan, FaultScope, Mode, Plan, ProviderKind, WireFormat};
use labctl_verdict::{Evidence, Judgement, KernelDrops, SHOWN, Status, Verdict, judge, judge_and_explain};
use labctl_wire::Direction::{In, Out};
use labctl_wire::Outcome;
use labctl_wire::facts::DroppedPacket;
use labctl_wire::packet::Mac;

const MODES: [Mode; 4] = [Mode::Dsr, Mode::Snat, Mode::Hybrid, Mode::Local];

/// Checks by status, with their summaries for the message of an assertion.
fn not_passed(judgement: &Judgement) -> BTreeMap<&'static str, (Status, String)> {
    // One backend and no affinity: two checks have nothing to say.
    let applies = |c: &&labctl_verdict::CheckResult| !["spread", "affinity"].contains(&c.name);
    let left = judgement.checks.iter().filter(applies).filter(|c| c.status != Status::Pass);
    left.map(|c| (c.name, (c.status, c.summary.clone()))).collect()
}

#[track_caller]
fn assert_pass(evidence: &Evidence) {
    let judgement = judge(evidence);
    assert_eq!(not_passed(&judgement), BTreeMap::new());
    assert_eq!(judgement.verdict, Verdict::Pass);
}

/// Exactly these checks fail, all others pass; the first one's summary says why.
#[track_caller]
fn assert_fails(evidence: &Evidence, names: &[&str], why: &str) {
    let judgement = judge(evidence);
    let found = not_passed(&judgement);
    let mut failed: Vec<_> = found.keys().copied().collect();
    let mut expected = names.to_vec();
    failed.sort_unstable();
    expected.sort_unstable();
    assert_eq!(failed, expected, "{found:#?}");
    assert!(found.values().all(|(status, _)| *status == Status::Fail), "{found:#?}");
    assert!(found[names[0]].1.contains(why), "{:?} does not say `{why}`", found[names[0]].1);
    assert_eq!(judgement.verdict, Verdict::Fail);
}

/// A spoiled run of a mode.
fn spoiled(mode: Mode, change: impl FnMut(&mut Step)) -> Evidence {
    Paper::new(plan(mode)).spoil(change).run()
}

// Right runs.

#[test]
fn right_runs_pass_in_every_mode() {
    for mode in MODES {
        assert_pass(&Paper::new(plan(mode)).run());
    }
}

#[test]
fn a_thousand_connections_and_datagrams_are_judged_in_no_time() {
    let mut paper = Paper::new(plan(Mode::Hybrid));
    paper.canaries(1);
    for id in 0..1000 {
        paper.tcp(id, 20_000 + id as u16);
        paper.udp(id, 20_000 + id as u16);
    }
    paper.canaries(2);
    let evidence = paper.finish(BTreeMap::new());
    let start = std::time::Instant::now();
    assert_pass(&evidence);
    // A quadratic step would take minutes; the bound leaves room for a busy machine.
    assert!(start.elapsed().as_secs() < 20, "took {:?}", start.elapsed());
}

#[test]
fn backends_on_the_ingress_node_and_on_host_networks_pass() {
    for mode in [Mode::Dsr, Mode::Snat, Mode::Hybrid] {
        for (node, host) in [("worker", false), ("worker", true), ("worker2", true)] {
            let mut plan = plan(mode);
            place_backend(&mut plan, node, host);
            let judgement = judge(&Paper::new(plan).run());
            // A hostNetwork backend on the node that was asked has no hop behind it: nothing to compare.
            let no_hop = node == "worker" && host;
            let expected = if no_hop { vec!["ttl"] } else { vec![] };
            let found = not_passed(&judgement);
            assert_eq!(
                found.keys().copied().collect::<Vec<_>>(),
                expected,
                "{mode} {node} {host}: {found:#?}"
            );
        }
    }
}

#[test]
fn the_other_byte_order_and_an_unstripped_option_pass_where_the_lab_says_so() {
    let mut cilium = plan(Mode::Dsr);
    cilium.wire = WireFormat::Cilium;
    assert_pass(&Paper::new(cilium).run());
    let mut kept = plan(Mode::Dsr);
    kept.datapath.strip_option = false;
    assert_pass(&Paper::new(kept).run());
}

#[test]
fn a_segment_cut_behind_the_node_passes() {
    let cut = |step: &mut Step| {
        let whole = step.left_home() && step.what == What::Data;
        let Body::Tcp { seq, ack, flags, window } = step.packet.body else { return Vec::new() };
        if !whole {
            return Vec::new();
        }
        let (first, second) = step.packet.payload.split_at(1448);
        let (first, second) = (first.to_vec(), second.to_vec());
        let mut next = step.clone();
        next.packet.id += 1;
        next.packet.payload = second;
        next.packet.body = Body::Tcp { seq: seq + 1448, ack, flags, window };
        next.packet.sum = Sum::Right;
        (step.packet.payload, step.packet.sum) = (first, Sum::Right);
        vec![next]
    };
    for mode in [Mode::Dsr, Mode::Snat] {
        assert_pass(&Paper::new(plan(mode)).spoil_adding(cut).run());
    }
}

#[test]
fn a_frame_that_the_switch_floods_is_not_a_crossing() {
    let flood = |step: &mut Step| {
        let flooded = step.reply && step.is(HOME, Out) && step.what == What::SynAck;
        let copy = |point: &str| Step { point: point.into(), direction: In, ..step.clone() };
        if flooded { vec![copy(INGRESS), copy(CONTROL)] } else { Vec::new() }
    };
    assert_pass(&Paper::new(plan(Mode::Dsr)).spoil_adding(flood).run());
}

#[test]
fn icmp_errors_from_the_frontend_pass() {
    let quote = |step: &Step| {
        let big = Packet { payload: vec![0; 1400], ..step.packet.clone() };
        let error = Packet::icmp(ip(3), ip(1), 3, 4, 1400, big);
        let packet = link(error, mac_of(ip(3)), mac_of(ip(1)));
        let at = |point: &str, direction| Step {
            point: point.into(),
            direction,
            reply: true,
            packet: packet.clone(),
            ..step.clone()
        };
        vec![at(INGRESS, Out), at(CLIENT, In)]
    };
    let answer = |step: &mut Step| {
        if step.is(INGRESS, In) && step.what == What::Datagram { quote(step) } else { Vec::new() }
    };
    assert_pass(&Paper::new(plan(Mode::Dsr)).spoil_adding(answer).run());
}

#[test]
fn counted_drops_are_not_lost_packets() {
    let mut evidence =
        spoiled(Mode::Dsr, |s| s.keep &= !(s.left_home() && s.what == What::Ack && s.number == 4));
    evidence.drops.insert("worker2".into(), BTreeMap::from([("too-big".into(), 2)]));
    let by_program = dropped(&evidence, "TC_INGRESS");
    assert_eq!(by_program.packets.len(), 2);
    evidence.kernel_drops = Some(by_program.clone());
    assert_pass(&evidence);
    let said = judge(&evidence);
    let summary = &said.checks.iter().find(|c| c.name == "conservation").unwrap().summary;
    assert!(summary.ends_with("2 lost and counted: 2 by worker2"), "{summary}");

    // The count alone says that something was dropped, not what.
    for unwatched in [None, Some(KernelDrops { unwatched: Some("no BTF".into()), ..KernelDrops::default() })]
    {
        let evidence = Evidence { kernel_drops: unwatched, ..evidence.clone() };
        let judgement = judge(&evidence);
        assert_eq!(judgement.verdict, Verdict::Inconclusive);
        assert_eq!(not_passed(&judgement).keys().copied().collect::<Vec<_>>(), ["conservation"]);
    }
    let full = KernelDrops { untold: 1, ..KernelDrops::default() };
    let evidence_of = |drops: KernelDrops| Evidence { kernel_drops: Some(drops), ..evidence.clone() };
    assert_eq!(judge(&evidence_of(full)).verdict, Verdict::Inconclusive);

    // Somebody else's packets excuse nobody's, nor does anybody else's drop, nor one record two packets.
    let never = "worker2 had it last, and counted no drop of it";
    assert_fails(&evidence_of(KernelDrops::default()), &["conservation"], never);
    let mut others = by_program.clone();
    others.packets.iter_mut().for_each(|packet| packet.id ^= 1);
    assert_fails(&evidence_of(others), &["conservation"], never);
    let mut once = by_program.clone();
    once.packets[1] = once.packets[0].clone();
    assert_fails(&evidence_of(once), &["conservation"], never);
    let mut elsewhere = by_program.clone();
    elsewhere.packets.iter_mut().for_each(|packet| packet.host = "worker".into());
    assert_fails(&evidence_of(elsewhere), &["conservation"], never);
    let netfilter = dropped(&evidence, "NETFILTER_DROP");
    assert_fails(&evidence_of(netfilter), &["conservation"], "worker2 dropped it: NETFILTER_DROP");
    let mut uncounted = evidence_of(by_program);
    uncounted.drops.insert("worker2".into(), BTreeMap::new());
    assert_fails(&uncounted, &["conservation"], "a program on worker2 dropped it and did not count it");
}

/// What worker2's kernel would say of the packets that came in from the pod and never left by the uplink.
fn dropped(evidence: &Evidence, reason: &str) -> KernelDrops {
    let capture = &evidence.capture;
    let at = |index: usize| capture.points[capture.packets()[index].point].point.to_string();
    let id = |index: usize| capture.headers(index).ipv4().map(|ip| (ip.id, ip.protocol));
    let left: Vec<_> = (0..capture.packets().len()).filter(|i| at(*i) == HOME).map(id).collect();
    let is_lost = |index: &usize| {
        let captured = &capture.packets()[*index];
        let ours = capture.headers(*index).sockets().is_some_and(|(src, _)| src.port() == 8080);
        ours && at(*index) == "worker2:lxc1" && captured.direction == In && !left.contains(&id(*index))
    };
    let packet = |index: usize| {
        let frame = capture.headers(index);
        let (src, dst) = frame.sockets().unwrap();
        let ip = frame.ipv4().unwrap();
        DroppedPacket {
            time_ns: capture.packets()[index].ts_ns + 100,
            host: "worker2".into(),
            reason: reason.into(),
            protocol: ip.protocol,
            src,
            dst,
            id: ip.id,
            fragment_offset: ip.fragment_offset,
            seq: frame.tcp().map_or(0, |tcp| tcp.seq),
        }
    };
    let packets = (0..capture.packets().len()).filter(is_lost).map(packet).collect();
    KernelDrops { packets, ..KernelDrops::default() }
}

// One mutation at a time.

#[test]
fn handshake_fails() {
    let mut late = Paper::new(plan(Mode::Dsr)).run();
    late.exchanges[1].outcome = Outcome::TimedOut { waiting_for: "response body".into() };
    assert_fails(&late, &["handshake"], "tcp request 2 timed out waiting for response body");
    let mut corrupt = Paper::new(plan(Mode::Snat)).run();
    corrupt.exchanges[3].outcome = Outcome::Corrupt { detail: "byte 7 differs".into() };
    assert_fails(&corrupt, &["handshake"], "udp request 4 got a wrong reply: byte 7 differs");
    let wrong_ack = spoiled(Mode::Dsr, |s| {
        if let (What::SynAck, 1, Body::Tcp { ack, .. }) = (s.what, s.exchange, &mut s.packet.body) {
            *ack += 5;
        }
    });
    assert_fails(&wrong_ack, &["handshake"], "SYN-ACK acknowledges another SYN");
}

#[test]
fn client_ip_fails() {
    let mut reported = Paper::new(plan(Mode::Dsr)).run();
    reported.exchanges[0].served_by.as_mut().unwrap().peer.set_ip(ip(3));
    assert_fails(&reported, &["client-ip"], "the backend reports 172.18.0.3 as peer, expected 172.18.0.1");
    let mut port = Paper::new(plan(Mode::Local)).run();
    port.exchanges[0].served_by.as_mut().unwrap().peer.set_port(1);
    assert_fails(&port, &["client-ip"], "expected 172.18.0.1:43210");
    // The ingress node rewrites the source of requests although the mode is dsr.
    let rewritten = spoiled(Mode::Dsr, |s| {
        if s.left_ingress() {
            s.packet.src.set_ip(ip(3));
        }
    });
    assert_fails(&rewritten, &["client-ip"], "the backend gets 172.18.0.3 as peer");
    let mut kept = Paper::new(plan(Mode::Hybrid)).run();
    let client = kept.exchanges[2].local;
    kept.exchanges[2].served_by.as_mut().unwrap().peer = client;
    assert_fails(&kept, &["client-ip"], "udp request 3: the backend reports 172.18.0.1");
}

#[test]
fn return_path_fails() {
    let through = |step: &mut Step| {
        if !(step.reply && step.is(HOME, Out)) {
            return Vec::new();
        }
        let packet = link(step.packet.clone(), mac_of(ip(2)), mac_of(ip(3)));
        vec![Step { point: INGRESS.into(), direction: In, packet, ..step.clone() }]
    };
    let evidence = Paper::new(plan(Mode::Dsr)).spoil_adding(through).run();
    assert_fails(&evidence, &["return-path"], "a reply of tcp request 1 crossed the ingress node worker");
    let past = spoiled(Mode::Snat, |s| s.keep &= !(s.reply && s.point == INGRESS));
    assert_fails(&past, &["return-path"], "was not seen in at worker:eth0");
    // On the way, yet never at the client: also a packet that is lost.
    let lost = spoiled(Mode::Dsr, |s| s.keep &= !(s.reply && s.is(CLIENT, In) && s.what == What::Fin));
    assert_fails(&lost, &["return-path", "conservation"], "was not seen in at client:eth0");
}

#[test]
fn reply_source_fails() {
    // The mutation that everybody ships once: the SYN-ACK is right, the second packet is not.
    let only_syn_ack = spoiled(Mode::Dsr, |s| {
        if s.left_home() && s.what == What::Data {
            s.packet.src = "10.0.1.108:8080".parse().unwrap();
        }
    });
    assert_fails(
        &only_syn_ack,
        &["reply-source"],
        "worker2 sent a reply of tcp request 1 with pod address 10.0.1.108",
    );
    let port = spoiled(Mode::Snat, |s| {
        if s.reply && s.is(CLIENT, In) && s.what == What::Datagram {
            s.packet.src.set_port(8080);
        }
    });
    assert_fails(&port, &["reply-source"], "reply from 172.18.0.3:8080, expected 172.18.0.3:32000");
}

/// A run in which the ingress node answers datagrams with an ICMP error as well.
fn with_icmp(error: impl Fn(Packet) -> Packet) -> Evidence {
    let answer = move |step: &mut Step| {
        if !(step.is(INGRESS, In) && step.what == What::Datagram) {
            return Vec::new();
        }
        let packet = link(error(step.packet.clone()), mac_of(ip(3)), mac_of(ip(1)));
        vec![Step { point: CLIENT.into(), direction: In, reply: true, packet, ..step.clone() }]
    };
    Paper::new(plan(Mode::Dsr)).spoil_adding(answer).run()
}

#[test]
fn reply_source_fails_for_icmp() {
    let pod = "10.0.1.108".parse().unwrap();
    let outer = with_icmp(|request| Packet::icmp(pod, ip(1), 3, 3, 0, request));
    assert_fails(&outer, &["reply-source", "icmp"], "reply from 10.0.1.108, expected 172.18.0.3");
    let inner = with_icmp(|request| {
        let seen_by_pod = Packet { dst: "10.0.1.108:8080".parse().unwrap(), ..request };
        Packet::icmp(ip(3), ip(1), 3, 3, 0, seen_by_pod)
    });
    assert_fails(&inner, &["reply-source", "icmp"], "pod address 10.0.1.108 on the client's link");
}

#[test]
fn reply_source_fails_for_a_pod_address_of_nobodys_exchange() {
    let mut evidence = Paper::new(plan(Mode::Dsr)).run();
    let stray = Packet::tcp("10.0.1.108:8080".parse().unwrap(), "172.18.0.1:5".parse().unwrap(), RST, 1, 0);
    let packet = link(stray, mac_of(ip(2)), mac_of(ip(1)));
    let bytes = packet.bytes();
    let last = evidence.capture.packets().last().unwrap().ts_ns;
    evidence.capture.push(0, last, In, bytes.len() as u32, &bytes);
    count(&mut evidence.capture);
    assert_fails(&evidence, &["reply-source", "no-strangers"], "pod address 10.0.1.108 on the client's link");
}

#[test]
fn carrier_fails() {
    let between = |s: &Step| s.left_ingress() && [INGRESS, HOME].contains(&s.point.as_str());
    let missing = spoiled(Mode::Dsr, |s| {
        if between(s) && s.what == What::Syn {
            s.packet.options.clear();
        }
    });
    assert_fails(&missing, &["carrier"], "tcp request 1: the option is missing");
    let everywhere = spoiled(Mode::Dsr, |s| {
        if between(s) {
            s.packet.options = vec![0x9a, 8, 0x7d, 0, 172, 18, 0, 3];
        }
    });
    assert_fails(&everywhere, &["carrier"], "a packet that must have no option has one at worker:eth0");
    let value = spoiled(Mode::Hybrid, |s| {
        if let Some(byte) = s.packet.options.get_mut(3) {
            *byte = 1;
        }
    });
    assert_fails(&value, &["carrier"], "the option says 172.18.0.3:32001, expected 172.18.0.3:32000");
    let order = spoiled(Mode::Dsr, |s| {
        if !s.packet.options.is_empty() {
            s.packet.options = vec![0x9a, 8, 0, 0x7d, 3, 0, 18, 172];
        }
    });
    assert_fails(&order, &["carrier"], "in Cilium's little-endian byte order");
    let mut unstripped = plan(Mode::Dsr);
    unstripped.datapath.strip_option = false;
    let mut unstripped = Paper::new(unstripped).run();
    unstripped.plan.datapath.strip_option = true;
    assert_fails(&unstripped, &["carrier"], "the option was not stripped before");
    let not_needed = spoiled(Mode::Snat, |s| {
        if between(s) && s.what == What::Syn {
            s.packet.options = vec![0x9a, 8, 0x7d, 0, 172, 18, 0, 3];
        }
    });
    assert_fails(&not_needed, &["carrier"], "must have no option");
}

#[test]
fn request_path_fails() {
    let detour = |step: &mut Step| {
        if !(step.is(INGRESS, Out) && step.what == What::Ack) {
            return Vec::new();
        }
        let packet = link(step.packet.clone(), mac_of(ip(3)), mac_of(ip(4)));
        vec![Step { point: CONTROL.into(), direction: In, packet, ..step.clone() }]
    };
    let evidence = Paper::new(plan(Mode::Dsr)).spoil_adding(detour).run();
    assert_fails(&evidence, &["request-path"], "tcp request 1 passed control-plane");
    let teleport =
        spoiled(Mode::Snat, |s| s.keep &= !(s.is(INGRESS, Out) && s.what == What::Syn && !s.reply));
    assert_fails(&teleport, &["request-path"], "tcp request 1 was not seen out at worker:eth0");
    let stranger = spoiled(Mode::Dsr, |s| {
        if s.is(HOME, In) && s.what == What::Ack {
            s.packet.dst.set_port(9999);
        }
    });
    assert_fails(&stranger, &["request-path"], "10.0.1.108:9999, which is not its backend");
    let mut early = Paper::new(plan(Mode::Dsr)).run();
    let points = &early.capture.points;
    let pod = points.iter().position(|p| p.point.to_string() == POD).unwrap();
    let capture = &mut early.capture;
    let is_syn = |i: &usize| {
        let packet = &capture.packets()[*i];
        packet.point == pod && packet.direction == In && capture.headers(*i).tcp().is_some()
    };
    let syn = (0..capture.packets().len()).find(is_syn).unwrap();
    capture.packets_mut()[syn].ts_ns -= 1_000_000;
    assert_fails(&early, &["request-path"], "was at web-1:eth0 before its last hop");
}

#[test]
fn request_path_fails_for_refusals() {
    let mut answered = Paper::new(plan(Mode::Local)).run();
    answered.refusals[0].outcome = Outcome::Answered;
    assert_fails(&answered, &["request-path"], "to worker2, which has no backend, did not time out");
    let mut uncounted = Paper::new(plan(Mode::Local)).run();
    uncounted.drops.get_mut("worker2").unwrap().insert("no-local-backend".into(), 2);
    assert_fails(
        &uncounted,
        &["request-path"],
        "worker2 dropped 3 packets and counted 2 as no-local-backend",
    );
    let refuse = |forwards: bool| {
        Paper::new(plan(Mode::Local)).spoil_adding(move |step| {
            if !(step.exchange == 5 && step.is(HOME, In)) {
                return Vec::new();
            }
            if forwards {
                let packet = link(step.packet.clone(), mac_of(ip(2)), mac_of(ip(3)));
                return vec![Step { direction: Out, packet, ..step.clone() }];
            }
            let reset = Packet::tcp(step.packet.dst, step.packet.src, RST | ACK, 0, 4712);
            let packet = link(reset, mac_of(ip(2)), mac_of(ip(1)));
            vec![Step { point: CLIENT.into(), direction: In, packet, reply: true, ..step.clone() }]
        })
    };
    assert_fails(
        &refuse(true).run(),
        &["request-path"],
        "worker2 has no backend, and forwarded tcp request 5",
    );
    assert_fails(
        &refuse(false).run(),
        &["request-path"],
        "worker2 has no backend, and tcp request 5 got a reply",
    );
}

#[test]
fn ttl_fails() {
    let kept = spoiled(Mode::Dsr, |s| s.packet.ttl += u8::from(s.left_ingress()));
    assert_fails(&kept, &["ttl"], "tcp request 1: ttl 64 at worker:eth0, expected 63 after 1 hop");
    let twice = spoiled(Mode::Snat, |s| s.packet.ttl -= u8::from(s.reply && s.point == CLIENT));
    assert_fails(&twice, &["ttl"], "ttl 61 at client:eth0, expected 62 after 2 hops");
}

#[test]
fn l2_source_fails() {
    for (mode, sender) in
        [(Mode::Dsr, "worker2:eth0"), (Mode::Snat, "worker:eth0"), (Mode::Local, "worker:eth0")]
    {
        let nobody = spoiled(mode, |s| {
            if s.left_home() && s.packet.src == vip() {
                s.packet.mac_src = Mac([2, 9, 9, 9, 9, 9]);
            }
        });
        assert_fails(&nobody, &["l2-source"], &format!("of {sender}"));
    }
    let other = spoiled(Mode::Dsr, |s| {
        if s.reply && s.point == CLIENT {
            s.packet.mac_src = mac_of(ip(3));
        }
    });
    assert_fails(&other, &["l2-source"], "reply frame from 02:ac:12:00:03:00");
}

#[test]
fn checksums_fail() {
    let tcp = spoiled(Mode::Dsr, |s| {
        if s.left_home() && s.what == What::Data {
            s.packet.sum = Sum::Wrong;
            s.packet.payload.truncate(1000);
        }
    });
    // Fewer bytes came out than went in: those are missing as well.
    assert_fails(&tcp, &["checksums", "conservation"], "wrong TCP checksum");
    let udp = spoiled(Mode::Snat, |s| {
        if s.is(POD, In) && s.what == What::Datagram {
            s.packet.sum = Sum::Wrong;
        }
    });
    assert_fails(&udp, &["checksums"], "udp request 3: wrong UDP checksum");
    let header = spoiled(Mode::Dsr, |s| s.packet.bad_header_sum = s.is(HOME, In) && s.what == What::Ack);
    assert_fails(&header, &["checksums"], "wrong IPv4 header checksum");
    let icmp =
        with_icmp(|request| Packet { sum: Sum::Wrong, ..Packet::icmp(ip(3), ip(1), 3, 3, 0, request) });
    assert_fails(&icmp, &["checksums", "icmp"], "wrong ICMP checksum");
}

/// A lab without offloads.
fn without_offloads() -> Plan {
    Plan { offloads: false, ..plan(Mode::Dsr) }
}

#[test]
fn an_unfinished_checksum_fails_without_offloads() {
    let short = |s: &mut Step| {
        if s.what == What::Data && s.reply {
            s.packet.payload.truncate(1000);
        }
    };
    let off = Paper::new(without_offloads()).spoil(short).run();
    assert_fails(&off, &["checksums"], "unfinished TCP checksum with offloads off");
    assert_pass(&Paper::new(plan(Mode::Dsr)).spoil(short).run());
}

#[test]
fn mtu_fails() {
    let datagram = spoiled(Mode::Dsr, |s| {
        if s.what == What::Datagram && !s.reply {
            s.packet.payload.resize(1472, b'x');
        }
    });
    // 1472 and 28 bytes fit; with the option they do not.
    assert_fails(
        &datagram,
        &["mtu"],
        "udp request 3: packet of 1508 bytes at worker:eth0, whose MTU is 1500",
    );
    let finished = spoiled(Mode::Dsr, |s| {
        if s.what == What::Data && s.left_home() {
            s.packet.sum = Sum::Right;
        }
    });
    assert_fails(&finished, &["mtu"], "packet of 2540 bytes at worker2:eth0");
    let no_offloads = Paper::new(without_offloads()).spoil(|s| s.packet.sum = Sum::Right).run();
    assert_fails(&no_offloads, &["mtu"], "packet of 2540 bytes at web-1:eth0");
    let mut small = plan(Mode::Dsr);
    let fault = Fault::PodMtu { mtu: 576 };
    small.faults.push(FaultPlan { fault, on: FaultScope::Nodes(vec!["worker2".into()]) });
    let small = Paper::new(small).spoil(|s| {
        if s.what == What::Datagram {
            s.packet.payload.resize(800, b'x');
        }
    });
    assert_fails(&small.run(), &["mtu"], "whose MTU is 576");
}

#[test]
fn no_resets_fails() {
    let forged = spoiled(Mode::Dsr, |s| {
        if let (true, What::Data, Body::Tcp { flags, .. }) = (s.left_home(), s.what, &mut s.packet.body) {
            *flags |= RST;
        }
    });
    assert_fails(&forged, &["no-resets", "unaltered"], "tcp request 1 was reset, first seen at worker2:eth0");
}

#[test]
fn conservation_fails() {
    let silent = spoiled(Mode::Dsr, |s| s.keep &= !(s.left_home() && s.what == What::Fin));
    assert_fails(
        &silent,
        &["conservation"],
        "a packet never arrived at client:eth0: worker2 had it last, and counted no drop of it",
    );
    let mut counted = silent;
    counted.drops.insert("worker2".into(), BTreeMap::from([("too-big".into(), 1)]));
    assert_fails(&counted, &["conservation"], "tcp request 2: a packet never arrived at client:eth0");
    let part = |step: &mut Step| {
        if step.left_home() && step.what == What::Data {
            step.packet.payload.truncate(1448);
        }
    };
    let part = Paper::new(plan(Mode::Dsr)).spoil(part).run();
    assert_fails(&part, &["conservation"], "never arrived");
    let from_nowhere = |step: &mut Step| {
        if !(step.is(POD, In) && step.what == What::Fin) {
            return Vec::new();
        }
        let mut forged = step.clone();
        forged.packet.id ^= 0x4000;
        vec![forged]
    };
    let from_nowhere = Paper::new(plan(Mode::Dsr)).spoil_adding(from_nowhere).run();
    assert_fails(&from_nowhere, &["conservation"], "a packet arrived that client:eth0 never sent");
}

// Evidence that does not suffice.

/// What is inconclusive after a change of the evidence; everything else must pass.
#[track_caller]
fn assert_inconclusive(evidence: &Evidence, names: &[&str]) {
    let judgement = judge(evidence);
    let found = not_passed(&judgement);
    assert!(found.values().all(|(status, _)| *status == Status::Inconclusive), "{found:#?}");
    for name in names {
        assert!(found.contains_key(name), "{name} passed: {found:#?}");
    }
    assert_eq!(judgement.verdict, Verdict::Inconclusive);
}

fn point(evidence: &Evidence, name: &str) -> usize {
    evidence.capture.points.iter().position(|p| p.point.to_string() == name).unwrap()
}

const NEGATIVE: [&str; 4] = ["checksums", "mtu", "no-resets", "carrier"];

#[test]
fn a_dead_or_lossy_point_is_inconclusive() {
    let at: [(&str, &[&str]); 4] = [
        (CLIENT, &["reply-source", "conservation"]),
        (INGRESS, &["return-path"]),
        (HOME, &["return-path"]),
        (POD, &["conservation"]),
    ];
    for mode in [Mode::Dsr, Mode::Snat] {
        for (name, checks) in at {
            let checks: Vec<_> = NEGATIVE.iter().chain(checks).copied().collect();
            // In snat every reply is seen to pass the ingress node: nothing rests on silence there.
            let checks: Vec<_> = checks
                .into_iter()
                .filter(|c| !(mode == Mode::Snat && name == INGRESS && *c == "return-path"))
                .collect();
            let fresh = || Paper::new(plan(mode)).run();
            let index = point(&fresh(), name);
            let mut dead = fresh();
            dead.capture.points[index].live = false;
            assert_inconclusive(&dead, &checks);
            let mut lossy = fresh();
            lossy.capture.points[index].dropped = Some(3);
            assert_inconclusive(&lossy, &checks);
            let summary = &judge(&lossy).checks.into_iter().find(|c| c.name == checks[0]).unwrap().summary;
            assert!(summary.contains(&format!("the capture on {name} lost 3 packets")), "{summary}");
            let mut silent = fresh();
            silent.capture.points[index].dropped = None;
            assert_inconclusive(&silent, &checks);
        }
    }
}

#[test]
fn packets_missing_at_a_lossy_point_are_no_offence() {
    let mut evidence = spoiled(Mode::Dsr, |s| s.keep &= !(s.is(CLIENT, In) && s.what == What::Fin));
    assert_eq!(judge(&evidence).verdict, Verdict::Fail);
    evidence.capture.points[0].dropped = Some(2);
    assert_inconclusive(&evidence, &["conservation", "return-path"]);
    let mut no_syn = spoiled(Mode::Dsr, |s| s.keep &= !(s.is(CLIENT, In) && s.what == What::SynAck));
    no_syn.capture.points[0].live = false;
    assert_inconclusive(&no_syn, &["handshake"]);
}

#[test]
fn what_was_seen_counts_even_on_a_lossy_capture() {
    let mut evidence = spoiled(Mode::Dsr, |s| {
        if s.reply && s.is(CLIENT, In) {
            s.packet.src.set_port(8080);
        }
    });
    evidence.capture.points[0].dropped = Some(2);
    let judgement = judge(&evidence);
    let source = judgement.checks.iter().find(|c| c.name == "reply-source").unwrap();
    assert_eq!((source.status, judgement.verdict), (Status::Fail, Verdict::Fail));
}

#[test]
fn a_point_without_capture_is_inconclusive() {
    let mut evidence = Paper::new(plan(Mode::Dsr)).run();
    let ingress = point(&evidence, INGRESS);
    evidence.capture.points[ingress].point.host = "elsewhere".into();
    let judgement = judge(&evidence);
    let path = judgement.checks.iter().find(|c| c.name == "return-path").unwrap();
    assert_eq!(path.status, Status::Inconclusive);
    assert!(path.summary.contains("nothing was captured on worker:eth0"), "{}", path.summary);
    assert_eq!(judgement.verdict, Verdict::Inconclusive);
}

#[test]
fn an_empty_run_proves_nothing() {
    for mode in MODES {
        let mut evidence = Paper::new(plan(mode)).run();
        evidence.exchanges.clear();
        evidence.refusals.clear();
        evidence.capture.packets_mut().clear();
        let judgement = judge(&evidence);
        let passed: Vec<_> =
            judgement.checks.iter().filter(|c| c.status == Status::Pass).map(|c| c.name).collect();
        assert_eq!((passed, judgement.verdict), (vec![], Verdict::Inconclusive));
    }
}

#[test]
fn a_local_lab_that_asked_no_other_node_is_inconclusive() {
    let mut paper = Paper::new(plan(Mode::Local));
    paper.canaries(1);
    paper.tcp(1, 43_210);
    paper.canaries(2);
    assert_inconclusive(&paper.finish(BTreeMap::new()), &["request-path"]);
    let mut no_counters = Paper::new(plan(Mode::Local)).run();
    no_counters.drops.clear();
    assert_inconclusive(&no_counters, &["request-path"]);
}

// Expectations, comments, damage.

#[test]
fn an_expected_failure_passes_and_its_absence_fails() {
    let leak = |s: &mut Step| {
        if s.left_home() && s.what == What::Data {
            s.packet.src = "10.0.1.108:8080".parse().unwrap();
        }
    };
    let mut expecting = plan(Mode::Dsr);
    expecting.expect.insert("reply-source".into(), ExpectedStatus::Fail);
    assert_pass(&Paper::new(expecting.clone()).spoil(leak).run());
    let evidence = Paper::new(expecting).run();
    assert_fails(&evidence, &["reply-source"], "passes, but this lab expects it to fail");
    let result = judge(&evidence).checks.into_iter().find(|c| c.name == "reply-source").unwrap();
    let expectation = result.expectation.unwrap();
    assert_eq!((expectation.expected, expectation.found), (ExpectedStatus::Fail, Status::Pass));
}

#[test]
fn evidence_names_the_first_packets() {
    let evidence = spoiled(Mode::Dsr, |s| s.packet.ttl += u8::from(s.left_ingress()));
    let judged = judge_and_explain(&evidence);
    let ttl = judged.judgement.checks.into_iter().find(|c| c.name == "ttl").unwrap();
    let shown: Vec<_> = ttl.offences.iter().filter_map(|o| o.shown.as_ref()).collect();
    assert_eq!(shown.len(), SHOWN, "no more than ten are shown");
    assert!(ttl.offences.len() > SHOWN);
    assert_eq!((shown[0].point.as_str(), shown[0].direction), ("worker:eth0", Out));
    assert!(shown[0].text.contains("tcp [S]"));
    let comment = &judged.comments[&ttl.offences[0].packet.unwrap()];
    assert!(comment.starts_with("ttl: tcp request 1: ttl 64 at worker:eth0"), "{comment}");
    assert!(comment.ends_with("tcp request 1 to backend, sighting 3 of 6, +4 us"), "{comment}");
}

#[test]
fn damaged_captures_never_panic() {
    let mut seed = 11u64;
    let mut next = || {
        seed = datapath_types::mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15));
        seed as usize
    };
    for mode in MODES {
        for _ in 0..60 {
            let mut evidence = Paper::new(plan(mode)).run();
            let mut damaged = evidence.capture.clone();
            damaged.packets_mut().clear();
            for (i, packet) in evidence.capture.packets().iter().enumerate() {
                let mut bytes = evidence.capture.data(i).to_vec();
                if next() % 4 == 0 {
                    let at = next() % bytes.len();
                    bytes[at] = next() as u8;
                }
                if next() % 8 == 0 {
                    bytes.truncate(next() % bytes.len());
                }
                damaged.push(packet.point, packet.ts_ns, packet.direction, next() as u32 % 3000, &bytes);
            }
            evidence.capture = damaged;
            let judged = judge_and_explain(&evidence);
            assert_eq!(judged.judgement.verdict, Verdict::Fail, "a capture full of damage passed");
        }
    }
}

// Load balancers that are not ours.

/// The same packets, as if a cluster's own load balancer had moved them, and expected to be of a mode.
fn external(mut evidence: Evidence, mode: Mode) -> Evidence {
    let plan = &mut evidence.plan;
    (plan.mode, plan.provider, plan.datapath.external) = (mode, ProviderKind::Cluster, true);
    // It counts nothing for us.
    evidence.drops.clear();
    evidence
}

#[track_caller]
fn assert_external_passes(evidence: &Evidence) {
    let judgement = judge(evidence);
    let mut found = not_passed(&judgement);
    // Somebody else's backends do not say who they are.
    found.retain(|name, (status, _)| (*name, *status) != ("backend", Status::Skip));
    assert_eq!(found, BTreeMap::new());
    assert_eq!(judgement.verdict, Verdict::Pass);
}

#[test]
fn an_external_load_balancer_passes_where_it_does_what_is_expected() {
    for mode in MODES {
        assert_external_passes(&external(Paper::new(plan(mode)).run(), mode));
    }
}

/// A node without a backend may also say no.
#[test]
fn an_external_load_balancer_may_refuse() {
    let mut refused = Paper::new(plan(Mode::Local)).run();
    refused.refusals[0].outcome = Outcome::Failed { error: "cannot connect: connection refused".into() };
    assert_external_passes(&external(refused.clone(), Mode::Local));
    assert_fails(&refused, &["request-path"], "did not time out");
    refused.refusals[0].outcome = Outcome::Answered;
    let judged = not_passed(&judge(&external(refused, Mode::Local)));
    assert_eq!(judged["request-path"].0, Status::Fail);
}

/// What kube-proxy does, judged by what direct server return promises.
#[test]
fn source_nat_fails_where_direct_return_is_expected() {
    let judged = not_passed(&judge(&external(Paper::new(plan(Mode::Snat)).run(), Mode::Dsr)));
    let says = |check: &str, why: &str| {
        let (status, summary) = &judged[check];
        assert_eq!(*status, Status::Fail, "{check}");
        assert!(summary.contains(why), "{summary:?} does not say `{why}`");
    };
    says(
        "client-ip",
        "reports 172.18.0.3 as peer, expected 172.18.0.1: it is an address of the ingress node worker",
    );
    says("return-path", "a reply of tcp request 1 crossed the ingress node worker");
    says("l2-source", "reply frame from");
}

#[test]
fn direct_return_fails_where_source_nat_is_expected() {
    let judged = not_passed(&judge(&external(Paper::new(plan(Mode::Dsr)).run(), Mode::Snat)));
    let (status, summary) = &judged["client-ip"];
    assert_eq!(*status, Status::Fail);
    assert!(summary.contains("reports 172.18.0.1 as peer, expected 172.18.0.3"), "{summary}");
    assert_eq!(judged["return-path"].0, Status::Fail);
}

/// kube-proxy masquerades for a backend on the node that was asked as well, by the address of the pods' link.
#[test]
fn an_external_load_balancer_may_rewrite_the_source_on_the_backends_own_node() {
    let on_worker = || {
        let mut plan = plan(Mode::Snat);
        place_backend(&mut plan, "worker", false);
        // The pod keeps its address out of worker2's range: give worker that one.
        (plan.nodes[1].pod_cidr, plan.nodes[1].pod_gateway) =
            (plan.nodes[2].pod_cidr, plan.nodes[2].pod_gateway);
        plan.nodes[2].pod_cidr = "10.0.9.0/24".parse().unwrap();
        plan
    };
    assert_external_passes(&external(Paper::new(on_worker()).run(), Mode::Snat));
    let masqueraded = |address: std::net::Ipv4Addr| {
        let masquerade = move |s: &mut Step| {
            let inside = s.point == POD || s.point.ends_with(":lxc1");
            match (inside, s.reply) {
                (true, false) => s.packet.src.set_ip(address),
                (true, true) => s.packet.dst.set_ip(address),
                _ => {}
            }
        };
        let mut evidence = Paper::new(on_worker()).spoil(masquerade).run();
        for exchange in &mut evidence.exchanges {
            exchange.served_by.as_mut().unwrap().peer.set_ip(address);
        }
        evidence
    };
    let gateway = on_worker().nodes[1].pod_gateway;
    assert_external_passes(&external(masqueraded(gateway), Mode::Snat));
    assert_eq!(
        not_passed(&judge(&masqueraded(gateway)))["client-ip"].0,
        Status::Fail,
        "the bundled datapath promises the client's address there"
    );
    // Another node's address would be wrong all the same, and so would the client's where dsr is expected.
    let stranger = not_passed(&judge(&external(masqueraded(ip(4)), Mode::Snat)));
    assert_eq!(stranger["client-ip"].0, Status::Fail);
    let direct = not_passed(&judge(&external(masqueraded(gateway), Mode::Dsr)));
    assert_eq!(direct["client-ip"].0, Status::Fail);
}

/// A backend that does not say whom it saw: what its pod received is enough, and nothing else is.
#[test]
fn packets_at_the_pod_are_witness_enough() {
    let silent = |mut evidence: Evidence| {
        evidence.exchanges.iter_mut().for_each(|e| e.served_by = None);
        external(evidence, Mode::Snat)
    };
    assert_external_passes(&silent(Paper::new(plan(Mode::Snat)).run()));
    let unseen = silent(spoiled(Mode::Snat, |s| s.keep = s.point != POD));
    assert_eq!(not_passed(&judge(&unseen))["client-ip"].0, Status::Inconclusive);
}

/// Somebody else's pods lie in many ranges, and nodes may lie between them.
#[test]
fn a_pod_of_a_foreign_cluster_is_known_by_its_nodes_range() {
    let mut kept = external(Paper::new(plan(Mode::Snat)).run(), Mode::Snat);
    kept.plan.pod_cidr = "0.0.0.0/0".parse().unwrap();
    assert_external_passes(&kept);
    let leaked = spoiled(Mode::Snat, |s| {
        if s.reply && s.is(CLIENT, In) && s.number == 1 {
            s.packet.src.set_ip(std::net::Ipv4Addr::new(10, 0, 1, 77));
        }
    });
    let judged = not_passed(&judge(&external(leaked, Mode::Snat)));
    assert_eq!(judged["reply-source"].0, Status::Fail);
}

/// What the client sends a second time, on its whole way; between the nodes it has the option if `tagged`.
fn sent_again(what: What, tagged: bool, alter: impl Fn(&mut Step)) -> Evidence {
    let mut first = Vec::new();
    let again = |step: &mut Step| {
        if step.reply || step.exchange != 1 || step.what != what {
            return Vec::new();
        }
        first.push(step.clone());
        if !step.is(POD, In) {
            return Vec::new();
        }
        let mut second = std::mem::take(&mut first);
        for step in &mut second {
            step.packet.id = step.packet.id.wrapping_add(3);
            if tagged && (step.is(INGRESS, Out) || step.is(HOME, In)) {
                step.packet.options = lab::option(&plan(Mode::Dsr));
            }
            alter(step);
        }
        second
    };
    Paper::new(plan(Mode::Dsr)).spoil_adding(again).run()
}

#[test]
fn what_a_client_sends_again_may_carry_the_frontend() {
    for what in [What::Data, What::Fin] {
        for tagged in [true, false] {
            assert_pass(&sent_again(what, tagged, |_| ()));
        }
        let wrong = sent_again(what, true, |step| {
            if let Some(last) = step.packet.options.last_mut() {
                *last ^= 1;
            }
        });
        assert_fails(&wrong, &["carrier"], "the option says");
    }
    // What is sent for the first time may not.
    let first = spoiled(Mode::Dsr, |s| {
        if !s.reply && s.what == What::Data && (s.is(INGRESS, Out) || s.is(HOME, In)) {
            s.packet.options = lab::option(&plan(Mode::Dsr));
        }
    });
    assert_fails(&first, &["carrier"], "a packet that must have no option has one");
}
