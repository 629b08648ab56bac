//! Names of maps and pins, in one place for loading, syncing and reading back.

use std::path::{Path, PathBuf};

pub(crate) const ABI: &str = "ABI";
pub(crate) const FRONTENDS: &str = "FRONTENDS";
pub(crate) const BACKENDS: &str = "BACKENDS";
pub(crate) const BACKEND_SOCKETS: &str = "BACKEND_SOCKETS";
pub(crate) const MAGLEV: &str = "MAGLEV";
pub(crate) const ENDPOINTS: &str = "ENDPOINTS";
pub(crate) const NODES: &str = "NODES";
pub(crate) const FLOWS: &str = "FLOWS";
pub(crate) const FRAGMENTS: &str = "FRAGMENTS";
pub(crate) const AFFINITY: &str = "AFFINITY";
pub(crate) const DROPS: &str = "DROPS";
pub(crate) const COUNTERS: &str = "COUNTERS";
pub(crate) const EVENTS: &str = "EVENTS";

/// Every map of the object, in the order that status shows.
pub(crate) const ALL: [&str; 13] = [
    ABI,
    FRONTENDS,
    BACKENDS,
    BACKEND_SOCKETS,
    MAGLEV,
    ENDPOINTS,
    NODES,
    FLOWS,
    FRAGMENTS,
    AFFINITY,
    DROPS,
    COUNTERS,
    EVENTS,
];

/// Folder of the map pins.
pub(crate) fn folder(pins: &Path) -> PathBuf {
    pins.join("maps")
}

/// Folder of the pins of programs that clsact filters run: the qdisc holds a filter, and only a pin says that there was one.
pub(crate) fn filters_folder(pins: &Path) -> PathBuf {
    pins.join("filters")
}

/// Folder of the link pins.
pub(crate) fn links_folder(pins: &Path) -> PathBuf {
    pins.join("links")
}
