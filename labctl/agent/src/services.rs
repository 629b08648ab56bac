//! Kubernetes' Services to the datapath's: what kube-proxy would decide, from the same objects. Pure.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::Ipv4Addr;

use datapath_agent::{BackendState, DatapathMode, Proto, ServiceState};
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use kube::ResourceExt as _;

use crate::options::{AgentOptions, ServiceName};
use crate::view::{ClusterView, Endpoint, Slice};

/// How long a client sticks to its backend unless the Service says otherwise, seconds (Kubernetes' default).
const AFFINITY_SECONDS: u32 = 10_800;

/// The services of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Services {
    /// What the datapath shall serve, in a stable order.
    pub states: Vec<ServiceState>,
    /// What was left out and why, one sentence each.
    pub left_out: Vec<String>,
}

/// Everything that a cluster's objects ask of the datapath.
pub fn services(view: &ClusterView, options: &AgentOptions) -> Services {
    let mut slices: BTreeMap<ServiceName, Vec<&Slice>> = BTreeMap::new();
    for slice in &view.slices {
        let name = ServiceName { namespace: slice.namespace.clone(), name: slice.service.clone() };
        slices.entry(name).or_default().push(slice);
    }
    let mut sorted: Vec<(ServiceName, &Service)> =
        view.services.iter().map(|service| (name_of(service), &**service)).collect();
    sorted.sort_by(|a, b| a.0.cmp(&b.0));
    let mut found = Services::default();
    for (name, service) in sorted {
        if !options.only.is_empty() && !options.only.contains(&name) {
            continue;
        }
        let Some((spec, cluster_ip)) = with_cluster_ip(service) else { continue };
        let slices = slices.get(&name).map_or(&[][..], Vec::as_slice);
        for port in spec.ports.as_deref().unwrap_or(&[]) {
            let asked = Asked { name: &name, spec, cluster_ip, port, slices };
            asked.answer(view, options, &mut found);
        }
    }
    found
}

fn name_of(service: &Service) -> ServiceName {
    ServiceName { namespace: service.namespace().unwrap_or_default(), name: service.name_any() }
}

/// Headless and ExternalName Services need no load balancer; those with IPv6 only are not ours.
fn with_cluster_ip(service: &Service) -> Option<(&ServiceSpec, Ipv4Addr)> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    let all = spec.cluster_ip.iter().chain(spec.cluster_ips.as_deref().unwrap_or(&[]));
    let address = all.filter_map(|address| address.parse().ok()).next()?;
    Some((spec, address))
}

/// One port of one Service.
struct Asked<'a> {
    name: &'a ServiceName,
    spec: &'a ServiceSpec,
    cluster_ip: Ipv4Addr,
    port: &'a ServicePort,
    slices: &'a [&'a Slice],
}

impl Asked<'_> {
    fn answer(&self, view: &ClusterView, options: &AgentOptions, found: &mut Services) {
        let text = self.port.protocol.as_deref().unwrap_or("TCP");
        let protocol = match text {
            "TCP" => Proto::Tcp,
            "UDP" => Proto::Udp,
            other => {
                let port = self.port.port;
                let name = self.name;
                let what = format!("port {port}/{other} of service {name}: only TCP and UDP are served");
                return found.left_out.push(what);
            }
        };
        let Ok(port) = u16::try_from(self.port.port) else { return };
        let exposed = matches!(self.spec.type_.as_deref(), Some("NodePort" | "LoadBalancer"));
        let node_port = self.port.node_port.filter(|_| exposed).and_then(|port| u16::try_from(port).ok());
        let is_local = |policy: &Option<String>| policy.as_deref() == Some("Local");
        found.states.push(ServiceState {
            // No two Services have the same ClusterIP, it stays as long as the Service, and all its ports share it.
            id: u32::from(self.cluster_ip),
            protocol,
            cluster_ip: Some((self.cluster_ip, port)),
            node_port: node_port.filter(|port| *port != 0),
            local_only: is_local(&self.spec.external_traffic_policy)
                || options.datapath.mode == DatapathMode::Local,
            internal_local: is_local(&self.spec.internal_traffic_policy),
            affinity_seconds: affinity_seconds(self.spec),
            backends: self.backends(view, text, &mut found.left_out),
        });
    }

    /// Every endpoint once, though it may be in two slices while it moves from one to the other.
    fn backends(&self, view: &ClusterView, text: &str, left_out: &mut Vec<String>) -> Vec<BackendState> {
        let mut found: BTreeMap<(Ipv4Addr, u16), BackendState> = BTreeMap::new();
        let name = self.port.name.as_deref().unwrap_or("");
        for slice in self.slices {
            let same = slice.ports.iter().filter(|port| port.name == name && port.protocol == text);
            for port in same {
                for endpoint in &slice.endpoints {
                    let Some(node) = node_of(view, endpoint) else {
                        left_out.push(format!(
                            "endpoint {} of service {}: it is neither a node nor a pod of the cluster",
                            endpoint.address, self.name
                        ));
                        continue;
                    };
                    let backend = backend(endpoint, port.port, node);
                    keep_better(found.entry((backend.address, backend.port)), backend);
                }
            }
        }
        found.into_values().collect()
    }
}

fn affinity_seconds(spec: &ServiceSpec) -> Option<u32> {
    (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
        let seconds = config.and_then(|config| config.timeout_seconds);
        seconds.and_then(|seconds| u32::try_from(seconds).ok()).unwrap_or(AFFINITY_SECONDS)
    })
}

/// Address of the node that an endpoint is on. The endpoints of `kubernetes.default` name no node: they are the
/// addresses of the nodes that run an API server.
fn node_of(view: &ClusterView, endpoint: &Endpoint) -> Option<Ipv4Addr> {
    let named = |name: &String| view.nodes.iter().find(|node| node.name == *name);
    let by_name = endpoint.node.as_ref().and_then(named);
    let is_it = || view.nodes.iter().find(|node| node.address == endpoint.address);
    let has_it = || {
        view.nodes.iter().find(|node| node.pod_cidr.is_some_and(|range| range.contains(&endpoint.address)))
    };
    by_name.or_else(is_it).or_else(has_it).map(|node| node.address)
}

fn backend(endpoint: &Endpoint, port: u16, node: Ipv4Addr) -> BackendState {
    let leaving = !endpoint.ready && endpoint.serving && endpoint.terminating;
    BackendState {
        address: endpoint.address,
        port,
        node,
        terminating: leaving,
        retired: !endpoint.ready && !leaving,
    }
}

/// Of two entries for one socket, the one that takes more traffic.
fn keep_better(place: Entry<'_, (Ipv4Addr, u16), BackendState>, backend: BackendState) {
    let rank = |backend: &BackendState| (backend.retired, backend.terminating);
    match place {
        Entry::Vacant(place) => {
            place.insert(backend);
        }
        Entry::Occupied(mut place) if rank(&backend) < rank(place.get()) => {
            place.insert(backend);
        }
        Entry::Occupied(_) => {}
    }
}
