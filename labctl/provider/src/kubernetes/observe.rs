//! A lab in a cluster as it came out: from what the API server and a look into the nodes say, to the plan and the
//! hosts that every later stage reads.
//!
//! Owns: which answer means what. Does not own: asking (the providers). Pure.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use labctl_model::{NodePlan, Plan, PodPlan, Protocol, ProviderKind, ServicePlan};

use super::connect::Cluster;
use super::error::ClusterError;
use super::manifests;
use super::nodes::ClusterNode;
use super::pods::ClusterPod;
use super::service::{ClusterService, TargetPort};
use crate::host::{Host, HostInterface, HostKind, MacAddress, Peer, Place};
use crate::inspect::{InspectedInterface, InspectedPod, Inspection};
use crate::store::Observed;

/// What the API server says of a lab.
pub(crate) struct Deployed {
    /// Every node of the cluster.
    pub(crate) nodes: Vec<ClusterNode>,
    /// Pods of the service under test that are ready to serve.
    pub(crate) pods: Vec<ClusterPod>,
    /// The service under test.
    pub(crate) service: ClusterService,
}

/// A look into a node.
pub(crate) struct SeenNode {
    /// Its name in the plan.
    pub(crate) name: String,
    /// Its name in the cluster.
    pub(crate) cluster_name: String,
    /// Where its processes are started.
    pub(crate) place: Place,
    /// What is in it.
    pub(crate) inspection: Inspection,
}

/// Everything that was seen.
pub(crate) struct Sight {
    /// What the API server says.
    pub(crate) deployed: Deployed,
    /// The nodes, in the order that the plan shall have.
    pub(crate) nodes: Vec<SeenNode>,
    /// Where the client's processes are started.
    pub(crate) client: Place,
    /// What is in the client.
    pub(crate) client_inspection: Inspection,
    /// Plan's name of the node that the client asks.
    pub(crate) via: String,
}

/// What was seen is not a lab. Reads well after "failed to ".
#[derive(Debug, thiserror::Error)]
pub enum SightError {
    /// The cluster does not answer.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The service under test is not there.
    #[error("find Service {namespace}/{name}: the cluster has none of this name")]
    NoService {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// The service cannot be asked from outside.
    #[error("use Service {service}: {reason}")]
    Service {
        /// `namespace/name`.
        service: String,
        /// Why, and what to do.
        reason: String,
    },
    /// The API server knows no such node.
    #[error("find node {node}: the cluster has no node of this name, or no IPv4 address for it")]
    NoNode {
        /// Its name in the cluster.
        node: String,
    },
    /// No interface of a host has the address that others reach it by.
    #[error("find the uplink of {host}: none of its interfaces has the address {address}")]
    NoUplink {
        /// The host.
        host: String,
        /// The address.
        address: Ipv4Addr,
    },
    /// The client has no address.
    #[error(
        "find the client's uplink: no interface of {place} has an IPv4 address; is the container connected to a network?"
    )]
    NoClient {
        /// Its container.
        place: String,
    },
    /// A pod's namespace is not among those of its node.
    #[error(
        "look into pod {pod} on {node}: no network namespace in /run/netns of the node has its address {address}; \
         container runtimes that keep them elsewhere are not supported"
    )]
    NoPod {
        /// The pod.
        pod: String,
        /// Its node.
        node: String,
        /// Its address.
        address: Ipv4Addr,
    },
}

impl Cluster {
    /// What the API server says of the lab with this plan.
    ///
    /// # Errors
    /// When the API server refuses or does not answer, and without the service under test.
    pub(crate) async fn deployed(&self, asked: &Plan) -> Result<Deployed, SightError> {
        let namespace = match &asked.service.foreign {
            Some(namespace) => namespace.clone(),
            None => manifests::namespace(asked),
        };
        let name = &asked.service.name;
        let (nodes, service) = tokio::try_join!(self.nodes(), self.service(&namespace, name))?;
        let Some(service) = service else {
            return Err(SightError::NoService { namespace, name: name.clone() });
        };
        let selector = service.pod_selector().map_err(unusable(&service))?;
        let mut pods = self.pods(&namespace, &selector).await?;
        pods.retain(|pod| pod.ready && !pod.terminating);
        Ok(Deployed { nodes, pods, service })
    }
}

