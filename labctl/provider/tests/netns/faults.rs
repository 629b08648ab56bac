//! Every fault disturbs what it says, where it says.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use labctl_provider::{Host, Lab, NetnsProvider};
use serde_json::{Value, json};

use crate::isolation::{isolated, report};
use crate::lab::{down, ip, plan, plan_with, provider, up};
use crate::packets::echo;

fn with(fault: Value, on: Value) -> (NetnsProvider, Lab) {
    let provider = provider();
    let lab = up(&provider, &plan_with("dsr", json!([{"fault": fault, "on": on}])));
    assert_eq!(lab.check(), []);
    (provider, lab)
}

fn with_offloads(on: bool) -> (NetnsProvider, Lab) {
    let provider = provider();
    let mut plan = plan_with("dsr", json!([]));
    plan.offloads = on;
    let lab = up(&provider, &plan);
    assert_eq!(lab.check(), []);
    (provider, lab)
}

fn host<'a>(lab: &'a Lab, name: &str) -> &'a Host {
    lab.host(name).expect("the host is there")
}

fn rp_filter(lab: &Lab, name: &str, interface: &str) -> String {
    let path = format!("/proc/sys/net/ipv4/conf/{interface}/rp_filter");
    let read = host(lab, name).enter(|| fs::read_to_string(path)).expect("the host can be entered");
    read.expect("the setting can be read").trim().to_owned()
}

#[test]
fn rp_filter_strict() {
    isolated("faults::rp_filter_strict", || {
        let (provider, lab) = with(json!({"name": "rp-filter-strict"}), json!({"nodes": ["worker2"]}));
        for interface in ["all", "default", "lo", "eth0", "lxc-web-1"] {
            assert_eq!(rp_filter(&lab, "worker2", interface), "1", "{interface}");
        }
        let untouched = up(&provider, &plan("plain"));
        assert_eq!(rp_filter(&lab, "worker", "all"), rp_filter(&untouched, "worker", "all"));
        down(&provider, "plain");
        down(&provider, "dsr");
        let (provider, lab) = with(json!({"name": "rp-filter-strict"}), json!("all"));
        for name in ["client", "control-plane", "worker", "worker2"] {
            assert_eq!(rp_filter(&lab, name, "eth0"), "1", "{name}");
        }
        down(&provider, "dsr");
    });
}

fn rules(lab: &Lab, name: &str) -> String {
    let output = host(lab, name).command("nft").args(["list", "ruleset"]).output().expect("nft starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("nft prints text")
}

#[test]
fn drop_invalid() {
    isolated("faults::drop_invalid", || {
        let (provider, lab) = with(json!({"name": "drop-invalid"}), json!({"nodes": ["worker"]}));
        let listed = rules(&lab, "worker");
        assert_eq!(listed.matches("ct state invalid counter").count(), 2, "{listed}");
        assert_eq!(rules(&lab, "worker2"), "");
        echo(host(&lab, "worker"), host(&lab, "web-1")).expect("valid packets pass");
        down(&provider, "dsr");
    });
}

#[test]
fn forward_drop() {
    isolated("faults::forward_drop", || {
        let (provider, lab) = with(json!({"name": "forward-drop"}), json!("all"));
        for name in ["control-plane", "worker", "worker2"] {
            assert!(rules(&lab, name).contains("policy drop"), "{name}");
        }
        assert_eq!(rules(&lab, "client"), "");
        echo(host(&lab, "worker2"), host(&lab, "web-1")).expect("what is not forwarded passes");
        let error = echo(host(&lab, "worker"), host(&lab, "web-1")).expect_err("forwarding is dropped");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        down(&provider, "dsr");
    });
}

/// Sends a datagram with eight bytes of IPv4 options; whether it arrives.
fn passes_with_options(from: &Host, to: &Host) -> bool {
    let bind =
        |h: &Host| h.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))).expect("entered").expect("bound");
    let (client, server) = (bind(from), bind(to));
    let options: [u8; 8] = [0x9a, 8, 0x7d, 0, 172, 18, 0, 3];
    // SAFETY: the buffer lives through the call and its length is given.
    let set = unsafe {
        libc::setsockopt(client.as_raw_fd(), libc::IPPROTO_IP, libc::IP_OPTIONS, options.as_ptr().cast(), 8)
    };
    assert_eq!(set, 0, "{}", io::Error::last_os_error());
    server.set_read_timeout(Some(Duration::from_millis(300))).expect("a timeout can be set");
    let port = server.local_addr().expect("it is bound").port();
    client.send_to(b"x", (to.address().expect("an address"), port)).expect("it can be sent");
    server.recv(&mut [0; 4]).is_ok()
}

#[test]
fn drop_options() {
    isolated("faults::drop_options", || {
        let (provider, lab) = with(json!({"name": "drop-options"}), json!({"nodes": ["worker2"]}));
        let (client, worker, worker2) = (lab.client(), host(&lab, "worker"), host(&lab, "worker2"));
        echo(client, worker2).expect("plain packets pass");
        assert!(passes_with_options(client, worker), "another node's packets pass");
        assert!(passes_with_options(worker2, client), "packets from the node pass");
        assert!(!passes_with_options(client, worker2), "packets with options must not pass");
        down(&provider, "dsr");
        let (provider, lab) = with(json!({"name": "drop-options"}), json!("all"));
        assert!(!passes_with_options(host(&lab, "worker"), lab.client()));
        down(&provider, "dsr");
    });
}

/// Offloads that `ethtool -k` reports as on, of those that can be changed.
fn offloads(host: &Host, interface: &str) -> Option<Vec<String>> {
    let output = host.command("ethtool").args(["-k", interface]).output().ok()?;
    let text = String::from_utf8(output.stdout).expect("ethtool prints text");
    let on =
        text.lines().filter(|l| l.ends_with(": on")).map(|l| l.trim().trim_end_matches(": on").to_owned());
    let words = ["checksum", "segmentation", "gso", "receive-offload", "gro"];
    Some(on.filter(|name| words.iter().any(|w| name.contains(w))).collect())
}

#[test]
fn links_are_wires_unless_offloads_are_asked_for() {
    isolated("faults::links_are_wires_unless_offloads_are_asked_for", || {
        let (provider, lab) = with_offloads(false);
        if offloads(lab.client(), "eth0").is_none() {
            report("skipped the look at offloads: ethtool is not installed");
            return down(&provider, "dsr");
        }
        for host in lab.hosts() {
            for interface in host.interfaces.iter().filter(|i| i.peer.is_some()) {
                assert_eq!(offloads(host, &interface.name), Some(vec![]), "{}:{}", host.name, interface.name);
            }
        }
        echo(lab.client(), host(&lab, "worker2")).expect("packets pass without offloads");
        down(&provider, "dsr");
        let (provider, lab) = with_offloads(true);
        assert_ne!(offloads(lab.client(), "eth0"), Some(vec![]));
        down(&provider, "dsr");
    });
}

#[test]
fn pod_mtu() {
    isolated("faults::pod_mtu", || {
        let (provider, lab) = with(json!({"name": "pod-mtu", "mtu": 1280}), json!({"nodes": ["worker2"]}));
        let mtu = |name: &str, interface: &str| {
            ip(host(&lab, name).namespace(), &["link", "show", interface])[0]["mtu"].clone()
        };
        assert_eq!(mtu("web-1", "eth0"), 1280);
        assert_eq!(mtu("worker2", "lxc-web-1"), 1280);
        assert_eq!(mtu("worker2", "eth0"), 1500);
        down(&provider, "dsr");
    });
}
