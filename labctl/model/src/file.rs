//! The grammar of lab files, version `labctl/v1`: which fields there are, of which types and what may be left
//! out. The JSON schema is generated from these types, so their documentation is what an editor
//! shows. What values mean together is checked in `resolve/`.

use std::fmt;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Unexpected, Visitor};

use crate::given::Given;
use crate::plan::{
    Affinity, ExpectedStatus, Mode, NodeRole, Protocol, ProviderKind, TrafficPolicy, WireFormat,
};

/// A lab: a client and some nodes on one segment, a service with its backends on the nodes, and the traffic
/// that is sent through the load balancer under test.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(title = "labctl lab file")]
pub(crate) struct LabFile {
    /// Version of this grammar.
    pub(crate) api_version: Given<ApiVersion>,
    /// Name of the lab: lower-case letters, digits and hyphens. Namespaces derive from it.
    #[schemars(length(min = 1, max = 20), regex(pattern = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"))]
    pub(crate) name: Given<String>,
    /// Where the lab runs. Default: netns.
    pub(crate) provider: Option<Given<ProviderKind>>,
    /// How replies travel and which backends may serve.
    pub(crate) mode: Given<Mode>,
    /// Byte order of the DSR option. Default: network.
    pub(crate) wire: Option<Given<WireFormat>>,
    /// Encapsulation between the nodes. Default: none, the pods' addresses are routed natively.
    pub(crate) overlay: Option<Given<Overlay>>,
    /// Segment that the client and the nodes share. Default: 172.18.0.0/16.
    pub(crate) network: Option<Given<Network>>,
    /// MTU of the segment in bytes. Default: 1500.
    #[schemars(range(min = 576, max = 65527))]
    pub(crate) mtu: Option<Given<u16>>,
    /// Whether links leave checksums and segmentation to the hardware. Default: false, so that captures
    /// show frames as a wire carries them and every checksum can be judged.
    pub(crate) offloads: Option<Given<bool>>,
    /// Range in which all pod addresses lie. Default: 10.0.0.0/8.
    #[serde(rename = "podCIDR")]
    pub(crate) pod_cidr: Option<Given<Network>>,
    /// The client. Default: at the first address of the segment.
    pub(crate) client: Option<Given<ClientFile>>,
    /// The nodes, at least one.
    #[schemars(length(min = 1, max = 100))]
    pub(crate) nodes: Given<Vec<Given<NodeFile>>>,
    /// The service under test.
    pub(crate) service: Option<Given<ServiceFile>>,
    /// The pods that serve it, at least one.
    #[schemars(length(min = 1))]
    pub(crate) backends: Given<Vec<Given<BackendFile>>>,
    /// What `labctl verify` sends.
    pub(crate) traffic: Option<Given<TrafficFile>>,
    /// Switches of the bundled datapath.
    pub(crate) datapath: Option<Given<DatapathFile>>,
    /// Settings of the kind provider.
    pub(crate) kind: Option<Given<KindFile>>,
    /// Disturbances that the lab is set up with. Only the netns provider has them.
    pub(crate) faults: Option<Given<Vec<Given<FaultFile>>>>,
    /// Checks whose expected outcome differs from the mode's own, by name.
    pub(crate) expect: Option<Given<Expectations>>,
}

/// Version of the lab file's grammar.
#[derive(Clone, Copy, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(crate) enum ApiVersion {
    /// The only version so far.
    #[serde(rename = "labctl/v1")]
    V1,
}

/// Encapsulation between the nodes.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Overlay {
    /// Native routing.
    None,
    /// VXLAN (RFC 7348).
    Vxlan,
    /// Geneve (RFC 8926).
    Geneve,
}

/// The client host.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "Client")]
pub(crate) struct ClientFile {
    /// Address on the segment.
    pub(crate) address: Given<Address>,
}

/// A node.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "Node")]
pub(crate) struct NodeFile {
    /// Name: lower-case letters, digits and hyphens. `client` and `switch` are taken.
    #[schemars(length(min = 1, max = 20), regex(pattern = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"))]
    pub(crate) name: Given<String>,
    /// Kubernetes role. Default: worker; if no node is a control plane, the first one becomes it.
    pub(crate) role: Option<Given<NodeRole>>,
    /// Address on the segment.
    pub(crate) address: Given<Address>,
    /// Addresses of the node's pods. The first one is their gateway.
    #[serde(rename = "podCIDR")]
    pub(crate) pod_cidr: Given<Network>,
}