/// The plan and the hosts that were seen.
///
/// # Errors
/// A part of the lab that was not seen.
pub(crate) fn observe(asked: &Plan, sight: &Sight) -> Result<Observed, SightError> {
    let client = uplink_of_client(sight)?;
    let mut plan = asked.clone();
    plan.service = service(asked, sight)?;
    plan.traffic.via.clone_from(&sight.via);
    plan.client.address = client.addr();
    plan.network = client.trunc();
    plan.nodes = sight.nodes.iter().map(|node| node_plan(asked, sight, node)).collect::<Result<_, _>>()?;
    plan.pod_cidr = pod_cidr(asked, &plan.nodes);
    if plan.provider == ProviderKind::Cluster {
        // Interfaces of somebody else's nodes stay as they are.
        plan.offloads = true;
    }
    let hosts = hosts(&plan, sight)?;
    plan.mtu = mtu(&hosts).unwrap_or(plan.mtu);
    Ok(Observed { plan, hosts })
}

/// The uplink's network: the first interface that has an address.
fn uplink_of_client(sight: &Sight) -> Result<Ipv4Net, SightError> {
    let mut networks = sight.client_inspection.interfaces.iter().flat_map(|i| &i.addresses);
    networks.next().copied().ok_or_else(|| SightError::NoClient { place: sight.client.to_string() })
}

fn service(asked: &Plan, sight: &Sight) -> Result<ServicePlan, SightError> {
    let found = &sight.deployed.service;
    let mut plan = asked.service.clone();
    plan.cluster_ip = found.cluster_ip.unwrap_or(Ipv4Addr::UNSPECIFIED);
    if asked.service.foreign.is_some() {
        adopt(&mut plan, found, &sight.deployed.pods)?;
    }
    Ok(plan)
}

/// What a reason says of a Service.
fn unusable(service: &ClusterService) -> impl Fn(String) -> SightError {
    let service = service.full_name();
    move |reason| SightError::Service { service: service.clone(), reason }
}

/// Somebody else's Service is what it is. Only HTTP can be asked without knowing the program, so UDP is left out.
fn adopt(plan: &mut ServicePlan, found: &ClusterService, pods: &[ClusterPod]) -> Result<(), SightError> {
    let (port, node_port) = found.reachable().map_err(unusable(found))?;
    if pods.is_empty() {
        return Err(unusable(found)("none of its pods is ready".to_owned()));
    }
    plan.target_port = match &port.target {
        TargetPort::Number(number) => *number,
        TargetPort::Named(name) => pods
            .iter()
            .find_map(|pod| pod.ports.get(name).copied())
            .ok_or_else(|| unusable(found)(format!("none of its ready pods has a port named {name}")))?,
    };
    (plan.port, plan.node_port, plan.protocols) = (port.port, node_port, vec![Protocol::Tcp]);
    plan.external_traffic_policy = found.external_traffic_policy;
    plan.session_affinity = found.session_affinity;
    plan.affinity_seconds = found.affinity_seconds.unwrap_or(plan.affinity_seconds);
    Ok(())
}

fn node_plan(asked: &Plan, sight: &Sight, node: &SeenNode) -> Result<NodePlan, SightError> {
    let missing = || SightError::NoNode { node: node.cluster_name.clone() };
    let found = sight.deployed.nodes.iter().find(|n| n.name == node.cluster_name).ok_or_else(missing)?;
    let address = found.address.ok_or_else(missing)?;
    let written = asked.node(&node.name);
    // A node whose pods have addresses from somewhere else has no range: one that holds nobody's address.
    let nobodys = Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 32);
    let pod_cidr = found.pod_cidr.unwrap_or(nobodys);
    Ok(NodePlan {
        name: node.name.clone(),
        role: written.map_or(found.role, |n| n.role),
        address,
        pod_cidr,
        pod_gateway: pod_cidr.hosts().next().unwrap_or(pod_cidr.addr()),
        pods: sight.deployed.pods.iter().filter_map(|pod| pod_plan(pod, &node.cluster_name)).collect(),
    })
}

fn pod_plan(pod: &ClusterPod, node: &str) -> Option<PodPlan> {
    let here = pod.node.as_deref() == Some(node);
    let address = pod.address.filter(|_| here)?;
    Some(PodPlan { name: pod.name.clone(), address, host_network: pod.host_network })
}

/// The lab file's range if the nodes keep to it, else the smallest that has all of theirs.
fn pod_cidr(asked: &Plan, nodes: &[NodePlan]) -> Ipv4Net {
    let known: Vec<_> = nodes.iter().map(|n| n.pod_cidr).filter(|net| !net.addr().is_unspecified()).collect();
    let kept = known.iter().all(|net| asked.pod_cidr.contains(net));
    let Some(first) = known.first().filter(|_| !kept || asked.provider == ProviderKind::Cluster) else {
        return asked.pod_cidr;
    };
    let mut all = *first;
    while let Some(wider) = all.supernet().filter(|_| !known.iter().all(|net| all.contains(net))) {
        all = wider;
    }
    all
}

