//! What the nodes' datapaths are and have done, wherever the nodes are.
//!
//! Owns: where the pins of a node lie, and asking all nodes at once. Does not own: reading pins
//! (datapath-agent).

use std::path::{Path, PathBuf};
use std::time::Duration;

use datapath_agent::{DatapathStatus, StatusError};
use labctl_provider::{Host, Lab, Place};

use super::interrupt::Interrupt;
use super::role::{Role, RoleError};

/// Where an agent in a cluster pins, in its node's file system.
const PIN_DIR: &str = "/sys/fs/bpf/labctl";

/// How long a node may take to tell.
const LIMIT: Duration = Duration::from_secs(10);

/// A node did not tell.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DatapathError {
    /// Its pins cannot be read.
    #[error(transparent)]
    Pins(#[from] StatusError),
    /// Its namespace cannot be entered.
    #[error("enter {host}: {source}")]
    Enter {
        /// The node.
        host: String,
        /// The system's words.
        source: std::io::Error,
    },
    /// The role that reads them there failed.
    #[error(transparent)]
    Role(#[from] RoleError),
}

/// A node being asked.
enum Asked<'a> {
    /// Its pins are files of this machine; what is attached is asked inside the node.
    Pins(&'a Host, PathBuf),
    /// A role there reads them.
    Role(Result<Role, RoleError>),
}

/// The datapath of every node, in the order of the plan; of nobody where it is not ours.
pub(crate) fn statuses<'a>(
    lab: &'a Lab,
    interrupt: &Interrupt,
) -> Vec<(&'a str, Result<DatapathStatus, DatapathError>)> {
    if lab.plan().datapath.external {
        return Vec::new();
    }
    // All are started before the first is waited for.
    let asked: Vec<(&Host, Asked<'_>)> = lab.nodes().map(|node| (node, ask(lab, node))).collect();
    asked.into_iter().map(|(node, asked)| (node.name.as_str(), answer(asked, interrupt))).collect()
}

fn ask<'a>(lab: &'a Lab, node: &'a Host) -> Asked<'a> {
    if matches!(node.place, Place::Namespace { .. }) {
        return Asked::Pins(node, lab.bpf_dir(&node.name));
    }
    let role = Role::spawn(node, "agent-status", &node.name, &lab.log_dir(), |command| {
        command.arg("--pin-dir").arg(Path::new(PIN_DIR));
    });
    Asked::Role(role)
}

fn answer(asked: Asked<'_>, interrupt: &Interrupt) -> Result<DatapathStatus, DatapathError> {
    match asked {
        Asked::Pins(host, dir) => {
            let status = host.enter(|| datapath_agent::status(&dir));
            let enter = |source| DatapathError::Enter { host: host.name.clone(), source };
            Ok(status.map_err(enter)??)
        }
        Asked::Role(role) => Ok(role?.answer(interrupt, "its status", LIMIT)?),
    }
}
