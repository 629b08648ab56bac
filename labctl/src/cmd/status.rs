//! `labctl status`: what a lab is made of and what its datapath has done.
//!
//! Owns: gathering (hosts, service, backends, pinned programs and maps, counters) and its two forms. Does
//! not own: reading pins (datapath-agent), or any judgement; that is `verify`.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::time::{SystemTime, UNIX_EPOCH};

use datapath_agent::DatapathStatus;
use datapath_types::DropReason;
use labctl_model::{NodePlan, Plan, PodPlan, ServicePlan};
use labctl_provider::{Lab, Labs};
use serde::Serialize;

use crate::cmd::ResultFormat;
use crate::cmd::list::age;
use crate::exit::Exit;
use crate::failure::{Failure, Outcome};
use crate::pick::find_up;
use crate::run::{Interrupt, listening, statuses};
use crate::ui::{Paint, Tone, Ui, table};

/// Show a lab: nodes, service, backends, attached programs, map fill, drops.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The lab; may be left out when one is up.
    name: Option<String>,
    /// How to print it.
    #[arg(long, value_enum, default_value_t)]
    format: ResultFormat,
}

/// The JSON of `labctl status`.
#[derive(Serialize)]
struct Report<'a> {
    schema: &'static str,
    lab: &'a str,
    provider: String,
    mode: String,
    wire: String,
    /// Seconds since 1970.
    created: u64,
    version: &'a str,
    /// What is not as `up` left it; empty for a healthy lab.
    problems: Vec<String>,
    client: Client<'a>,
    service: &'a ServicePlan,
    nodes: Vec<Node<'a>>,
    backends: Vec<Backend<'a>>,
}

#[derive(Serialize)]
struct Client<'a> {
    name: &'a str,
    address: String,
    /// Network namespace, container or pod.
    place: String,
}

#[derive(Serialize)]
struct Node<'a> {
    name: &'a str,
    role: String,
    address: String,
    pod_cidr: String,
    /// Network namespace, container or pod.
    place: String,
    /// `None` when the pins cannot be read; then [`Report::problems`] says why.
    datapath: Option<DatapathStatus>,
}

#[derive(Serialize)]
struct Backend<'a> {
    pod: &'a str,
    node: &'a str,
    address: SocketAddrV4,
    host_network: bool,
    /// Whether it accepts TCP connections from its own namespace.
    listening: bool,
}

impl Args {
    pub(crate) fn exec(self, ui: &Ui) -> Outcome {
        let interrupt = Interrupt::take_over()?;
        let lab = find_up(&Labs::new(), self.name.as_deref(), "status")?;
        let report = gather(&lab, &interrupt);
        match self.format {
            ResultFormat::Json => ui.json(&report)?,
            ResultFormat::Text => ui.text(&text(&report, ui.paint()))?,
        }
        if !report.problems.is_empty() {
            ui.warn(&format!(
                "{name} is not as up left it; its labctl up makes it anew, labctl down {name} removes it",
                name = lab.name()
            ));
        }
        Ok(Exit::Ok)
    }
}

fn gather<'a>(lab: &'a Lab, interrupt: &Interrupt) -> Report<'a> {
    let plan: &Plan = lab.plan();
    let mut problems: Vec<String> = lab.check().iter().map(ToString::to_string).collect();
    let told = statuses(lab, interrupt);
    let datapaths = told.into_iter().filter_map(|(name, status)| {
        let status = status.inspect_err(|error| {
            let failure = Failure::because(Exit::SetupFailed, format_args!("read {name}"), error);
            problems.push(failure.to_string());
        });
        Some((name, status.ok()?))
    });
    let mut datapaths: BTreeMap<&str, DatapathStatus> = datapaths.collect();
    for (node, datapath) in &datapaths {
        let detached = datapath.programs.iter().filter(|program| !program.attached);
        problems.extend(
            detached.map(|p| format!("{} is no longer attached to {node}:{}", p.program, p.interface)),
        );
    }
    let nodes: Vec<Node<'_>> =
        plan.nodes.iter().map(|n| node(lab, n, datapaths.remove(n.name.as_str()))).collect();
    let accepting: BTreeMap<&str, bool> =
        listening(lab, interrupt).into_iter().map(|(pod, accepts)| (pod.name.as_str(), accepts)).collect();
    let is_listening = |pod: &PodPlan| accepting.get(pod.name.as_str()).copied().unwrap_or(false);
    let backends: Vec<Backend<'_>> =
        plan.backends().map(|(node, pod)| backend(plan, node, pod, is_listening(pod))).collect();
    for silent in backends.iter().filter(|backend| !backend.listening) {
        problems.push(format!("backend {} does not accept connections on {}", silent.pod, silent.address));
    }
    Report {
        schema: "labctl.status/v1",
        lab: lab.name(),
        provider: plan.provider.to_string(),
        mode: plan.mode.to_string(),
        wire: plan.wire.to_string(),
        created: lab.created().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        version: lab.version(),
        problems,
        client: Client {
            name: &plan.client.name,
            address: plan.client.address.to_string(),
            place: lab.client().place.to_string(),
        },
        service: &plan.service,
        nodes,
        backends,
    }
}

