//! What labs on clusters leave on disk: `<state folder>/<lab>/lab.json`, a kubeconfig, logs; and their locks.
//!
//! Owns: the file's format and phases, finding labs. Does not own: what is in Docker or in a cluster, the lock
//! itself (`LabLock`). Like the netns provider's state, the file is written before anything is made, when all is
//! made, and when removing begins, each time by rename.

use std::env;
use std::fmt::Display;
use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use labctl_model::{Plan, ProviderKind};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::timeout;

use crate::docker::Engine;
use crate::host::{Host, HostKind};
use crate::kubernetes::Access;
use crate::lab::{Lab, LabEntry, LabState};
use crate::netns::host_lock::names_in;
use crate::netns::state::{self, FILE, FolderGuard, LabLock, LockError, Phase, StateError};

const SCHEMA: &str = "labctl.cluster-lab/v1";
/// Names another state folder.
const OVERRIDE: &str = "LABCTL_STATE_DIR";
const ROOT_DIR: &str = "/var/lib/labctl";
const LOG_DIR: &str = "log";
const KUBECONFIG: &str = "kubeconfig";
/// A healthy cluster answers in a fraction of a second.
const LOOK: Duration = Duration::from_secs(20);

/// The state folder of all labs on clusters, of kind's and of others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Store {
    root: PathBuf,
}

/// A lab's file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    schema: String,
    /// The lab.
    pub(crate) lab: String,
    /// Version of labctl that made it.
    pub(crate) version: String,
    /// When, in seconds since 1970.
    pub(crate) created: u64,
    pub(crate) phase: Phase,
    /// The plan as the lab file says.
    pub(crate) asked: Plan,
    /// Our image that its agents, backends and client run.
    pub(crate) image: Option<String>,
    /// Containers of nodes that the image was copied into.
    #[serde(default)]
    pub(crate) loaded: Vec<String>,
    /// How to reach the cluster: by a file of the lab's own, or the user's.
    pub(crate) access: Access,
    /// The plan and hosts as they came out; `None` until the lab is complete.
    pub(crate) observed: Option<Observed>,
}

/// A plan with the addresses and names that a cluster gave, and its hosts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Observed {
    pub(crate) plan: Plan,
    pub(crate) hosts: Vec<Host>,
}

impl Record {
    /// What is written before anything is made.
    pub(crate) fn intent(asked: &Plan, access: Access) -> Self {
        Self {
            schema: SCHEMA.to_owned(),
            lab: asked.lab.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            created: state::now(),
            phase: Phase::Creating,
            asked: asked.clone(),
            image: None,
            loaded: Vec::new(),
            access,
            observed: None,
        }
    }

    /// The lab with what was seen of it.
    pub(crate) fn lab(&self, observed: Observed, dir: &Path) -> Lab {
        Lab {
            asked: self.asked.clone(),
            plan: observed.plan,
            hosts: observed.hosts,
            dir: dir.to_owned(),
            created: self.created,
            version: self.version.clone(),
        }
    }
}

impl Store {
    /// `$LABCTL_STATE_DIR`; else `/var/lib/labctl` for root; else `labctl` in `$XDG_STATE_HOME` or in
    /// `~/.local/state`.
    pub(crate) fn standard() -> Self {
        Self::in_dir(standard_dir())
    }

    /// In another folder, made when it is needed.
    pub(crate) fn in_dir(root: impl Into<PathBuf>) -> Self {
        Self { root: state::absolute(root.into()) }
    }

    /// The folder.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Takes the lab's lock. Never waits.
    pub(crate) fn lock(&self, lab: &str) -> Result<LabLock, LockError> {
        LabLock::take_below(&self.root, lab, FolderGuard::Root(self.root.clone()))
    }

    /// Folder of a lab, whether it exists or not.
    pub(crate) fn dir(&self, lab: &str) -> PathBuf {
        self.root.join(lab)
    }

    /// Names of all folders that can be labs, sorted.
    pub(crate) fn names(&self) -> io::Result<Vec<String>> {
        let mut names = names_in(&self.root)?;
        names.retain(|name| state::is_name(name) && self.root.join(name).is_dir());
        Ok(names)
    }

    /// The lab's file, of any phase; `None` if there is none.
    pub(crate) fn read(&self, lab: &str) -> Result<Option<Record>, StateError> {
        let path = self.dir(lab).join(FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(source) => return Err(StateError::Io { path, source }),
        };
        parse(&bytes).map(Some).map_err(|reason| StateError::Unreadable { path, reason })
    }

    /// The file of a lab of this provider that is complete; `None` if nothing of it is known.
    pub(crate) fn complete(&self, lab: &str, provider: ProviderKind) -> Result<Option<Record>, StateError> {
        if !state::is_name(lab) {
            return Ok(None);
        }
        let record = self.read(lab)?;
        let Some(record) = record.filter(|record| record.asked.provider == provider) else { return Ok(None) };
        if record.phase == Phase::Ready && record.observed.is_some() {
            return Ok(Some(record));
        }
        match state::lock_holder(&self.dir(lab)) {
            Some(pid) => Err(StateError::Busy { lab: lab.to_owned(), pid }),
            None => Err(StateError::Incomplete { lab: lab.to_owned() }),
        }
    }