/// The service under test.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "Service")]
pub(crate) struct ServiceFile {
    /// Name, also of its pods: `web` has the pods `web-1`, `web-2` and so on. Default: web.
    #[schemars(length(min = 1, max = 20), regex(pattern = r"^[a-z]([a-z0-9-]*[a-z0-9])?$"))]
    pub(crate) name: Option<Given<String>>,
    /// Port on every node. Default: 32000.
    #[schemars(range(min = 1))]
    pub(crate) node_port: Option<Given<u16>>,
    /// Take a nodePort outside 30000-32767. Default: false.
    pub(crate) allow_any_node_port: Option<Given<bool>>,
    /// Port of the cluster IP. Default: 80.
    #[schemars(range(min = 1))]
    pub(crate) port: Option<Given<u16>>,
    /// Port that the backends listen on. Default: 8080.
    #[schemars(range(min = 1))]
    pub(crate) target_port: Option<Given<u16>>,
    /// Protocols. Default: tcp and udp.
    #[schemars(length(min = 1))]
    pub(crate) protocols: Option<Given<Vec<Given<Protocol>>>>,
    /// Which backends may serve. Default: Cluster, in mode local always Local.
    pub(crate) external_traffic_policy: Option<Given<TrafficPolicy>>,
    /// Whether a client keeps its backend. Default: None.
    pub(crate) session_affinity: Option<Given<Affinity>>,
    /// Seconds for which a client keeps its backend. Default: 10800.
    #[schemars(range(min = 1, max = 86400))]
    pub(crate) session_affinity_seconds: Option<Given<u32>>,
    /// Address of the service inside the cluster. Default: 10.96.0.80.
    #[serde(rename = "clusterIP")]
    pub(crate) cluster_ip: Option<Given<Address>>,
}

/// One or more pods that serve.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "Backend")]
pub(crate) struct BackendFile {
    /// Node that they run on.
    pub(crate) node: Given<String>,
    /// Address of a single pod. Default: the first free one from .2 on.
    pub(crate) address: Option<Given<Address>>,
    /// How many pods. Default: 1.
    #[schemars(range(min = 1))]
    pub(crate) replicas: Option<Given<u16>>,
    /// Serve from the node's own address. Default: false.
    pub(crate) host_network: Option<Given<bool>>,
}

/// What `labctl verify` sends.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "Traffic")]
pub(crate) struct TrafficFile {
    /// Node that the client talks to. Default: a worker without a backend, so that every request takes
    /// the extra hop; with policy Local, a node with one.
    pub(crate) via: Option<Given<String>>,
    /// HTTP requests, each on a TCP connection of its own. Default: 8, without TCP 0.
    #[schemars(range(max = 20000))]
    pub(crate) requests: Option<Given<u32>>,
    /// UDP datagrams, each from a port of its own. Default: 8, without UDP 0.
    #[schemars(range(max = 20000))]
    pub(crate) datagrams: Option<Given<u32>>,
    /// Bytes in the body of each HTTP response. Default: 4096.
    #[schemars(range(min = 1, max = 1_073_741_824))]
    pub(crate) response_bytes: Option<Given<u32>>,
}

/// Switches of the bundled datapath.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "Datapath")]
pub(crate) struct DatapathFile {
    /// Judge the load balancer that the cluster has, and load none: provider cluster only. Default: false.
    pub(crate) external: Option<Given<bool>>,
    /// Take the DSR option out of a packet before the pod gets it. Default: true.
    pub(crate) strip_option: Option<Given<bool>>,
    /// Source ports of SNAT, first and last. Default: 61000-65535.
    pub(crate) snat_ports: Option<Given<PortRange>>,
    /// Entries of the conntrack map. Default: 65536.
    #[schemars(range(min = 1024, max = 4_194_304))]
    pub(crate) flows: Option<Given<u32>>,
    /// Write an event per rewrite to a ring buffer. Default: false.
    pub(crate) events: Option<Given<bool>>,
}

/// Settings of the kind provider.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "Kind")]
pub(crate) struct KindFile {
    /// Node image. Default: kind's own.
    #[schemars(length(min = 1))]
    pub(crate) image: Given<String>,
}