/// The client, then each node followed by its pods.
fn hosts(plan: &Plan, sight: &Sight) -> Result<Vec<Host>, SightError> {
    let mut hosts = vec![client(plan, sight)?];
    for (node, seen) in plan.nodes.iter().zip(&sight.nodes) {
        let pods = node.pods.iter().filter(|pod| !pod.host_network);
        let pods: Vec<_> =
            pods.map(|pod| inside(pod, node, seen).map(|inside| (pod, inside))).collect::<Result<_, _>>()?;
        hosts.push(node_host(plan, node, seen, &pods)?);
        for (pod, inside) in pods {
            hosts.push(pod_host(plan, node, pod, seen, inside));
        }
    }
    Ok(hosts)
}

fn client(plan: &Plan, sight: &Sight) -> Result<Host, SightError> {
    let name = plan.client.name.clone();
    let uplink = uplink(&name, plan.client.address, &sight.client_inspection.interfaces)?;
    Ok(Host {
        name,
        kind: HostKind::Client,
        place: sight.client.clone(),
        in_pod: None,
        interfaces: vec![interface(uplink)],
        lab: plan.lab.clone(),
    })
}

/// A node with its uplink, and the node's ends of its backends' links.
fn node_host(
    plan: &Plan,
    node: &NodePlan,
    seen: &SeenNode,
    pods: &[(&PodPlan, &InspectedPod)],
) -> Result<Host, SightError> {
    let mut interfaces = vec![interface(uplink(&node.name, node.address, &seen.inspection.interfaces)?)];
    for (pod, inside) in pods {
        let Some(own) = own_interface(inside, pod.address) else { continue };
        // No veth: some network plugins give pods other links.
        let here = seen.inspection.interfaces.iter().find(|i| own.peer == Some(i.index));
        interfaces.extend(here.map(|here| HostInterface {
            peer: Some(Peer { host: pod.name.clone(), interface: own.name.clone() }),
            pod: Some(pod.name.clone()),
            ..interface(here)
        }));
    }
    Ok(Host {
        name: node.name.clone(),
        kind: HostKind::Node,
        place: seen.place.clone(),
        in_pod: None,
        interfaces,
        lab: plan.lab.clone(),
    })
}

fn pod_host(plan: &Plan, node: &NodePlan, pod: &PodPlan, seen: &SeenNode, inside: &InspectedPod) -> Host {
    let own = own_interface(inside, pod.address).map(|own| {
        let there = seen.inspection.interfaces.iter().find(|i| own.peer == Some(i.index));
        let peer = there.map(|there| Peer { host: node.name.clone(), interface: there.name.clone() });
        HostInterface { peer, ..interface(own) }
    });
    Host {
        name: pod.name.clone(),
        kind: HostKind::Pod,
        place: seen.place.clone(),
        in_pod: Some(pod.address),
        interfaces: own.into_iter().collect(),
        lab: plan.lab.clone(),
    }
}

/// The pod's namespace, by its address.
fn inside<'a>(pod: &PodPlan, node: &NodePlan, seen: &'a SeenNode) -> Result<&'a InspectedPod, SightError> {
    let found = seen.inspection.pods.iter().find(|inside| inside.has(pod.address));
    found.ok_or_else(|| SightError::NoPod {
        pod: pod.name.clone(),
        node: node.name.clone(),
        address: pod.address,
    })
}

fn own_interface(inside: &InspectedPod, address: Ipv4Addr) -> Option<&InspectedInterface> {
    inside.interfaces.iter().find(|interface| has(interface, address))
}

/// The interface that others reach a host by.
fn uplink<'a>(
    host: &str,
    address: Ipv4Addr,
    interfaces: &'a [InspectedInterface],
) -> Result<&'a InspectedInterface, SightError> {
    let found = interfaces.iter().find(|interface| has(interface, address));
    found.ok_or_else(|| SightError::NoUplink { host: host.to_owned(), address })
}

fn has(interface: &InspectedInterface, address: Ipv4Addr) -> bool {
    interface.addresses.iter().any(|net| net.addr() == address)
}

fn interface(seen: &InspectedInterface) -> HostInterface {
    HostInterface {
        name: seen.name.clone(),
        index: seen.index,
        // Tunnels have none; they are nobody's uplink here.
        mac: seen.mac.unwrap_or(MacAddress([0; 6])),
        mtu: u16::try_from(seen.mtu).unwrap_or(u16::MAX),
        address: seen.addresses.first().copied(),
        peer: None,
        pod: None,
    }
}

