//! Captures that somebody else took: what is worked out from packets alone, and that a pass is never made of it without
//! somebody who vouches.

#[expect(dead_code, reason = "this binary needs only part of the lab")]
mod lab;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use lab::{CLIENT, HOME, INGRESS, Paper, Step, ip, mac_of, plan, vip};
use labctl_model::{Mode, Protocol};
use labctl_verdict::foreign::{Given, InferError, Inferred, infer};
use labctl_verdict::{Judgement, Origin, Status, Verdict, judge};
use labctl_wire::Direction::{self, In};
use labctl_wire::{CaptureFile, HostKind};

const MODES: [Mode; 4] = [Mode::Dsr, Mode::Snat, Mode::Hybrid, Mode::Local];

/// What `tcpdump -w` leaves of a run: no canaries, no directions, no counters, points known by file name alone.
fn files(capture: &CaptureFile, points: &[&str]) -> CaptureFile {
    let mut files = CaptureFile::default();
    for (index, info) in capture.points.iter().enumerate() {
        let name = info.point.to_string();
        if !points.contains(&name.as_str()) {
            continue;
        }
        let mut info = info.clone();
        (info.live, info.received, info.dropped, info.mac) = (false, None, None, None);
        info.point.kind = HostKind::Node;
        files.points.push(info);
        let to = files.points.len() - 1;
        for (packet, captured) in capture.packets().iter().enumerate().filter(|(_, p)| p.point == index) {
            let ports = capture.headers(packet).sockets().map(|(a, b)| [a.port(), b.port()]);
            let is_canary = ports.is_some_and(|ports| ports.contains(&9));
            if !is_canary && capture.headers(packet).icmp().is_none() {
                files.push(
                    to,
                    captured.ts_ns,
                    Direction::Unknown,
                    captured.original_len,
                    capture.data(packet),
                );
            }
        }
    }
    files.sort();
    files
}

fn taken(mode: Mode, change: impl FnMut(&mut Step), points: &[&str]) -> CaptureFile {
    files(&Paper::new(plan(mode)).spoil(change).run().capture, points)
}

fn status(judgement: &Judgement, name: &str) -> (Status, String) {
    let check = judgement.checks.iter().find(|c| c.name == name).unwrap();
    (check.status, check.summary.clone())
}

/// A line for each check.
fn told(judgement: &Judgement) -> String {
    judgement
        .checks
        .iter()
        .map(|c| {
            format!(
                "{:?} {} {} {:?} {:?}\n",
                c.status,
                c.name,
                c.summary,
                c.doubts,
                c.offences.iter().take(2).map(|o| &o.why).collect::<Vec<_>>()
            )
        })
        .collect()
}

fn failed(judgement: &Judgement) -> BTreeSet<&str> {
    judgement.checks.iter().filter(|c| c.status == Status::Fail).map(|c| c.name).collect()
}

fn given(complete: &[&str]) -> Given {
    Given { complete: complete.iter().map(|host| (*host).to_owned()).collect(), ..Given::default() }
}

const UPLINKS: [&str; 3] = [CLIENT, INGRESS, HOME];
const ALL: [&str; 6] = [CLIENT, "control-plane:eth0", INGRESS, HOME, "web-1:eth0", "worker2:lxc1"];
const HOSTS: [&str; 5] = ["client", "control-plane", "worker", "worker2", "web-1"];

#[test]
fn every_mode_is_known_from_three_plain_files_and_nothing_is_taken_for_proven() {
    for mode in [Mode::Dsr, Mode::Snat, Mode::Hybrid] {
        let Inferred { evidence, notes } = infer(taken(mode, |_| (), &UPLINKS), &Given::default()).unwrap();
        assert_eq!(evidence.plan.mode, mode, "{notes:#?}");
        assert_eq!(evidence.exchanges.len(), 4);
        assert_eq!(evidence.plan.client.address, ip(1));
        let judgement = judge(&evidence);
        assert_eq!(judgement.verdict, Verdict::Inconclusive, "{mode}: {}", told(&judgement));
        for seen in ["handshake", "client-ip", "reply-source", "carrier", "ttl", "l2-source", "unaltered"] {
            let (status, summary) = status(&judgement, seen);
            assert_eq!(status, Status::Pass, "{mode} {seen}: {summary}");
        }
        for absence in ["return-path", "request-path", "conservation", "no-strangers", "no-resets", "loop"] {
            let (status, summary) = status(&judgement, absence);
            assert_eq!(status, Status::Inconclusive, "{mode} {absence}: {summary}");
        }
    }
}