/// One disturbance.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "Fault")]
pub(crate) struct FaultFile {
    /// What is disturbed.
    pub(crate) name: Given<FaultName>,
    /// Where: `all`, or a list of nodes. Default: all.
    pub(crate) on: Option<Given<FaultTarget>>,
    /// MTU in bytes; for `pod-mtu`, which needs it.
    #[schemars(range(min = 576))]
    pub(crate) mtu: Option<Given<u16>>,
}

/// What a fault disturbs.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum FaultName {
    /// Strict reverse path filter (rp_filter 1) on every interface of the nodes.
    RpFilterStrict,
    /// The nodes drop forwarded packets that netfilter's conntrack calls invalid.
    DropInvalid,
    /// The nodes' forward chain drops everything.
    ForwardDrop,
    /// The switch drops packets with IPv4 options on their way to the nodes.
    DropOptions,
    /// The pods' veths have a smaller MTU.
    PodMtu,
}

/// An IPv4 address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Address(pub(crate) Ipv4Addr);

/// An IPv4 network in CIDR form; host bits may still be set.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Network(pub(crate) Ipv4Net);

/// Two ports as `first-last`; may still be reversed.
#[derive(Clone, Copy)]
pub(crate) struct PortRange {
    pub(crate) first: u16,
    pub(crate) last: u16,
}

/// Where a fault is.
pub(crate) enum FaultTarget {
    All,
    Nodes(Vec<Given<String>>),
}

/// Check names with what the lab expects of each, in the order of the file.
pub(crate) struct Expectations(pub(crate) Vec<(Given<String>, Given<ExpectedStatus>)>);

/// Reads a value from one piece of text by a function that returns `None` for what is not one.
struct FromText<T> {
    expecting: &'static str,
    read: fn(&str) -> Option<T>,
}

impl<T> Visitor<'_> for FromText<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expecting)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        (self.read)(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }
}

/// A type that is one piece of text in a lab file: how it is described, read and checked by the schema.
macro_rules! text_types {
    ($($type:ident: $expecting:literal, $pattern:literal, $read:expr;)+) => {$(
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(FromText { expecting: $expecting, read: $read })
            }
        }

        impl JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": $pattern })
            }
        }
    )+};
}

text_types! {
    Address: "an IPv4 address such as 172.18.0.1", r"^\d{1,3}(\.\d{1,3}){3}$",
        |text| text.parse().ok().map(Self);
    Network: "an IPv4 network such as 172.18.0.0/16", r"^\d{1,3}(\.\d{1,3}){3}/\d{1,2}$",
        |text| text.parse().ok().map(Self);
    PortRange: "two ports such as 61000-65535", r"^\d{1,5}-\d{1,5}$",
        |text| {
            let (first, last) = text.split_once('-')?;
            Some(Self { first: first.parse().ok()?, last: last.parse().ok()? })
        };
}

impl<'de> Deserialize<'de> for FaultTarget {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FaultTargetVisitor)
    }
}

struct FaultTargetVisitor;

impl<'de> Visitor<'de> for FaultTargetVisitor {
    type Value = FaultTarget;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`all` or a list of nodes")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<FaultTarget, E> {
        match text {
            "all" => Ok(FaultTarget::All),
            _ => Err(E::invalid_value(Unexpected::Str(text), &self)),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<FaultTarget, A::Error> {
        let mut nodes = Vec::new();
        while let Some(node) = list.next_element()? {
            nodes.push(node);
        }
        Ok(FaultTarget::Nodes(nodes))
    }
}

impl JsonSchema for FaultTarget {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "FaultTarget".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "oneOf": [
            { "const": "all" },
            { "type": "array", "minItems": 1, "uniqueItems": true, "items": { "type": "string" } },
        ] })
    }
}

impl<'de> Deserialize<'de> for Expectations {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ExpectationsVisitor)
    }
}

struct ExpectationsVisitor;

impl<'de> Visitor<'de> for ExpectationsVisitor {
    type Value = Expectations;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mapping of check names to `pass` or `fail`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Expectations, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Expectations(entries))
    }
}

impl JsonSchema for Expectations {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Expectations".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let status = generator.subschema_for::<ExpectedStatus>();
        let former = crate::FORMER_CHECK_NAMES.map(|(former, _)| former);
        let names: Vec<_> = crate::CHECK_NAMES.iter().chain(&former).collect();
        json_schema!({
            "type": "object",
            "propertyNames": { "enum": names },
            "additionalProperties": status,
        })
    }
}
