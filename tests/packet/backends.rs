//! The life cycle of backends, and flows that arrive in the middle.

use std::net::Ipv4Addr;

use aya::maps::HashMap;
use datapath_agent::{DatapathMode, DatapathMode::*, NodeState, Proto, ServiceState, backend_id};
use datapath_types::Backend;

use crate::frame::{ACK, FIN, Frame, Icmp, RST, SYN, at};
use crate::harness::{
    CLIENT, CLUSTER_IP, CONTROL, Cluster, LOCAL_POD, NODE_PORT, Node, OPTION, POD, POD_PORT, REDIRECT,
    WORKER, WORKER2, client, datagram, pod, request, response, state, vip,
};

/// A second pod on worker2.
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 109);

fn two(mode: DatapathMode) -> NodeState {
    state(WORKER, mode, &[(POD, WORKER2), (OTHER, WORKER2)])
}

fn terminate(mut state: NodeState, pod: Ipv4Addr) -> NodeState {
    for backend in state.services.iter_mut().flat_map(|s| &mut s.backends) {
        backend.terminating |= backend.address == pod;
    }
    state
}

fn retire(mut state: NodeState, pod: Ipv4Addr) -> NodeState {
    for backend in state.services.iter_mut().flat_map(|s| &mut s.backends) {
        backend.retired |= backend.address == pod;
    }
    state
}

/// Where a frame is forwarded to.
#[track_caller]
fn destination(node: &mut Node, frame: &Frame) -> Ipv4Addr {
    let out = node.run("from_netdev", &frame.bytes());
    assert_eq!(out.action, REDIRECT, "the packet is not forwarded");
    <[u8; 4]>::try_from(&out.bytes[30..34]).expect("four bytes").into()
}

/// A client port whose flow Maglev gives to this pod.
fn port_of(node: &mut Node, pod: Ipv4Addr) -> u16 {
    let mut ports = 20000..;
    let port = ports.find(|port| destination(node, &request(SYN).from(at(CLIENT, *port))) == pod);
    node.forget_all();
    port.expect("each pod has its share")
}

#[test]
fn a_terminating_backend_keeps_its_flows_and_gets_no_new_ones() {
    for mode in [Dsr, Snat] {
        let mut worker = Node::new(&two(mode)).expect("loads");
        let port = port_of(&mut worker, POD);
        let from = at(CLIENT, port);
        destination(&mut worker, &request(SYN).from(from));
        destination(&mut worker, &datagram().from(from));
        worker.sync(&terminate(two(mode), POD));
        assert_eq!(destination(&mut worker, &request(ACK).from(from)), POD, "a living flow moved");
        assert_eq!(destination(&mut worker, &request(FIN | ACK).from(from)), POD, "a living flow moved");
        for port in 20000..20050 {
            let new = destination(&mut worker, &request(SYN).from(at(CLIENT, port)));
            assert_eq!(new, OTHER, "a new flow went to the terminating backend");
        }
    }
}

#[test]
fn a_retired_backend_keeps_its_flows_and_never_gets_a_new_one() {
    let one = state(WORKER, Dsr, &[(POD, WORKER2)]);
    let mut worker = Node::new(&one).expect("loads");
    destination(&mut worker, &request(SYN));
    worker.sync(&retire(one, POD));
    assert_eq!(destination(&mut worker, &request(ACK)), POD, "a living flow moved");
    let new = request(SYN).from(at(CLIENT, 20000));
    let answer = Icmp::port_unreachable(WORKER, CLIENT, new.quote(20)).bytes();
    worker.assert_answer("from_netdev", &new.bytes(), &answer, "no-backend");
}