#[test]
fn whoever_vouches_for_every_capture_gets_the_verdict_of_a_run() {
    for mode in MODES {
        let points = if mode == Mode::Local {
            vec![CLIENT, "control-plane:eth0", INGRESS, "web-1:eth0", "worker:lxc1"]
        } else {
            ALL.to_vec()
        };
        let hosts: Vec<_> =
            HOSTS.into_iter().filter(|h| points.iter().any(|p| p.starts_with(&format!("{h}:")))).collect();
        let Inferred { evidence, notes } = infer(taken(mode, |_| (), &points), &given(&hosts)).unwrap();
        assert_eq!(evidence.plan.mode, mode, "{notes:#?}");
        let judgement = judge(&evidence);
        assert_eq!(judgement.verdict, Verdict::Pass, "{mode}: {notes:#?} {}", told(&judgement));
    }
}

#[test]
fn what_is_seen_to_be_wrong_fails_whoever_captured_it() {
    let crossed = taken(Mode::Dsr, |_| (), &UPLINKS);
    assert_eq!(failed(&judge(&infer(crossed, &Given::default()).unwrap().evidence)), BTreeSet::new());
    let leaking = taken(
        Mode::Dsr,
        |s| {
            if s.left_home() && s.reply {
                s.packet.src = "10.0.1.108:8080".parse().unwrap();
            }
        },
        &UPLINKS,
    );
    assert!(failed(&judge(&infer(leaking, &Given::default()).unwrap().evidence)).contains("reply-source"));
    let wrong_option = taken(
        Mode::Dsr,
        |s| {
            if let Some(last) = s.packet.options.last_mut() {
                *last ^= 1;
            }
        },
        &UPLINKS,
    );
    assert_eq!(
        failed(&judge(&infer(wrong_option, &Given::default()).unwrap().evidence)),
        BTreeSet::from(["carrier"])
    );
}

/// An outer packet between the nodes, in each tunnel that is known.
fn wrapped(kind: &str, frame: &[u8]) -> Vec<u8> {
    let (link, inner) = frame.split_at(14);
    let option: &[u8] = &[0x01, 0x4b, 0x81, 2, 172, 18, 0, 3, 0x7d, 0, 0, 0];
    let (protocol, port, head): (u8, u16, Vec<u8>) = match kind {
        "IPIP" => (4, 0, vec![]),
        "VXLAN" => (17, 8472, [&[8, 0, 0, 0, 0, 0, 1, 0][..], link].concat()),
        "Geneve" => (17, 6081, [&[3, 0, 0x65, 0x58, 0, 0, 1, 0][..], option, link].concat()),
        _ => (17, 6080, vec![0, 4, 0, 0]),
    };
    let mut payload = [head, inner.to_vec()].concat();
    if protocol == 17 {
        let length = (payload.len() as u16 + 8).to_be_bytes();
        payload =
            [&[0xc0, 0, (port >> 8) as u8, port as u8, length[0], length[1], 0, 0][..], &payload].concat();
    }
    let total = (payload.len() as u16 + 20).to_be_bytes();
    let outer =
        [0x45, 0, total[0], total[1], 0, 0, 0x40, 0, 64, protocol, 0, 0, 172, 18, 0, 3, 172, 18, 0, 2];
    [link, &outer, &payload].concat()
}

#[test]
fn packets_in_tunnels_are_judged_by_what_they_carry() {
    for kind in ["IPIP", "VXLAN", "Geneve", "GUE"] {
        let mut capture = taken(Mode::Dsr, |s| s.packet.options.clear(), &UPLINKS);
        for index in 0..capture.packets().len() {
            let between = capture.headers(index).sockets().is_some_and(|(_, dst)| dst.port() == 8080);
            if between {
                let bytes = wrapped(kind, capture.data(index));
                capture.replace(index, &bytes);
            }
        }
        let Inferred { evidence, notes } = infer(capture, &Given::default()).unwrap();
        let judgement = judge(&evidence);
        assert_eq!(evidence.plan.mode, Mode::Dsr, "{kind}: {notes:#?}");
        assert_eq!(failed(&judgement), BTreeSet::new(), "{kind}: {}", told(&judgement));
        let names = if kind == "Geneve" { ", with an option that names 172.18.0.3:32000" } else { "" };
        let expected = format!("in {kind} from 172.18.0.3 to 172.18.0.2{names}: judged by what they carry");
        assert!(notes.iter().any(|note| note.ends_with(&expected)), "{kind}: {notes:#?}");
        assert!(status(&judgement, "carrier").1.contains("another way"), "{}", told(&judgement));
    }
}

