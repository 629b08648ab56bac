//! Every lab of this machine, whatever provider made it.
//!
//! Owns: finding out which provider has a lab, and that a name belongs to one lab only. Does not own: anything that a
//! provider does. What a provider needs (root, Docker) is asked for only when it has something to do: a machine
//! without Docker lists, finds and removes netns labs as if the other providers did not exist.

use std::io::ErrorKind;

use labctl_model::ProviderKind;

use crate::cluster::ClusterProvider;
use crate::kind::KindProvider;
use crate::lab::{Lab, LabEntry, LabState};
use crate::netns::{DownError, DownReport, GcError, GcReport, LabLock, LockError, NetnsProvider, StateError};
use crate::steps::StepEvent;

/// A lab of one of the providers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProvidedLab {
    /// Who has it.
    pub provider: ProviderKind,
    /// Its name.
    pub name: String,
    /// How far it is.
    pub state: LabState,
}

/// All providers.
#[derive(Clone, Debug, Default)]
pub struct Labs {
    /// Network namespaces.
    pub netns: NetnsProvider,
    /// kind clusters.
    pub kind: KindProvider,
    /// Clusters that are there already.
    pub cluster: ClusterProvider,
}

/// Every provider, in the order in which their labs are looked for.
pub const PROVIDERS: [ProviderKind; 3] = [ProviderKind::Netns, ProviderKind::Kind, ProviderKind::Cluster];

impl Labs {
    /// With each provider's own folder for state.
    pub fn new() -> Self {
        Self::default()
    }

    /// Every lab, sorted by name. Asks neither Docker nor a cluster, and needs no root.
    ///
    /// # Errors
    /// When a folder of states cannot be read.
    pub fn list(&self) -> Result<Vec<ProvidedLab>, StateError> {
        let mut labs = Vec::new();
        for provider in PROVIDERS {
            let entries = match provider {
                ProviderKind::Netns => self.netns.list(),
                ProviderKind::Kind => unless_denied(self.kind.list()),
                ProviderKind::Cluster => unless_denied(self.cluster.list()),
            }?;
            labs.extend(entries.into_iter().map(|entry| ProvidedLab {
                provider,
                name: entry.name,
                state: entry.state,
            }));
        }
        labs.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(labs)
    }

    /// Who has a lab of this name, whole or half-made.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub fn provider_of(&self, lab: &str) -> Result<Option<ProviderKind>, StateError> {
        Ok(self.list()?.into_iter().find(|known| known.name == lab).map(|known| known.provider))
    }

    /// The complete lab of this provider, as it is now.
    ///
    /// # Errors
    /// As the provider's own `find`.
    pub fn find(&self, provider: ProviderKind, lab: &str) -> Result<Option<Lab>, StateError> {
        match provider {
            ProviderKind::Netns => self.netns.find(lab),
            ProviderKind::Kind => self.kind.find(lab),
            ProviderKind::Cluster => self.cluster.find(lab),
        }
    }

    /// Takes the lab's lock at this provider.
    ///
    /// # Errors
    /// As the provider's own `lock`.
    pub fn lock(&self, provider: ProviderKind, lab: &str) -> Result<LabLock, LockError> {
        match provider {
            ProviderKind::Netns => self.netns.lock(lab),
            ProviderKind::Kind => self.kind.lock(lab),
            ProviderKind::Cluster => self.cluster.lock(lab),
        }
    }

    /// Removes the lab that is locked.
    ///
    /// # Errors
    /// As the provider's own `down`.
    pub fn down(
        &self,
        provider: ProviderKind,
        lock: LabLock,
        on_step: &mut dyn FnMut(StepEvent),
    ) -> Result<DownReport, DownError> {
        match provider {
            ProviderKind::Netns => self.netns.down(lock, on_step),
            ProviderKind::Kind => self.kind.down(lock, on_step),
            ProviderKind::Cluster => self.cluster.down(lock, on_step),
        }
    }

    /// Removes what killed commands left at this provider.
    ///
    /// # Errors
    /// As the provider's own `gc`.
    pub fn gc(&self, provider: ProviderKind) -> Result<GcReport, GcError> {
        match provider {
            ProviderKind::Netns => self.netns.gc(),
            ProviderKind::Kind => self.kind.gc(),
            ProviderKind::Cluster => self.cluster.gc(),
        }
    }
}

/// Labs in a folder that this user may not read are another user's.
fn unless_denied(listed: Result<Vec<LabEntry>, StateError>) -> Result<Vec<LabEntry>, StateError> {
    match listed {
        Err(StateError::Io { source, .. }) if source.kind() == ErrorKind::PermissionDenied => Ok(Vec::new()),
        listed => listed,
    }
}
