//! The datapath lives on its pins: agents that come again during traffic lose no packet, and a flow that is
//! lost on the way never shows the pod's address.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use aya::maps::{HashMap, Map, MapData};
use datapath_agent::NodeState;
use datapath_types::{Flow, FlowKey, FlowKind};
use labctl_node::fetch::{Request, Transport};

use crate::ask::{CLIENT, POD, POD_NAME, assert_answered, frontend, requests};
use crate::kernel::on_one_cpu;
use crate::lab::Lab;
use crate::root::need_root;
use crate::tcpdump::Tcpdump;

/// Restarts of every agent that traffic must survive at least.
const ROUNDS: usize = 5;
/// How long all of them may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A batch of requests of every kind that takes a second or two.
fn batch(mode: &str) -> Vec<Request> {
    let to = frontend(mode);
    let mut all = requests(1, 2, Transport::Tcp, to, |r| r.response_bytes = 32 << 20);
    all.extend(requests(3, 1, Transport::Tcp, to, |r| r.upload_bytes = 16 << 20));
    all.extend(requests(4, 400, Transport::Tcp, to, |_| {}));
    all.extend(requests(404, 400, Transport::Udp, to, |r| r.response_bytes = 1000));
    all
}

/// Runs the agents of all nodes one after the other until `over`; counts the rounds.
fn restart_agents(lab: &Lab, states: &[NodeState], rounds: &AtomicUsize, over: &AtomicBool) {
    while !over.load(Ordering::Acquire) {
        for state in states {
            assert!(lab.run_agent(state).reused, "the agent of {} started afresh", state.node);
        }
        rounds.fetch_add(1, Ordering::AcqRel);
    }
}

/// Sends batches without a pause until the agents have come often enough; returns how many requests it were.
fn ask_meanwhile(lab: &Lab, mode: &str, rounds: &AtomicUsize) -> usize {
    let deadline = Instant::now() + PATIENCE;
    let mut answered = 0;
    while rounds.load(Ordering::Acquire) < ROUNDS {
        assert!(Instant::now() < deadline, "the agents came {rounds:?} times");
        let batch = batch(mode);
        let count = batch.len();
        assert_answered(&lab.start_asking_by(batch, 4).finish(), count);
        answered += count;
    }
    answered
}

fn survives(mode: &str) {
    let lab = on_one_cpu(|| Lab::up(mode));
    lab.calm_senders();
    let states = lab.node_states();
    let watches = ["client", POD_NAME].map(|host| lab.tcpdump(host, "ip"));
    let retransmitted = || ["client", POD_NAME].map(|host| lab.snmp(host, "Tcp", "RetransSegs"));
    let before = retransmitted();
    let (rounds, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let answered = std::thread::scope(|scope| {
        let agents = scope.spawn(|| restart_agents(&lab, &states, &rounds, &over));
        let answered = scope.spawn(|| on_one_cpu(|| ask_meanwhile(&lab, mode, &rounds))).join();
        over.store(true, Ordering::Release);
        agents.join().expect("every agent came back");
        answered.expect("every request was answered")
    });
    let [at_client, at_pod] = watches.map(Tcpdump::stop);
    assert_eq!(retransmitted(), before, "{mode}: segments were sent again in {answered} requests");
    assert_eq!(lab.drops(), <_>::default(), "{mode}: the datapath dropped packets");
    for (host, pcap) in [("client", &at_client), ("pod", &at_pod)] {
        assert!(pcap.packets > 1000, "{mode}: {host} saw {} packets", pcap.packets);
        assert_eq!(pcap.count("tcp[tcpflags] & tcp-rst != 0"), 0, "{mode}: resets at the {host}");
    }
    assert_eq!(at_client.count("net 10.0.0.0/8"), 0, "{mode}: a pod's address on the client's link");
}

#[test]
fn agents_that_restart_during_dsr_lose_nothing() {
    need_root!();
    survives("dsr");
}

#[test]
fn agents_that_restart_during_snat_lose_nothing() {
    need_root!();
    survives("snat");
}

/// Deletes the backend node's reply entry of a connection.
fn forget_flow(lab: &Lab, client_port: u16) {
    let pin = lab.state().bpf_dir("worker2").join("maps/FLOWS");
    let data = MapData::from_pin(&pin).expect("the map is pinned");
    let mut flows: HashMap<_, FlowKey, Flow> =
        HashMap::try_from(Map::LruHashMap(data)).expect("the contract's types");
    let raw = |address: Ipv4Addr| u32::from_ne_bytes(address.octets());
    let key = FlowKey {
        src: raw(POD),
        dst: raw(CLIENT),
        sport: 8080u16.to_be(),
        dport: client_port.to_be(),
        proto: datapath_types::PROTO_TCP,
        kind: FlowKind::REPLY,
        pad: 0,
    };
    flows.remove(&key).expect("the connection has an entry");
}

#[test]
fn a_flow_that_is_lost_fails_closed_until_the_client_sends_again() {
    need_root!();
    let lab = Lab::up("dsr");
    let watch = lab.tcpdump("client", "ip");
    let to: SocketAddrV4 = frontend("dsr");
    let mut stream = lab.enter("client", || TcpStream::connect(to)).expect("the service answers");
    let own_port = stream.local_addr().expect("it is bound").port();
    stream.write_all(b"GET /?id=1 HTTP/1.1\r\nhost: lab\r\n\r\n").expect("send");
    let mut reply = [0; 4096];
    assert!(stream.read(&mut reply).expect("an answer") > 0);
    forget_flow(&lab, own_port);
    stream.write_all(b"GET /?id=2 HTTP/1.1\r\nhost: lab\r\n\r\n").expect("send");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket option");
    // The replies to the first attempt are dropped. The second carries the frontend again.
    assert!(stream.read(&mut reply).expect("an answer") > 0);
    let seen = watch.stop();
    assert_eq!(seen.count("net 10.0.0.0/8"), 0, "a pod's address on the client's link");
    assert!(seen.count("src host 172.18.0.3 and src port 32000") > 0, "the witness saw no reply at all");
    let drops = lab.drops();
    assert!(drops["worker2"]["no-reply-state"] > 0, "{drops:?}");
    // The next connection is whole from its beginning.
    assert_answered(&lab.ask(requests(1, 4, Transport::Tcp, to, |_| {})), 4);
}