#[test]
fn damaged_tunnels_do_not_harm_the_reader() {
    let capture = taken(Mode::Dsr, |_| (), &UPLINKS);
    let request = (0..capture.packets().len()).find(|i| capture.data(*i).len() > 60).unwrap();
    for kind in ["IPIP", "VXLAN", "Geneve", "GUE"] {
        let whole = wrapped(kind, capture.data(request));
        for cut in 14..whole.len() {
            let mut cut_off = capture.clone();
            cut_off.replace(request, &whole[..cut]);
            let _ = infer(cut_off, &Given::default()).map(|found| judge(&found.evidence));
        }
    }
}

#[test]
fn hosts_need_no_telling_names() {
    let mut capture = taken(Mode::Dsr, |_| (), &UPLINKS);
    for (info, name) in capture.points.iter_mut().zip(["a", "b", "c"]) {
        info.point.host = name.to_owned();
    }
    let Inferred { evidence, .. } = infer(capture, &Given::default()).unwrap();
    assert_eq!(evidence.plan.client.name, "a");
    let named: BTreeMap<_, _> = evidence.plan.nodes.iter().map(|n| (n.name.as_str(), n.address)).collect();
    assert_eq!(named["b"], ip(3));
    assert_eq!(evidence.plan.backends().next().map(|(node, _)| node.name.as_str()), Some("c"));
}

#[test]
fn a_client_alone_says_what_it_saw() {
    let Inferred { evidence, notes } = infer(taken(Mode::Dsr, |_| (), &[CLIENT]), &Given::default()).unwrap();
    assert!(notes.iter().any(|n| n.contains("no request was seen before and behind")), "{notes:#?}");
    let judgement = judge(&evidence);
    assert_eq!(judgement.verdict, Verdict::Inconclusive, "{}", told(&judgement));
    assert_eq!(failed(&judgement), BTreeSet::new());
    assert_eq!(status(&judgement, "handshake").0, Status::Pass);
}

#[test]
fn clocks_of_different_machines_are_brought_in_order() {
    for host in ["client", "worker", "worker2"] {
        for shift in [-3_000_000_000_i64, -1_500, 40_000_000] {
            let mut capture = taken(Mode::Dsr, |_| (), &UPLINKS);
            let point = capture.points.iter().position(|p| p.point.host == host).unwrap();
            for packet in capture.packets_mut().iter_mut().filter(|p| p.point == point) {
                packet.ts_ns = packet.ts_ns.checked_add_signed(shift).unwrap();
            }
            capture.sort();
            let Inferred { evidence, notes } = infer(capture, &Given::default()).unwrap();
            assert_eq!(evidence.plan.mode, Mode::Dsr, "{notes:#?}");
            let judgement = judge(&evidence);
            assert_eq!(failed(&judgement), BTreeSet::new(), "{host} {shift}: {}", told(&judgement));
            let Origin::Files(vouched) = &evidence.origin else { panic!("files") };
            assert_eq!(vouched.unordered, None);
        }
    }
}

#[test]
fn a_capture_whose_packets_have_one_time_orders_nothing() {
    let mut capture = taken(Mode::Dsr, |_| (), &ALL);
    for packet in capture.packets_mut() {
        packet.ts_ns = 0;
    }
    let Inferred { evidence, .. } = infer(capture, &given(&HOSTS)).unwrap();
    let judgement = judge(&evidence);
    assert_eq!(judgement.verdict, Verdict::Inconclusive, "{}", told(&judgement));
    assert!(status(&judgement, "return-path").1.contains("same time"), "{}", told(&judgement));
}

#[test]
fn the_same_capture_twice_is_refused() {
    let capture = taken(Mode::Dsr, |_| (), &UPLINKS);
    let mut twice = CaptureFile::merge([capture.clone(), capture]);
    for (index, info) in twice.points.iter_mut().enumerate() {
        info.point.host = format!("{}{index}", info.point.host);
    }
    let error = infer(twice, &Given::default()).unwrap_err();
    assert!(matches!(error, InferError::SamePlace { .. } | InferError::Ambiguous { .. }), "{error}");
}

#[test]
fn copies_of_packets_are_no_loop_and_no_proof() {
    let whole = taken(Mode::Dsr, |_| (), &ALL);
    let mut mirrored = CaptureFile::default();
    mirrored.points.clone_from(&whole.points);
    for (index, packet) in whole.packets().iter().enumerate() {
        for late in [0, 700] {
            let at = packet.ts_ns + late;
            mirrored.push(packet.point, at, packet.direction, packet.original_len, whole.data(index));
        }
    }
    mirrored.sort();
    let Inferred { evidence, .. } = infer(mirrored, &given(&HOSTS)).unwrap();
    let judgement = judge(&evidence);
    assert_eq!(judgement.verdict, Verdict::Inconclusive, "{}", told(&judgement));
    assert!(status(&judgement, "loop").1.contains("packets twice"), "{}", told(&judgement));
}

