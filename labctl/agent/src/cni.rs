//! The CNI configuration that makes the container runtime connect pods: a veth pair and an address for each.
//!
//! Owns: its text, the check that the plugins are there, writing it whole. Does not own: the plugins, which the
//! node brings.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use serde_json::{Value, json};

/// Name of the file. Of several the runtime takes the first.
const FILE: &str = "10-labctl.conflist";
/// Plugins without which no pod starts.
const NEEDED: [&str; 3] = ["ptp", "host-local", "loopback"];
/// hostPort; without it pods work.
const PORTMAP: &str = "portmap";

/// The network of one node's pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conflist {
    /// Addresses for them.
    pub pods: Ipv4Net,
    /// Of the node's uplink, bytes.
    pub mtu: u32,
    /// Whether the node has the portmap plugin.
    pub portmap: bool,
}

/// The network plugin cannot be configured.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// The node image lacks plugins.
    #[error(
        "find the CNI plugins {} in {}; install the containernetworking plugins on this node (Debian: \
         containernetworking-plugins), or use a node image that has them",
        missing.join(", "),
        folder.display()
    )]
    Missing {
        /// Names.
        missing: Vec<&'static str>,
        /// Where they should be.
        folder: PathBuf,
    },
    /// The file cannot be taken away.
    #[error("remove {}", path.display())]
    Remove {
        /// File.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file cannot be written.
    #[error("write {}", path.display())]
    Write {
        /// File.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Whether the node has the plugins that it needs, and portmap.
///
/// # Errors
/// [`CniError::Missing`] with all that are missing.
pub(crate) fn find_plugins(folder: &Path) -> Result<bool, CniError> {
    let missing: Vec<&'static str> = NEEDED.into_iter().filter(|name| !folder.join(name).is_file()).collect();
    if missing.is_empty() {
        Ok(folder.join(PORTMAP).is_file())
    } else {
        Err(CniError::Missing { missing, folder: folder.to_path_buf() })
    }
}

/// Takes the file away from `folder`, if it is there.
///
/// # Errors
/// [`CniError::Remove`].
pub(crate) fn remove(folder: &Path) -> Result<(), CniError> {
    let path = folder.join(FILE);
    match fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(CniError::Remove { path, source }),
        _ => Ok(()),
    }
}

impl Conflist {
    /// The file's text. Version 0.4.0 of the format is what every containerd and CRI-O understands that
    /// Kubernetes 1.20 and later run on.
    pub fn text(&self) -> String {
        let mut plugins: Vec<Value> = vec![json!({
            "type": "ptp",
            "mtu": self.mtu,
            // Pods keep their address towards every node; nothing outside the cluster knows a way to it.
            "ipMasq": false,
            "ipam": {
                "type": "host-local",
                "ranges": [[{ "subnet": self.pods.trunc().to_string() }]],
                "routes": [{ "dst": "0.0.0.0/0" }],
            },
        })];
        if self.portmap {
            plugins.push(json!({ "type": PORTMAP, "capabilities": { "portMappings": true } }));
        }
        let list = json!({ "cniVersion": "0.4.0", "name": "labctl", "plugins": plugins });
        format!("{list:#}\n")
    }

    /// Writes it into `folder`, unless it is there. The runtime may read the folder at any moment, so the file
    /// appears whole.
    ///
    /// # Errors
    /// [`CniError::Write`].
    pub(crate) fn write(&self, folder: &Path) -> Result<(), CniError> {
        let path = folder.join(FILE);
        let text = self.text();
        if fs::read_to_string(&path).is_ok_and(|there| there == text) {
            return Ok(());
        }
        let whole = folder.join(format!(".{FILE}.new"));
        fs::write(&whole, text)
            .and_then(|()| fs::rename(&whole, &path))
            .map_err(|source| CniError::Write { path, source })
    }
}