/// The largest of the uplinks: a frame that is larger than that is larger than its link whichever it is.
fn mtu(hosts: &[Host]) -> Option<u16> {
    let outer = hosts.iter().filter(|host| host.kind != HostKind::Pod);
    outer.filter_map(|host| host.interfaces.first()).map(|uplink| uplink.mtu).max()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::service::ClusterPort;
    use labctl_model::{Affinity, NodeRole, TrafficPolicy, builtin_lab, parse};
    use std::collections::BTreeMap;

    fn link(name: &str, index: u32, address: &str, peer: Option<u32>) -> InspectedInterface {
        let addresses = if address.is_empty() { Vec::new() } else { vec![address.parse().unwrap()] };
        let mac = Some(MacAddress([2, 0, 0, 0, 0, index as u8]));
        InspectedInterface { name: name.into(), index, mac, mtu: 1500, addresses, peer }
    }

    fn node(name: &str, address: u8, cidr: &str) -> ClusterNode {
        ClusterNode {
            name: name.into(),
            address: Some(Ipv4Addr::new(172, 18, 0, address)),
            pod_cidr: Some(cidr.parse().unwrap()),
            role: NodeRole::Worker,
            ready: true,
            message: String::new(),
        }
    }

    fn pod(name: &str, node: &str, address: &str) -> ClusterPod {
        ClusterPod {
            namespace: "labctl".into(),
            name: name.into(),
            node: Some(node.into()),
            address: Some(address.parse().unwrap()),
            host_network: false,
            ready: true,
            terminating: false,
            ports: BTreeMap::from([("http".to_owned(), 9090)]),
        }
    }

    fn container(name: &str) -> Place {
        Place::Container { name: name.into(), program: "/labctl".into() }
    }

    /// The seed's lab on a cluster that shuffled the addresses, with another pod on the backend's node.
    fn sight() -> Sight {
        let seen = |(name, address): (&str, &str), links: Vec<InspectedInterface>, pods| {
            let uplink = link("eth0", 7, &format!("{address}/16"), Some(9));
            let interfaces = [vec![uplink], links].concat();
            SeenNode {
                name: name.into(),
                cluster_name: format!("labctl-dsr-{name}"),
                place: container(&format!("labctl-dsr-{name}")),
                inspection: Inspection { interfaces, pods },
            }
        };
        let inside = |address: &str, peer| InspectedPod {
            netns: "/run/netns/cni-1".into(),
            interfaces: vec![link("eth0", 2, &format!("{address}/32"), Some(peer))],
        };
        Sight {
            deployed: Deployed {
                nodes: vec![
                    node("labctl-dsr-control-plane", 2, "10.0.0.0/24"),
                    node("labctl-dsr-worker", 4, "10.0.2.0/24"),
                    node("labctl-dsr-worker2", 3, "10.0.1.0/24"),
                ],
                pods: vec![pod("web-worker2-x", "labctl-dsr-worker2", "10.0.1.9")],
                service: ClusterService {
                    namespace: "labctl".into(),
                    name: "web".into(),
                    kind: "NodePort".into(),
                    cluster_ip: Some(Ipv4Addr::new(10, 96, 3, 4)),
                    ports: vec![ClusterPort {
                        name: "tcp".into(),
                        protocol: Protocol::Tcp,
                        port: 8000,
                        node_port: Some(31000),
                        target: TargetPort::Named("http".into()),
                    }],
                    selector: BTreeMap::new(),
                    external_traffic_policy: TrafficPolicy::Local,
                    session_affinity: Affinity::ClientIP,
                    affinity_seconds: Some(60),
                },
            },
            nodes: vec![
                seen(("control-plane", "172.18.0.2"), vec![], vec![]),
                seen(("worker", "172.18.0.4"), vec![], vec![]),
                seen(
                    ("worker2", "172.18.0.3"),
                    vec![
                        link("veth1", 11, "10.0.1.1/32", Some(2)),
                        link("veth2", 12, "10.0.1.1/32", Some(2)),
                    ],
                    vec![inside("10.0.1.8", 11), inside("10.0.1.9", 12)],
                ),
            ],
            client: container("labctl-dsr-client"),
            client_inspection: Inspection {
                interfaces: vec![link("eth0", 5, "172.18.0.5/16", Some(6))],
                pods: vec![],
            },
            via: "worker".into(),
        }
    }

    fn asked() -> Plan {
        let mut plan = parse("dsr", builtin_lab("dsr").unwrap()).unwrap();
        plan.provider = ProviderKind::Kind;
        plan
    }

    #[test]
    fn addresses_and_pods_are_the_clusters_and_all_else_the_lab_files() {
        let asked = asked();
        let Observed { plan, .. } = observe(&asked, &sight()).unwrap();
        assert_eq!(plan.client.address, Ipv4Addr::new(172, 18, 0, 5));
        assert_eq!(plan.network, "172.18.0.0/16".parse().unwrap());
        assert_eq!(plan.ingress().address, Ipv4Addr::new(172, 18, 0, 4));
        assert_eq!(plan.service.cluster_ip, Ipv4Addr::new(10, 96, 3, 4));
        let backends: Vec<_> = plan.backends().map(|(n, p)| (n.name.clone(), p.clone())).collect();
        let pod = PodPlan {
            name: "web-worker2-x".into(),
            address: Ipv4Addr::new(10, 0, 1, 9),
            host_network: false,
        };
        assert_eq!(backends, [("worker2".to_owned(), pod)]);
        let mut back = plan;
        back.client.clone_from(&asked.client);
        back.service.cluster_ip = asked.service.cluster_ip;
        for (node, written) in back.nodes.iter_mut().zip(&asked.nodes) {
            (node.address, node.pods) = (written.address, written.pods.clone());
        }
        assert_eq!(back, asked);
    }

    #[test]
    fn hosts_have_the_links_of_the_backends_and_no_others() {
        let Observed { hosts, .. } = observe(&asked(), &sight()).unwrap();
        let names: Vec<_> = hosts.iter().map(|host| host.name.as_str()).collect();
        assert_eq!(names, ["client", "control-plane", "worker", "worker2", "web-worker2-x"]);
        let worker2 = &hosts[3];
        let links: Vec<_> = worker2.interfaces.iter().map(|i| (i.name.as_str(), i.pod.as_deref())).collect();
        assert_eq!(links, [("eth0", None), ("veth2", Some("web-worker2-x"))]);
        let pod = &hosts[4];
        assert_eq!((pod.in_pod, &pod.place), (Some(Ipv4Addr::new(10, 0, 1, 9)), &worker2.place));
        let peer = pod.interfaces[0].peer.as_ref().unwrap();
        assert_eq!((peer.host.as_str(), peer.interface.as_str()), ("worker2", "veth2"));
        assert!(hosts.iter().all(|host| host.address().is_some()), "{hosts:#?}");
    }

    #[test]
    fn somebody_elses_service_is_what_it_is() {
        let mut asked = asked();
        asked.provider = ProviderKind::Cluster;
        asked.service.foreign = Some("shop".into());
        let Observed { plan, .. } = observe(&asked, &sight()).unwrap();
        let service = &plan.service;
        assert_eq!((service.port, service.node_port, service.target_port), (8000, 31000, 9090));
        assert_eq!(service.protocols, [Protocol::Tcp], "another program does not answer our datagrams");
        assert_eq!(service.external_traffic_policy, TrafficPolicy::Local);
        assert_eq!(plan.pod_cidr, "10.0.0.0/22".parse().unwrap());
        assert!(plan.offloads, "nothing was changed on the nodes");
    }

    #[test]
    fn what_is_missing_is_named() {
        let failed = |change: &dyn Fn(&mut Sight)| {
            let mut asked = asked();
            asked.service.foreign = Some("shop".into());
            let mut sight = sight();
            change(&mut sight);
            observe(&asked, &sight).unwrap_err().to_string()
        };
        let unreachable = failed(&|s| s.deployed.service.ports[0].node_port = None);
        assert!(unreachable.contains("has no TCP port with a nodePort"), "{unreachable}");
        let idle = failed(&|s| s.deployed.pods.clear());
        assert_eq!(idle, "use Service labctl/web: none of its pods is ready");
        let unnamed = failed(&|s| s.deployed.pods[0].ports.clear());
        assert!(unnamed.contains("none of its ready pods has a port named http"), "{unnamed}");
        let unknown = failed(&|s| drop(s.deployed.nodes.pop()));
        assert!(unknown.contains("find node labctl-dsr-worker2"), "{unknown}");
        let hidden = failed(&|s| drop(s.nodes[2].inspection.pods.pop()));
        assert!(hidden.contains("no network namespace in /run/netns"), "{hidden}");
        let offline = failed(&|s| s.client_inspection.interfaces.clear());
        assert!(offline.contains("no interface of labctl-dsr-client"), "{offline}");
        let moved = failed(&|s| s.nodes[1].inspection.interfaces.clear());
        assert!(moved.contains("find the uplink of worker"), "{moved}");
    }
}