#[test]
fn a_file_cut_short_proves_nothing_whoever_vouches() {
    let given =
        Given { shortfalls: BTreeMap::from([("worker".to_owned(), "it ends".to_owned())]), ..given(&HOSTS) };
    let judgement = judge(&infer(taken(Mode::Dsr, |_| (), &ALL), &given).unwrap().evidence);
    assert_eq!(judgement.verdict, Verdict::Inconclusive, "{}", told(&judgement));
    assert!(
        status(&judgement, "return-path").1.contains("worker:eth0 is not whole: it ends"),
        "{}",
        told(&judgement)
    );
}

#[test]
fn other_traffic_of_the_hosts_is_left_out() {
    let mut capture = taken(Mode::Dsr, |_| (), &UPLINKS);
    // The client's ssh to the node, from a port that it uses for a request too.
    let (client, node) = ("172.18.0.1:43210".parse().unwrap(), "172.18.0.3:22".parse().unwrap());
    let syn = lab::build::Packet::tcp(client, node, lab::build::SYN, 77, 0);
    let bytes = lab::link(syn, mac_of(ip(1)), mac_of(ip(3))).bytes();
    for point in 0..2 {
        let at = capture.packets().last().unwrap().ts_ns + 1_000;
        capture.push(point, at, Direction::Unknown, bytes.len() as u32, &bytes);
    }
    let Inferred { evidence, .. } = infer(capture, &Given::default()).unwrap();
    assert_eq!(failed(&judge(&evidence)), BTreeSet::new());
}

#[test]
fn what_is_given_goes_before_what_is_seen() {
    let capture = || taken(Mode::Dsr, |_| (), &UPLINKS);
    let wrong = Given { mode: Some(Mode::Snat), ..Given::default() };
    let Inferred { evidence, notes } = infer(capture(), &wrong).unwrap();
    assert!(notes.iter().any(|n| n.contains("judged as snat, as was said")), "{notes:#?}");
    assert!(failed(&judge(&evidence)).contains("return-path"));
    let nobody = Given { client: Some(Ipv4Addr::new(9, 9, 9, 9)), ..Given::default() };
    let error = infer(capture(), &nobody).unwrap_err().to_string();
    assert_eq!(error, "find a request of 9.9.9.9 in these files: clients are 172.18.0.1");
    let nowhere = Given { frontend: Some("172.18.0.3:1".parse().unwrap()), ..Given::default() };
    let error = infer(capture(), &nowhere).unwrap_err().to_string();
    assert!(error.starts_with("find a request to 172.18.0.3:1 in these files: asked are"), "{error}");
    let typo = given(&["worker3"]);
    let error = infer(capture(), &typo).unwrap_err().to_string();
    assert_eq!(error, "find host worker3 in these files: hosts are client, worker, worker2");
    let found = Given { frontend: Some(vip()), ..Given::default() };
    assert!(infer(capture(), &found).is_ok());
    assert_eq!(
        infer(CaptureFile::default(), &Given::default()).unwrap_err().to_string(),
        "find a request: the files have no TCP SYN and no UDP datagram over IPv4"
    );
}

#[test]
fn a_lost_packet_is_no_proof_of_a_loss_without_somebody_who_vouches() {
    let lose = |s: &mut Step| {
        if s.reply && s.exchange == 1 && s.number == 5 && s.is(CLIENT, In) {
            s.keep = false;
        }
    };
    let judged =
        |complete: &[&str]| judge(&infer(taken(Mode::Dsr, lose, &ALL), &given(complete)).unwrap().evidence);
    assert_eq!(failed(&judged(&[])), BTreeSet::new());
    assert!(failed(&judged(&HOSTS)).contains("conservation"));
}

#[test]
fn one_protocol_alone_is_judged() {
    for keep in [Protocol::Tcp, Protocol::Udp] {
        let drop = |s: &mut Step| s.keep = (s.exchange < 3) == (keep == Protocol::Tcp);
        let Inferred { evidence, notes } =
            infer(taken(Mode::Dsr, drop, &UPLINKS), &Given::default()).unwrap();
        assert_eq!(evidence.plan.mode, Mode::Dsr, "{keep}: {notes:#?}");
        assert_eq!(failed(&judge(&evidence)), BTreeSet::new(), "{keep}");
    }
}
