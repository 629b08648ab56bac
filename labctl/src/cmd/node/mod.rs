//! `labctl node`: the roles that labctl starts inside nodes, pods and the client. Hidden: people meet
//! them in process lists and may run them by hand, but nothing here is a promise.
//!
//! Owns: reading a role's options from arguments or stdin. Does not own: the roles themselves
//! (labctl-node, datapath-agent). Each role prints JSON lines on stdout and nothing else.

use std::io::{self, Read, Write};
use std::net::Ipv4Addr;

use clap::Subcommand;
use labctl_provider::join_pod;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::exit::Exit;
use crate::failure::{Failure, Outcome};
use crate::ui::Ui;

mod agent;
mod agent_status;
mod canary;
mod capture;
mod cluster_agent;
mod cluster_clean;
mod cluster_prepare;
mod cluster_ready;
mod fetch;
mod framed;
mod idle;
mod inspect;
mod observe;
mod relay;
mod serve;

/// Run one role of a lab in the current network namespace.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Lab that this process belongs to; clean-up finds it by this argument.
    #[arg(long, global = true, value_name = "LAB")]
    lab: Option<String>,
    /// First join the network namespace of the pod on this node that has this address.
    #[arg(long, global = true, value_name = "ADDRESS")]
    in_pod: Option<Ipv4Addr>,
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    Agent(agent::Args),
    AgentStatus(agent_status::Args),
    Canary(canary::Args),
    Capture(capture::Args),
    ClusterAgent(cluster_agent::Args),
    ClusterClean(cluster_clean::Args),
    ClusterPrepare(cluster_prepare::Args),
    ClusterReady(cluster_ready::Args),
    Serve(serve::Args),
    Fetch(fetch::Args),
    Framed(framed::Args),
    Idle(idle::Args),
    Inspect(inspect::Args),
    Observe(observe::Args),
    Relay(relay::Args),
}

impl Args {
    pub(crate) fn exec(self, ui: &Ui) -> Outcome {
        if let Some(address) = self.in_pod {
            // Before the role starts any thread: they all inherit the namespace of this one.
            join_pod(address).map_err(|error| Failure::because(Exit::SetupFailed, "join the pod", &error))?;
        }
        match self.role {
            Role::Agent(args) => args.exec(ui),
            Role::AgentStatus(args) => args.exec(ui),
            Role::Canary(args) => args.exec(ui),
            Role::Capture(args) => args.exec(ui),
            Role::ClusterAgent(args) => args.exec(ui),
            Role::ClusterClean(args) => args.exec(ui),
            Role::ClusterPrepare(args) => args.exec(ui),
            Role::ClusterReady(args) => args.exec(ui),
            Role::Serve(args) => args.exec(ui),
            Role::Fetch(args) => args.exec(ui),
            Role::Framed(args) => args.exec(ui),
            Role::Idle(args) => args.exec(ui),
            Role::Inspect(args) => args.exec(ui),
            Role::Observe(args) => args.exec(ui),
            Role::Relay(args) => args.exec(ui),
        }
    }
}

/// The options that the starter of a role writes to its stdin as one JSON document.
fn options_from_stdin<T: DeserializeOwned>(what: &str) -> Result<T, Failure> {
    let mut text = String::new();
    std::io::stdin()
        .read_to_string(&mut text)
        .map_err(|error| Failure::because(Exit::Usage, format_args!("read {what} from stdin"), &error))?;
    serde_json::from_str(&text).map_err(|error| {
        Failure::because(Exit::Usage, format_args!("read {what} from stdin as JSON"), &error)
    })
}

/// One JSON line on stdout.
fn line(ui: &Ui, value: &impl Serialize) -> io::Result<()> {
    let mut out = ui.stdout();
    serde_json::to_writer(&mut out, value)?;
    writeln!(out)?;
    out.flush()
}
