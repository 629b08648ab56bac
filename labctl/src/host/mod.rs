//! What this machine can do, found out by trying it: privileges, kernel features, tools.
//!
//! Owns: the probes and the words that say how to mend each lack. Does not own: how findings are shown,
//! or what a provider does with the machine. Every probe leaves nothing behind: sockets and file
//! descriptors are closed, network probes run in a namespace of their own that ends with its thread.

use labctl_model::ProviderKind;
use serde::Serialize;

pub(crate) use privileges::require as require_privileges;

mod bpf;
mod clusters;
mod kernel;
mod netlink;
mod privileges;
mod tools;

/// What one probe found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// What was probed, for example `veth`.
    pub(crate) name: &'static str,
    /// Which part of the machine it belongs to.
    pub(crate) area: Area,
    /// Whether it is there.
    pub(crate) status: Status,
    /// Whether labs of the provider in question cannot do without it.
    pub(crate) required: bool,
    /// What was seen: a version, a path, the kernel's error.
    pub(crate) detail: String,
    /// The command, or the one sentence, that mends the lack.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) fix: Option<String>,
}

/// Which part of the machine a finding belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Area {
    /// What this process may do.
    Privileges,
    /// What the kernel can do.
    Kernel,
    /// What labs on clusters take.
    Clusters,
    /// Programs that labctl can use and does not need.
    Tools,
}

/// Whether something is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Status {
    /// Tried, works.
    Ok,
    /// Tried, does not work, or is not installed.
    Missing,
    /// Could not be tried.
    Unknown,
}

impl Finding {
    fn ok(area: Area, name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, area, status: Status::Ok, required: true, detail: detail.into(), fix: None }
    }

    fn missing(area: Area, name: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { status: Status::Missing, fix: Some(fix.into()), ..Self::ok(area, name, detail) }
    }

    fn unknown(area: Area, name: &'static str, detail: impl Into<String>) -> Self {
        Self { status: Status::Unknown, ..Self::ok(area, name, detail) }
    }

    fn optional(self) -> Self {
        Self { required: false, ..self }
    }

    /// The same with what the provider needs required, and nothing else.
    fn for_provider(self, provider: ProviderKind) -> Self {
        let needed = match (provider, self.area) {
            (ProviderKind::Netns, Area::Privileges | Area::Kernel) => true,
            // The nodes' containers use this kernel; what only root can try is theirs to try.
            (ProviderKind::Kind, Area::Kernel) => self.status != Status::Unknown,
            (ProviderKind::Kind, Area::Clusters) => true,
            // The client's container is all that runs here for sure.
            (ProviderKind::Cluster, Area::Clusters) => self.name == clusters::DOCKER,
            _ => false,
        };
        Self { required: self.required && needed, ..self }
    }

    /// Whether labs of the provider in question cannot run because of this.
    pub(crate) fn blocks(&self) -> bool {
        self.required && self.status != Status::Ok
    }
}

/// Tries everything, for labs of this provider. Takes some milliseconds and changes nothing.
pub(crate) fn examine(provider: ProviderKind) -> Vec<Finding> {
    let mut findings = privileges::findings();
    findings.extend(kernel::findings());
    findings.extend(clusters::findings());
    findings.extend(tools::findings());
    findings.into_iter().map(|finding| finding.for_provider(provider)).collect()
}

/// Whether labs on kind clusters can run here, by findings for any provider.
pub(crate) fn runs_kind(findings: &[Finding]) -> bool {
    let matters = |f: &&Finding| f.area == Area::Clusters || (f.area == Area::Kernel && f.required);
    findings.iter().filter(matters).all(|f| f.status != Status::Missing)
}