#[test]
fn datagrams_leave_a_retired_backend_at_once() {
    for mode in [Dsr, Snat] {
        let mut worker = Node::new(&two(mode)).expect("loads");
        let mut ports = (20000..).map(|port| datagram().from(at(CLIENT, port)));
        let asked = ports.find(|frame| destination(&mut worker, frame) == POD).expect("each has its share");
        worker.sync(&terminate(two(mode), POD));
        assert_eq!(destination(&mut worker, &asked), POD, "it still serves those who asked it");
        worker.sync(&retire(two(mode), POD));
        assert_eq!(destination(&mut worker, &asked), OTHER, "it is not there any more");
    }
}

/// No two nodes hear of a change at the same time.
#[test]
fn what_another_node_sends_to_a_retired_backend_is_answered() {
    let mut cluster = Cluster::new(Dsr);
    cluster.worker2.sync(&retire(state(WORKER2, Dsr, &[(POD, WORKER2)]), POD));
    for (asked, reply) in [(request(SYN), response(SYN | ACK)), (datagram(), Frame::udp(pod(), client()))] {
        cluster.deliver(&asked);
        cluster.worker2.run("from_pod", &reply.bytes()).assert_sent(&reply.from(vip()).hop().bytes());
    }
}

#[test]
fn a_backend_of_two_services_leaves_only_when_both_let_it_go() {
    let one = state(WORKER, Dsr, &[(POD, WORKER2)]);
    let mut other = one.services.clone();
    for service in &mut other {
        (service.id, service.cluster_ip, service.node_port) = (2, Some((CLUSTER_IP, 81)), None);
        service.backends[0].retired = true;
    }
    let in_order = |first: &[ServiceState], second: &[ServiceState]| NodeState {
        services: [first, second].concat(),
        ..one.clone()
    };
    let leaves = |state: &NodeState| {
        let mut worker = Node::new(state).expect("loads");
        let map = worker.ebpf.map_mut("BACKENDS").expect("the object has it");
        let backends: HashMap<_, u32, Backend> = HashMap::try_from(map).expect("a hash map");
        let backend = backends.get(&backend_id(POD, POD_PORT, Proto::Tcp), 0).expect("it is there");
        backend.is_terminating()
    };
    assert!(!leaves(&in_order(&one.services, &other)), "the second service let it go for both");
    assert!(!leaves(&in_order(&other, &one.services)), "the first service let it go for both");
    assert!(leaves(&in_order(&other, &[])), "nobody wants it any more");
}

/// While tables and frontends are written one after the other, packets pass: a table that another service
/// takes over would send them to its backends.
#[test]
fn a_frontend_keeps_its_table_when_services_come_and_go() {
    let one = state(WORKER, Dsr, &[(POD, WORKER2)]);
    let mut more = one.clone();
    for (number, mut service) in one.services.iter().cloned().enumerate() {
        (service.id, service.cluster_ip, service.node_port) = (2, Some((CLUSTER_IP, 79)), Some(31000));
        service.backends[0].address = OTHER;
        more.services.insert(number, service);
    }
    let worker = Node::new(&one).expect("loads");
    let before = worker.tables();
    worker.sync(&more);
    let both = worker.tables();
    for (frontend, table) in &before {
        assert_eq!(both.get(frontend), Some(table), "the table of {frontend:?} changed hands");
    }
    let fresh = both.iter().filter(|(frontend, _)| !before.contains_key(*frontend));
    assert!(fresh.clone().count() > 0, "the second service has no frontends");
    for (frontend, table) in fresh {
        assert!(!before.values().any(|taken| taken == table), "{frontend:?} took table {table}");
    }
    worker.sync(&one);
    assert_eq!(worker.tables(), before);
}

#[test]
fn the_cluster_ip_can_be_held_to_backends_of_this_node() {
    let mut local = state(WORKER, Dsr, &[(POD, WORKER2)]);
    for service in &mut local.services {
        service.internal_local = true;
    }
    let mut worker = Node::new(&local).expect("loads");
    let inside = Frame::tcp(at(LOCAL_POD, 50000), at(CLUSTER_IP, 80), SYN);
    let answer = Icmp::port_unreachable(CLUSTER_IP, LOCAL_POD, inside.quote(20)).bytes();
    worker.assert_answer("from_pod", &inside.bytes(), &answer, "no-backend");
    assert_eq!(destination(&mut worker, &request(SYN)), POD, "the policy is for clients inside only");
}

