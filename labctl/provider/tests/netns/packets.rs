//! Packets travel where the plan says, and nowhere else.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use labctl_provider::{Host, Lab};

use crate::isolation::isolated;
use crate::lab::{down, machine, plan, provider, run, up};

const DEADLINE: Duration = Duration::from_secs(2);

fn bind(host: &Host) -> UdpSocket {
    let socket = host.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))).expect("the host can be entered");
    let socket = socket.expect("a port is free");
    socket.set_read_timeout(Some(DEADLINE)).expect("a timeout can be set");
    socket
}

/// Sends a datagram there and back, and returns the sender that the receiver saw.
pub(crate) fn echo(from: &Host, to: &Host) -> io::Result<SocketAddr> {
    let (client, server) = (bind(from), bind(to));
    let target = (to.address().expect("the host has an address"), server.local_addr()?.port());
    client.send_to(b"question", target)?;
    let mut buffer = [0; 16];
    let (len, sender) = server.recv_from(&mut buffer)?;
    assert_eq!(&buffer[..len], b"question");
    server.send_to(b"answer", sender)?;
    let len = client.recv(&mut buffer)?;
    assert_eq!(&buffer[..len], b"answer");
    Ok(sender)
}

fn host<'a>(lab: &'a Lab, name: &str) -> &'a Host {
    lab.host(name).expect("the host is there")
}

fn check_paths(lab: &Lab) {
    for (from, to) in [
        ("client", "control-plane"),
        ("client", "worker"),
        ("worker", "client"),
        ("worker", "worker2"),
        ("worker", "web-1"),
        ("worker2", "web-1"),
        ("web-1", "worker"),
        ("web-1", "web-2-with-a-long-name"),
    ] {
        let (from, to) = (host(lab, from), host(lab, to));
        let sender = echo(from, to).unwrap_or_else(|e| panic!("{} to {}: {e}", from.name, to.name));
        // From its own node a pod sees the gateway, as with the ptp plugin.
        if (from.name.as_str(), to.name.as_str()) != ("worker2", "web-1") {
            assert_eq!(Some(sender.ip()), from.address().map(Into::into), "{} to {}", from.name, to.name);
        }
    }
}

#[test]
fn first_packets_arrive() {
    isolated("packets::first_packets_arrive", || {
        let provider = provider();
        // No retries: `up` says that links are ready, so the very first datagram must arrive.
        for _ in 0..10 {
            let lab = up(&provider, &plan("dsr"));
            check_paths(&lab);
            down(&provider, "dsr");
        }
    });
}

#[test]
fn client_has_no_way_to_pods() {
    isolated("packets::client_has_no_way_to_pods", || {
        let provider = provider();
        let lab = up(&provider, &plan("dsr"));
        let error = echo(lab.client(), host(&lab, "web-1")).expect_err("there is no route");
        assert_eq!(error.kind(), ErrorKind::NetworkUnreachable, "{error}");
        down(&provider, "dsr");
    });
}

#[test]
fn labs_with_the_same_addresses_live_side_by_side() {
    isolated("packets::labs_with_the_same_addresses_live_side_by_side", || {
        let provider = provider();
        let before = machine();
        let (one, two) = (up(&provider, &plan("one")), up(&provider, &plan("two")));
        check_paths(&one);
        check_paths(&two);
        assert_ne!(one.client().uplink().map(|u| u.mac), two.client().uplink().map(|u| u.mac));
        down(&provider, "one");
        assert_eq!(two.check(), []);
        check_paths(&two);
        down(&provider, "two");
        assert_eq!(machine(), before);
    });
}

#[test]
fn nothing_is_sent_unasked() {
    isolated("packets::nothing_is_sent_unasked", || {
        let provider = provider();
        let lab = up(&provider, &plan("dsr"));
        echo(lab.client(), host(&lab, "worker")).expect("the echo comes back");
        // Nobody has spoken to control-plane: only the client's ARP broadcast has come by.
        let counters = run("ip", &["-n", "labctl-dsr-control-plane", "-j", "-s", "link", "show", "eth0"]);
        let counters: serde_json::Value = serde_json::from_str(&counters).expect("ip prints JSON");
        let packets = |way: &str| counters[0]["stats64"][way]["packets"].as_u64().expect("a number");
        assert_eq!(packets("tx"), 0);
        assert_eq!(packets("rx"), 1);
        down(&provider, "dsr");
    });
}
