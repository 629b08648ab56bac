//! What is up is what was planned, as iproute2 sees it.

use std::fs;
use std::time::Instant;

use labctl_provider::{HostKind, Problem};
use serde_json::Value;

use crate::isolation::{isolated, report};
use crate::lab::{HOSTS, down, ip, machine, plan, provider, run, up};

#[test]
fn hosts_links_and_addresses() {
    isolated("topology::hosts_links_and_addresses", || {
        let provider = provider();
        let lab = up(&provider, &plan("dsr"));
        assert_eq!(lab.hosts().iter().map(|h| h.name.as_str()).collect::<Vec<_>>(), HOSTS);
        let names = run("ip", &["netns", "list"]);
        for host in lab.hosts() {
            assert!(names.lines().any(|l| l.split(' ').next() == Some(host.namespace())), "{names}");
            let links = ip(host.namespace(), &["link"]);
            let links = links.as_array().expect("a list");
            assert_eq!(links.len(), host.interfaces.len() + 1, "{} has other links: {links:?}", host.name);
            for interface in &host.interfaces {
                let link = links.iter().find(|l| l["ifname"] == *interface.name).expect("the link is there");
                assert_eq!(link["ifindex"], interface.index);
                assert_eq!(link["address"], interface.mac.to_string());
                assert_eq!(link["mtu"], interface.mtu);
                assert_eq!(link["operstate"], "UP", "{}:{}", host.name, interface.name);
                assert!(interface.name.len() <= 15);
            }
        }
        assert_eq!(lab.check(), []);
        down(&provider, "dsr");
    });
}

#[test]
fn bridge_is_quiet_and_forwards() {
    isolated("topology::bridge_is_quiet_and_forwards", || {
        let provider = provider();
        let lab = up(&provider, &plan("dsr"));
        let links = ip(lab.switch().expect("a netns lab has one").namespace(), &["-d", "link"]);
        let bridge = &find(&links, "br0")["linkinfo"]["info_data"];
        for option in ["stp_state", "forward_delay", "mcast_snooping"] {
            assert_eq!(bridge[option], 0, "{option}");
        }
        // Absent on a kernel that cannot filter.
        assert_eq!(bridge["vlan_filtering"].as_u64().unwrap_or(0), 0);
        for port in lab.switch().expect("a netns lab has one").interfaces.iter().filter(|i| i.peer.is_some())
        {
            let link = find(&links, &port.name);
            assert_eq!(link["master"], "br0");
            assert_eq!(link["linkinfo"]["info_slave_data"]["state"], "forwarding");
        }
        down(&provider, "dsr");
    });
}

#[test]
fn routes_and_addresses() {
    isolated("topology::routes_and_addresses", || {
        let provider = provider();
        let lab = up(&provider, &plan("dsr"));
        let side = |pod: &str| lab.pod_interface(pod).expect("the pod has a veth").1.name.clone();
        let (one, two) = (side("web-1"), side("web-2-with-a-long-name"));
        assert_eq!(one, "lxc-web-1");
        assert_eq!(routes(&lab, "client"), ["172.18.0.0/16 dev eth0 src 172.18.0.1"]);
        assert_eq!(
            routes(&lab, "worker"),
            [
                "10.0.0.0/24 via 172.18.0.4 dev eth0",
                "10.0.1.0/24 via 172.18.0.2 dev eth0",
                "172.18.0.0/16 dev eth0 src 172.18.0.3"
            ]
        );
        let mut worker2 = vec![
            "10.0.0.0/24 via 172.18.0.4 dev eth0".to_owned(),
            format!("10.0.1.108 dev {one}"),
            format!("10.0.1.109 dev {two}"),
            "10.0.2.0/24 via 172.18.0.3 dev eth0".to_owned(),
            "172.18.0.0/16 dev eth0 src 172.18.0.2".to_owned(),
        ];
        worker2.sort();
        assert_eq!(routes(&lab, "worker2"), worker2);
        assert_eq!(routes(&lab, "web-1"), ["10.0.1.1 dev eth0", "default via 10.0.1.1 dev eth0"]);
        assert_eq!(addresses(&lab, "client"), ["127.0.0.1/8 lo", "172.18.0.1/16 eth0"]);
        assert_eq!(addresses(&lab, "web-1"), ["10.0.1.108/32 eth0", "127.0.0.1/8 lo"]);
        let mut node = vec![format!("10.0.1.1/32 {one}"), format!("10.0.1.1/32 {two}")];
        node.extend(["127.0.0.1/8 lo".to_owned(), "172.18.0.2/16 eth0".to_owned()]);
        node.sort();
        assert_eq!(addresses(&lab, "worker2"), node);
        assert_eq!(addresses(&lab, "switch"), ["127.0.0.1/8 lo"]);
        down(&provider, "dsr");
    });
}

