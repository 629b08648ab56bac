//! `labctl node cluster-agent`: the node agent of a real cluster, from options to the agent's library.

use std::path::PathBuf;

use clap::{ArgAction, ValueEnum};
use datapath_agent::{AttachMode, DatapathMode, DatapathOptions, MapRoom};
use ipnet::Ipv4Net;
use labctl_agent::{AgentOptions, NetworkMode, ServiceName};

use crate::exit::Exit;
use crate::failure::{Failure, Outcome};
use crate::ui::Ui;

/// Keep this node's network and datapath what the Kubernetes API says, until SIGTERM.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Name of this node's Node object.
    #[arg(long, value_name = "NAME")]
    node_name: String,
    /// The API server at a node's address.
    #[arg(long, value_name = "URL")]
    api_server: String,
    /// Forwarding mode.
    #[arg(long, value_enum)]
    mode: Mode,
    /// Byte order of the DSR option.
    #[arg(long, value_enum, default_value_t = Wire::Network)]
    wire: Wire,
    /// Strip the DSR option before the pod.
    #[arg(long, action = ArgAction::Set, default_value_t = true, value_name = "BOOL")]
    strip_option: bool,
    /// First and last source port of SNAT.
    #[arg(long, value_parser = port_range, value_name = "FIRST-LAST")]
    snat_ports: (u16, u16),
    /// Entries of the conntrack map.
    #[arg(long, value_name = "N")]
    flows: u32,
    /// Write ring buffer events.
    #[arg(long, action = ArgAction::Set, default_value_t = false, value_name = "BOOL")]
    events: bool,
    /// Range of all nodes' pods.
    #[arg(long, value_name = "CIDR")]
    pod_cidr: Ipv4Net,
    /// Whether to be the network plugin too.
    #[arg(long, value_enum)]
    network: Network,
    /// Folder on a bpffs that holds this node's pins.
    #[arg(long, value_name = "DIR")]
    pin_dir: PathBuf,
    /// Serve only this Service, may be repeated.
    #[arg(long = "service", value_name = "NAMESPACE/NAME")]
    services: Vec<ServiceName>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Mode {
    Dsr,
    Snat,
    Hybrid,
    Local,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Wire {
    Network,
    Cilium,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Network {
    /// CNI configuration and routes to the other nodes' pods.
    Full,
    /// The cluster has a network plugin.
    None,
}

/// `FIRST-LAST`, both included.
fn port_range(text: &str) -> Result<(u16, u16), String> {
    let range =
        text.split_once('-').and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
    match range {
        Some((first, last)) if first > 0 && first <= last => Ok((first, last)),
        _ => Err("two ports, for example 61000-65535".to_owned()),
    }
}

impl Args {
    pub(crate) fn exec(self, ui: &Ui) -> Outcome {
        let node = self.node_name.clone();
        labctl_agent::run(self.options(), &mut |line| ui.say(line)).map_err(|error| {
            Failure::because(Exit::SetupFailed, format_args!("be the agent of node {node}"), &error)
        })?;
        Ok(Exit::Ok)
    }

    fn options(self) -> AgentOptions {
        AgentOptions {
            datapath: self.datapath(),
            node: self.node_name,
            api_server: self.api_server,
            pod_cidr: self.pod_cidr,
            network: match self.network {
                Network::Full => NetworkMode::Full,
                Network::None => NetworkMode::None,
            },
            pins: self.pin_dir,
            only: self.services,
        }
    }

    fn datapath(&self) -> DatapathOptions {
        DatapathOptions {
            mode: match self.mode {
                Mode::Dsr => DatapathMode::Dsr,
                Mode::Snat => DatapathMode::Snat,
                Mode::Hybrid => DatapathMode::Hybrid,
                Mode::Local => DatapathMode::Local,
            },
            wire_cilium: self.wire == Wire::Cilium,
            strip_option: self.strip_option,
            snat_ports: self.snat_ports,
            flows: self.flows,
            events: self.events,
            host_clients: true,
            attach: AttachMode::Auto,
            room: MapRoom::CLUSTER,
            mutation: 0,
        }
    }
}
