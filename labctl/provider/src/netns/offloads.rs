//! Links that behave like wires.
//!
//! Owns: switching offloads off on every veth of a lab. A veth leaves checksums unfinished and segments uncut, since
//! both ends share one memory; then a capture has no checksum to judge and packets that no wire carries. Does
//! not own: the ioctls (`ethtool`).

use super::build::UpError;
use super::ethtool;
use crate::host::Host;

/// Switches offloads off on all veths of all hosts.
pub(super) fn switch_off(hosts: &[Host]) -> Result<(), UpError> {
    for host in hosts {
        switch_off_in(host).map_err(|reason| UpError::Offloads { host: host.name.clone(), reason })?;
    }
    Ok(())
}

fn switch_off_in(host: &Host) -> Result<(), String> {
    let veths: Vec<_> = host.interfaces.iter().filter(|i| i.peer.is_some()).collect();
    let switch_off = || {
        veths.iter().try_for_each(|i| ethtool::offloads_off(&i.name).map_err(|e| format!("{}: {e}", i.name)))
    };
    host.enter(switch_off).map_err(|e| format!("enter it: {e}"))?
}