#[test]
fn settings_of_each_host() {
    isolated("topology::settings_of_each_host", || {
        let provider = provider();
        let before = machine();
        let lab = up(&provider, &plan("dsr"));
        for host in lab.hosts() {
            let read = |key: &str| fs::read_to_string(format!("/proc/sys/net/{key}")).unwrap_or_default();
            let (forwards, ipv6) = host
                .enter(|| (read("ipv4/ip_forward"), read("ipv6/conf/all/disable_ipv6")))
                .expect("the host can be entered");
            let expected = if host.kind == HostKind::Node { "1\n" } else { "0\n" };
            assert_eq!(forwards, expected, "ip_forward of {}", host.name);
            assert_ne!(ipv6, "0\n", "IPv6 of {}", host.name);
        }
        // Two nodes have the folders of pins, nobody else.
        for node in lab.nodes() {
            assert!(lab.bpf_dir(&node.name).is_dir());
        }
        assert!(lab.log_dir().is_dir());
        assert_eq!(
            run("stat", &["-f", "-c", "%T", &lab.bpf_dir("worker").to_string_lossy()]).trim(),
            "bpf_fs"
        );
        // A command and a role run inside; the caller stays outside.
        let output =
            lab.client().command("ip").args(["-o", "link", "show", "eth0"]).output().expect("ip runs");
        let mac = lab.client().uplink().expect("it has one").mac.to_string();
        assert!(String::from_utf8_lossy(&output.stdout).contains(&mac), "{output:?}");
        assert_eq!(run("ip", &["-o", "link"]).lines().count(), 1, "only loopback outside");
        let role = lab.client().role("serve");
        assert!(role.get_args().eq(["node", "serve", "--lab", "dsr"]), "{role:?}");
        down(&provider, "dsr");
        assert_eq!(machine(), before);
    });
}

#[test]
fn lab_is_found_again() {
    isolated("topology::lab_is_found_again", || {
        let provider = provider();
        assert_eq!(provider.find("dsr").expect("nothing is broken"), None);
        let made = up(&provider, &plan("dsr"));
        let found = provider.find("dsr").expect("it can be read").expect("it is up");
        assert_eq!(found, made);
        assert_eq!(found.host_of_pod("web-3").expect("the pod is planned").name, "worker");
        assert_eq!(found.host_of_pod("web-1").expect("the pod is planned").name, "web-1");
        assert_eq!(provider.list().expect("the folder can be read").len(), 1);
        let twice = provider
            .up(&provider.lock("dsr").expect("free"), &plan("dsr"), &Default::default(), &mut |_| {})
            .expect_err("it is up");
        assert_eq!(twice.to_string(), "make lab dsr: it is up; run `labctl down dsr` first");
        assert_eq!(provider.find("dsr").expect("still").map(|l| l.check()), Some(vec![]));
        down(&provider, "dsr");
        assert_eq!(provider.find("dsr").expect("nothing is broken"), None);
    });
}

#[test]
fn damage_is_noticed() {
    isolated("topology::damage_is_noticed", || {
        let provider = provider();
        let lab = up(&provider, &plan("dsr"));
        let (client, worker2) = ("labctl-dsr-client", "labctl-dsr-worker2");
        run("ip", &["-n", client, "address", "del", "172.18.0.1/16", "dev", "eth0"]);
        run("ip", &["-n", "labctl-dsr-worker", "link", "set", "eth0", "down"]);
        run("ip", &["-n", worker2, "link", "del", "lxc-web-1"]);
        run("ip", &["netns", "del", "labctl-dsr-control-plane"]);
        let name = |text: &str| text.to_owned();
        let problems = lab.check();
        for expected in [
            Problem::AddressMissing {
                host: name("client"),
                interface: name("eth0"),
                address: "172.18.0.1".parse().expect("an address"),
            },
            Problem::LinkDown { host: name("worker"), interface: name("eth0") },
            Problem::LinkDown { host: name("switch"), interface: name("p-worker") },
            Problem::InterfaceMissing { host: name("worker2"), interface: name("lxc-web-1") },
            Problem::NamespaceMissing { host: name("control-plane") },
        ] {
            assert!(problems.contains(&expected), "{expected} is not in {problems:?}");
        }
        down(&provider, "dsr");
    });
}

#[test]
fn up_is_quick() {
    isolated("topology::up_is_quick", || {
        let provider = provider();
        let plan = plan("dsr");
        let mut times = Vec::new();
        for _ in 0..10 {
            let began = Instant::now();
            up(&provider, &plan);
            let took = began.elapsed();
            let began = Instant::now();
            down(&provider, "dsr");
            times.push((took, began.elapsed()));
        }
        times.sort();
        let (fastest, median) = (times[0], times[times.len() / 2]);
        report(&format!("up/down of 7 hosts: fastest {fastest:?}, median {median:?}"));
        // Far above what it takes, far below what a `fork` a step would take.
        assert!(fastest.0.as_millis() < 100, "the fastest up took {fastest:?}");
    });
}

fn find<'a>(links: &'a Value, name: &str) -> &'a Value {
    links.as_array().and_then(|l| l.iter().find(|l| l["ifname"] == *name)).expect("the link is there")
}

fn routes(lab: &labctl_provider::Lab, host: &str) -> Vec<String> {
    let routes = ip(lab.host(host).expect("the host is there").namespace(), &["route"]);
    let mut lines: Vec<_> = routes.as_array().expect("a list").iter().map(route).collect();
    lines.sort();
    lines
}

fn route(route: &Value) -> String {
    let text = |key: &str| route[key].as_str().unwrap_or_default().to_owned();
    let mut line = text("dst");
    for (word, key) in [("via", "gateway"), ("dev", "dev"), ("src", "prefsrc")] {
        if !text(key).is_empty() {
            line += &format!(" {word} {}", text(key));
        }
    }
    line
}

fn addresses(lab: &labctl_provider::Lab, host: &str) -> Vec<String> {
    let links = ip(lab.host(host).expect("the host is there").namespace(), &["address"]);
    let mut lines = Vec::new();
    for link in links.as_array().expect("a list") {
        for address in link["addr_info"].as_array().into_iter().flatten() {
            let (local, len) = (address["local"].as_str().unwrap_or_default(), &address["prefixlen"]);
            lines.push(format!("{local}/{len} {}", link["ifname"].as_str().unwrap_or_default()));
        }
    }
    lines.sort();
    lines
}