#[test]
fn a_service_whose_backends_all_terminate_still_answers() {
    let mut worker = Node::new(&two(Dsr)).expect("loads");
    worker.sync(&terminate(terminate(two(Dsr), POD), OTHER));
    destination(&mut worker, &request(SYN));
}

#[test]
fn a_flow_of_a_removed_backend_moves_and_says_so() {
    let mut worker = Node::new(&two(Dsr)).expect("loads");
    let from = at(CLIENT, port_of(&mut worker, POD));
    destination(&mut worker, &request(SYN).from(from));
    worker.sync(&state(WORKER, Dsr, &[(OTHER, WORKER2)]));
    let to = at(OTHER, POD_PORT);
    for frame in [request(ACK).payload(b"GET /"), request(ACK)] {
        let frame = frame.from(from);
        let want = frame.clone().to(to).hop().options(&OPTION);
        worker.run("from_netdev", &frame.bytes()).assert_sent(&want.bytes());
    }
    let flow = worker.flow("forward");
    assert_eq!(flow.backend, to);
    assert_eq!(flow.flags, ["dsr", "need-option"]);
}

#[test]
fn the_other_flows_stay_where_they_are_when_a_backend_goes() {
    let backends: Vec<_> = (1..=8u8).map(|n| (Ipv4Addr::new(10, 0, 1, n), WORKER2)).collect();
    let mut worker = Node::new(&state(WORKER, Dsr, &backends)).expect("loads");
    let clients: Vec<_> = (30000..30200).map(|port| request(SYN).from(at(CLIENT, port))).collect();
    let before: Vec<_> = clients.iter().map(|frame| destination(&mut worker, frame)).collect();
    worker.forget_all();
    worker.sync(&state(WORKER, Dsr, &backends[..7]));
    let after: Vec<_> = clients.iter().map(|frame| destination(&mut worker, frame)).collect();
    let gone = backends[7].0;
    assert!(!after.contains(&gone), "a removed backend still gets flows");
    let moved = before.iter().zip(&after).filter(|(b, a)| **b != gone && b != a).count();
    assert!(moved <= 20, "{moved} of 200 flows moved needlessly");
}

#[test]
fn every_node_picks_the_same_backend() {
    let backends: Vec<_> = (1..=5u8).map(|n| (Ipv4Addr::new(10, 0, 1, n), WORKER2)).collect();
    let mut reversed = backends.clone();
    reversed.reverse();
    let mut worker = Node::new(&state(WORKER, Dsr, &backends)).expect("loads");
    let mut control = Node::new(&state(CONTROL, Dsr, &reversed)).expect("loads");
    for port in 30000..30100 {
        for frame in [request(SYN), datagram()] {
            let frame = frame.from(at(CLIENT, port));
            let there = destination(&mut worker, &frame);
            let moved = destination(&mut control, &frame.to(at(CONTROL, NODE_PORT)));
            assert_eq!(there, moved, "a flow that moves to another ingress node changes its backend");
        }
    }
}

#[test]
fn without_a_backend_the_client_hears_port_unreachable_from_the_frontend() {
    for mode in [Dsr, Snat, Hybrid] {
        let mut worker = Node::new(&state(WORKER, mode, &[])).expect("loads");
        let frames = [
            (request(SYN), 20),
            (request(ACK).total_len(1500), 48),
            (datagram().total_len(1500), 48),
            (datagram(), 12),
            (datagram().payload(b"odd"), 11),
            (request(SYN).options(&[0x94, 4, 0, 0]), 20),
            (request(SYN).options(&[1; 40]), 8),
        ];
        for (frame, quoted) in frames {
            let answer = Icmp::port_unreachable(WORKER, CLIENT, frame.quote(quoted)).bytes();
            worker.assert_answer("from_netdev", &frame.bytes(), &answer, "no-backend");
        }
        assert!(worker.flows().is_empty(), "a refused packet left a flow");
    }
}

