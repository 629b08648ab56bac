//! What the hosts of a lab are made of now, whatever `up` made of them.
//!
//! Owns: asking every host, and the programs at its interfaces. Does not own: asking one kernel ([`labctl_provider::observe`],
//! [`datapath_agent::tcx_programs`]), or what follows for a verdict.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use labctl_provider::{Host, HostKind, InspectError, Lab, Place, observe};
use labctl_wire::facts::{Hook, HostFacts, ProgramFacts};

use super::interrupt::Interrupt;
use super::role::{Role, RoleError};

/// How long a host may take to tell.
const LIMIT: Duration = Duration::from_secs(10);

/// A host cannot be observed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ObserveError {
    /// Its namespace cannot be entered.
    #[error("enter {host}: {source}")]
    Enter {
        /// The host.
        host: String,
        /// The system's words.
        source: io::Error,
    },
    /// Its kernel does not tell.
    #[error("observe {host}: {source}")]
    Inspect {
        /// The host.
        host: String,
        /// Why.
        source: InspectError,
    },
    /// The role that looks there failed.
    #[error(transparent)]
    Role(#[from] RoleError),
}

/// The calling thread's network namespace with all programs at its interfaces.
///
/// # Errors
/// What the kernel refused.
pub(crate) fn here() -> Result<HostFacts, InspectError> {
    let mut facts = observe()?;
    for interface in &mut facts.interfaces {
        let tcx = datapath_agent::tcx_programs(&interface.name).into_iter().map(|program| ProgramFacts {
            hook: if program.is_ingress { Hook::Ingress } else { Hook::Egress },
            id: program.id,
            name: program.name,
        });
        interface.programs.extend(tcx);
    }
    Ok(facts)
}

/// Every host of a lab but the switch, by name.
///
/// # Errors
/// [`ObserveError`] of the first host that does not tell.
pub(crate) fn hosts(lab: &Lab, interrupt: &Interrupt) -> Result<BTreeMap<String, HostFacts>, ObserveError> {
    let hosts = lab.hosts().iter().filter(|host| host.kind != HostKind::Switch);
    // Roles are started before the first is waited for.
    let asked: Vec<_> = hosts.map(|host| (host, ask(lab, host))).collect();
    let mut told = BTreeMap::new();
    for (host, asked) in asked {
        let facts = match asked? {
            Asked::Told(facts) => facts,
            Asked::Role(role) => role.answer(interrupt, "its facts", LIMIT)?,
        };
        told.insert(host.name.clone(), facts);
    }
    Ok(told)
}

/// A host that was asked.
enum Asked {
    Told(HostFacts),
    /// A role there looks.
    Role(Role),
}

fn ask(lab: &Lab, host: &Host) -> Result<Asked, ObserveError> {
    if !matches!(host.place, Place::Namespace { .. }) {
        let role = Role::spawn(host, "observe", &host.name, &lab.log_dir(), |_| {})?;
        return Ok(Asked::Role(role));
    }
    let name = || host.name.clone();
    let told = host.enter(here).map_err(|source| ObserveError::Enter { host: name(), source })?;
    told.map(Asked::Told).map_err(|source| ObserveError::Inspect { host: name(), source })
}
