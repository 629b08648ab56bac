//! `labctl node`: the roles that labctl starts inside nodes, pods and the client. Hidden: people meet
//! them in process lists and may run them by hand, but nothing here is a promise.
//!
//! Owns: reading a role's options from arguments or stdin. Does not own: the roles themselves
//! (labctl-node, datapath-agent). Each role prints JSON lines on stdout and nothing else.

use std::io::Read;

use clap::Subcommand;
use serde::de::DeserializeOwned;

use crate::exit::Exit;
use crate::failure::{Failure, Outcome};
use crate::ui::Ui;

mod agent;
mod capture;
mod fetch;
mod serve;

/// Run one role of a lab in the current network namespace.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Lab that this process belongs to; clean-up finds it by this argument.
    #[arg(long, global = true, value_name = "LAB")]
    lab: Option<String>,
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    Agent(agent::Args),
    Capture(capture::Args),
    Serve(serve::Args),
    Fetch(fetch::Args),
}

impl Args {
    pub(crate) fn exec(self, ui: &Ui) -> Outcome {
        match self.role {
            Role::Agent(args) => args.exec(ui),
            Role::Capture(args) => args.exec(ui),
            Role::Serve(args) => args.exec(ui),
            Role::Fetch(args) => args.exec(ui),
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