#[test]
fn a_pod_hears_that_nobody_serves() {
    let mut worker = Node::new(&state(WORKER, Dsr, &[])).expect("loads");
    let frame = Frame::tcp(at(LOCAL_POD, 50000), at(CLUSTER_IP, 80), SYN);
    let answer = Icmp::port_unreachable(CLUSTER_IP, LOCAL_POD, frame.quote(20)).bytes();
    worker.assert_answer("from_pod", &frame.bytes(), &answer, "no-backend");
}

#[test]
fn a_flow_that_arrives_in_the_middle_carries_the_option_on_every_packet() {
    // The SYN went through another node (ECMP), or this node's entry was evicted.
    let mut cluster = Cluster::new(Dsr);
    for frame in
        [request(ACK), request(ACK).payload(b"more"), request(FIN | ACK).after(4), request(RST).after(5)]
    {
        let want = frame.clone().to(pod()).hop();
        let out = cluster.worker.run("from_netdev", &frame.bytes());
        out.assert_sent(&want.clone().options(&OPTION).bytes());
        let delivered = cluster.worker2.run("from_netdev", &out.bytes);
        delivered.assert_sent(&want.hop().bytes());
    }
    assert_eq!(cluster.worker.flow("forward").flags, ["dsr", "need-option", "fin-client", "rst"]);
    // So even the pod's reset of a connection that it does not know has the right source.
    let reset = response(RST);
    let out = cluster.worker2.run("from_pod", &reset.bytes());
    out.assert_sent(&reset.from(vip()).hop().bytes());
}

#[test]
fn a_flow_that_moves_to_another_node_is_answered_from_there() {
    let mut cluster = Cluster::new(Dsr);
    cluster.deliver(&request(SYN));
    cluster.deliver(&request(FIN | ACK));
    cluster.worker2.run("from_pod", &response(FIN | ACK).bytes());
    // The client's next connection from the same port goes through another node.
    let mut control = Node::of(CONTROL, Dsr);
    let frame = request(SYN).to(at(CONTROL, NODE_PORT));
    let tagged = control.run("from_netdev", &frame.bytes());
    cluster.worker2.run("from_netdev", &tagged.bytes).assert_sent(&frame.to(pod()).hop().hop().bytes());
    let reply = response(SYN | ACK);
    let out = cluster.worker2.run("from_pod", &reply.bytes());
    out.assert_sent(&reply.from(at(CONTROL, NODE_PORT)).hop().bytes());
}

#[test]
fn a_new_syn_after_the_end_opens_a_new_flow() {
    let mut cluster = Cluster::new(Dsr);
    for end in [FIN | ACK, RST] {
        cluster.deliver(&request(SYN));
        cluster.deliver(&request(end));
        cluster.deliver(&request(SYN));
        assert_eq!(cluster.worker.flow("forward").flags, ["dsr"], "the old connection's end is still noted");
        assert_eq!(cluster.worker2.flow("reply").flags, ["dsr"], "the old connection's end is still noted");
    }
}

/// Between two writes of the agent a Maglev slot may name a backend that is gone.
#[test]
fn a_stale_slot_drops_instead_of_refusing() {
    for mode in [Dsr, Snat, Hybrid] {
        let mut worker = Node::of(WORKER, mode);
        let map = worker.ebpf.map_mut("BACKENDS").expect("the object has it");
        let mut backends: HashMap<_, u32, Backend> = HashMap::try_from(map).expect("a hash map");
        backends.remove(&backend_id(POD, POD_PORT, Proto::Tcp)).expect("it was there");
        worker.assert_drop("from_netdev", &request(SYN).bytes(), "backend-gone");
    }
}