    /// Every lab of this provider, sorted by name, and files that cannot be read, which may be any provider's.
    pub(crate) fn list(&self, provider: ProviderKind) -> Result<Vec<LabEntry>, StateError> {
        let names = self.names().map_err(|source| StateError::Io { path: self.root.clone(), source })?;
        let entries = names.into_iter().filter_map(|name| {
            let state = match self.complete(&name, provider) {
                Ok(Some(mut record)) => {
                    let observed = record.observed.take()?;
                    LabState::Ready(Box::new(record.lab(observed, &self.dir(&name))))
                }
                Ok(None) => return None,
                Err(StateError::Busy { pid, .. }) => LabState::Busy { pid },
                Err(StateError::Incomplete { .. }) => LabState::Incomplete,
                Err(other) => LabState::Unreadable { reason: other.to_string() },
            };
            Some(LabEntry { name, state })
        });
        Ok(entries.collect())
    }

    /// Ends the lab's being found as complete; a full disk must not keep a lab up. Returns its file as it was.
    pub(crate) fn begin_removal(&self, lock: &LabLock) -> Option<Record> {
        let record = self.read(lock.lab()).ok().flatten()?;
        let _ = write(lock, &Record { phase: Phase::Removing, ..record.clone() });
        Some(record)
    }

    /// The complete lab as `observe` sees it now; `None` if nothing of it is known.
    pub(crate) async fn find<E: Display>(
        &self,
        lab: &str,
        provider: ProviderKind,
        observe: impl AsyncFnOnce(&Engine, &Record) -> Result<Observed, E>,
    ) -> Result<Option<Lab>, StateError> {
        let Some(record) = self.complete(lab, provider)? else { return Ok(None) };
        let failed = |reason: String| StateError::Observe { lab: lab.to_owned(), reason };
        let engine = Engine::connect().await.map_err(|e| failed(e.to_string()))?;
        let observed = match timeout(LOOK, observe(&engine, &record)).await {
            Ok(observed) => observed.map_err(|e| failed(e.to_string()))?,
            Err(_) => {
                return Err(failed(format!("its nodes have not answered within {} s", LOOK.as_secs())));
            }
        };
        Ok(Some(record.lab(observed, &self.dir(lab))))
    }

    /// The file's phase alone, also of a file of another version: what removing needs to know.
    pub(crate) fn has_file(&self, lab: &str) -> bool {
        self.dir(lab).join(FILE).exists()
    }
}

/// Writes the lab's file.
pub(crate) fn write(lock: &LabLock, record: &Record) -> io::Result<()> {
    // `list` and `status` of other users may read it; the kubeconfig beside it they may not.
    let readable = Permissions::from_mode(0o644);
    let file = tempfile::Builder::new().permissions(readable).tempfile_in(lock.dir())?;
    (&file).write_all(&serde_json::to_vec(record)?)?;
    file.persist(lock.dir().join(FILE)).map_err(|e| e.error)?;
    match fs::create_dir(log_dir(lock.dir())) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => Ok(()),
    }
}

/// Folder for logs, in the lab's folder.
pub(crate) fn log_dir(lab_dir: &Path) -> PathBuf {
    lab_dir.join(LOG_DIR)
}

/// The lab's own kubeconfig, in the lab's folder.
pub(crate) fn kubeconfig(lab_dir: &Path) -> PathBuf {
    lab_dir.join(KUBECONFIG)
}

/// Empties the lab's folder; the file that makes it findable goes last.
pub(crate) fn empty(lab_dir: &Path) -> Vec<String> {
    let mut names = names_in(lab_dir).unwrap_or_default();
    names.sort_by_key(|name| name == FILE);
    let mut left = Vec::new();
    for name in names {
        let path = lab_dir.join(name);
        let is_dir = fs::symlink_metadata(&path).is_ok_and(|m| m.is_dir());
        let removed = if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        match removed {
            Err(e) if e.kind() != io::ErrorKind::NotFound => left.push(format!("{}: {e}", path.display())),
            _ => {}
        }
    }
    left
}

fn standard_dir() -> PathBuf {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(dir) = set(OVERRIDE) {
        return dir;
    }
    if nix::unistd::geteuid().is_root() {
        return ROOT_DIR.into();
    }
    let state = set("XDG_STATE_HOME").filter(|dir| dir.is_absolute());
    let state = state.or_else(|| Some(set("HOME")?.join(".local/state")));
    state.map_or_else(|| env::temp_dir().join("labctl-state"), |dir| dir.join("labctl"))
}

fn parse(bytes: &[u8]) -> Result<Record, String> {
    let value: Value = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    match value.get("schema").and_then(Value::as_str) {
        Some(SCHEMA) => {}
        other => return Err(format!("its schema is {}, not {SCHEMA}", other.unwrap_or("missing"))),
    }
    let record: Record = serde_json::from_value(value).map_err(|e| e.to_string())?;
    match &record.observed {
        Some(observed) if !observed.hosts.iter().any(|host| host.kind == HostKind::Client) => {
            Err("it lists no client".to_owned())
        }
        _ => Ok(record),
    }
}