fn node<'a>(lab: &'a Lab, plan: &'a NodePlan, datapath: Option<DatapathStatus>) -> Node<'a> {
    Node {
        name: &plan.name,
        role: plan.role.to_string(),
        address: plan.address.to_string(),
        pod_cidr: plan.pod_cidr.to_string(),
        place: lab.host(&plan.name).map_or_else(String::new, |host| host.place.to_string()),
        datapath,
    }
}

fn backend<'a>(plan: &Plan, node: &'a NodePlan, pod: &'a PodPlan, listening: bool) -> Backend<'a> {
    Backend {
        pod: &pod.name,
        node: &node.name,
        address: SocketAddrV4::new(pod.address, plan.service.target_port),
        host_network: pod.host_network,
        listening,
    }
}

fn text(report: &Report<'_>, paint: Paint) -> String {
    let mut sections = vec![heading(report)];
    if !report.problems.is_empty() {
        sections.push(problems(&report.problems, paint));
    }
    sections.extend([hosts(report), backends(report)]);
    // Another's datapath has none of these.
    if datapaths(report).next().is_some() {
        sections.extend([programs(report), maps(report)]);
    }
    sections.extend(counts(report, "counter", |datapath| &datapath.counters, |_| ""));
    sections.extend(counts(report, "drop", |datapath| &datapath.drops, why));
    sections.join("\n")
}

fn heading(report: &Report<'_>) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let service = report.service;
    let protocols: Vec<String> = service.protocols.iter().map(ToString::to_string).collect();
    format!(
        "lab {}: mode {}, {} wire order, provider {}, made {} ago by labctl {}\n\
         service {}: NodePort {}/{} on every node, ClusterIP {}:{}, target port {}, traffic policy {}\n",
        report.lab,
        report.mode,
        report.wire,
        report.provider,
        age(now.saturating_sub(report.created)),
        report.version,
        service.name,
        service.node_port,
        protocols.join("+"),
        service.cluster_ip,
        service.port,
        service.target_port,
        service.external_traffic_policy,
    )
}

fn problems(problems: &[String], paint: Paint) -> String {
    problems.iter().map(|problem| format!("{}: {problem}\n", paint.tone(Tone::Bad, "problem"))).collect()
}

fn hosts(report: &Report<'_>) -> String {
    let client = &report.client;
    let first = [client.name, "client", &client.address, "-", &client.place].map(str::to_owned);
    let nodes =
        report.nodes.iter().map(|n| [n.name, &n.role, &n.address, &n.pod_cidr, &n.place].map(str::to_owned));
    table(["host", "role", "address", "pods", "place"], std::iter::once(first).chain(nodes))
}

fn backends(report: &Report<'_>) -> String {
    let state = |listening| if listening { "listening" } else { "silent" };
    let row = |b: &Backend<'_>| {
        let network = if b.host_network { "host" } else { "own" };
        [b.pod, b.node, &b.address.to_string(), network, state(b.listening)].map(str::to_owned)
    };
    table(["backend", "node", "address", "network", "state"], report.backends.iter().map(row))
}

/// Every node whose pins could be read.
fn datapaths<'a>(report: &'a Report<'_>) -> impl Iterator<Item = (&'a str, &'a DatapathStatus)> {
    report.nodes.iter().filter_map(|node| Some((node.name, node.datapath.as_ref()?)))
}

fn programs(report: &Report<'_>) -> String {
    let rows = datapaths(report).flat_map(|(node, datapath)| {
        let row = move |p: &datapath_agent::ProgramStatus| {
            let state = if p.attached { "attached" } else { "detached" };
            [node.to_owned(), p.interface.clone(), p.program.clone(), state.to_owned()]
        };
        datapath.programs.iter().map(row)
    });
    table(["node", "interface", "program", "state"], rows)
}

fn maps(report: &Report<'_>) -> String {
    let rows = datapaths(report).flat_map(|(node, datapath)| {
        datapath.maps.iter().filter_map(move |map| {
            // Empty maps say nothing to people; the JSON has them all.
            let entries = map.entries.filter(|entries| *entries > 0)?;
            let percent = u64::from(entries) * 100 / u64::from(map.max_entries.max(1));
            Some([
                node.to_owned(),
                map.name.clone(),
                entries.to_string(),
                map.max_entries.to_string(),
                format!("{percent}%"),
            ])
        })
    });
    table(["node", "map", "entries", "room", "fill"], rows)
}

/// A table of numbers that are not zero, if there are any.
fn counts(
    report: &Report<'_>,
    what: &str,
    of: fn(&DatapathStatus) -> &BTreeMap<String, u64>,
    why: fn(&str) -> &'static str,
) -> Option<String> {
    let rows: Vec<[String; 4]> = datapaths(report)
        .flat_map(|(node, datapath)| {
            of(datapath)
                .iter()
                .map(move |(name, n)| [node.to_owned(), name.clone(), n.to_string(), why(name).to_owned()])
        })
        .collect();
    (!rows.is_empty()).then(|| table(["node", what, "packets", ""], rows))
}

/// What a drop reason means.
fn why(label: &str) -> &'static str {
    DropReason::ALL
        .iter()
        .find(|reason| reason.label() == label)
        .map_or("", |reason| reason.explanation().trim())
}
