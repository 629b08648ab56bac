//! The captures of a run: one role process per host, one file each, every interface of the host in it.

use std::path::PathBuf;
use std::time::Duration;

use labctl_node::capture::CaptureReady;
use labctl_provider::{Host, HostKind, Lab};

use super::interrupt::Interrupt;
use super::role::{Role, RoleError, finish, next_values};
use super::run_dir::RunDir;

/// How long a capture may take to open its sockets.
const START: Duration = Duration::from_secs(10);

/// How long a capture may take to write its last packets.
const END: Duration = Duration::from_secs(20);

/// Captures under way. Dropped, they are ended.
#[derive(Debug)]
pub(crate) struct Captures {
    roles: Vec<Role>,
    files: Vec<PathBuf>,
}

impl Captures {
    /// Starts a capture in the client, every node and every pod.
    pub(crate) fn start(lab: &Lab, dir: &RunDir) -> Result<Self, RoleError> {
        let mut captures = Self { roles: Vec::new(), files: Vec::new() };
        for host in lab.hosts().iter().filter(|host| host.kind != HostKind::Switch) {
            let file = dir.path().join(format!("{}.pcapng", host.name));
            let role = Role::spawn(host, "capture", &host.name, &lab.log_dir(), |command| {
                command.args(point_args(host)).arg("--write").arg(&file);
            })?;
            captures.roles.push(role);
            captures.files.push(file);
        }
        Ok(captures)
    }

    /// Waits until each has said that it sees packets; returns how many interfaces are captured.
    pub(crate) fn ready(&mut self, interrupt: &Interrupt) -> Result<usize, RoleError> {
        let ready: Vec<CaptureReady> = next_values(&mut self.roles, interrupt, "its ready line", START)?;
        Ok(ready.iter().map(|ready| ready.points.len()).sum())
    }

    /// Stops all of them and waits until every packet is in its file; returns the files.
    pub(crate) fn stop(mut self, interrupt: &Interrupt) -> Result<Vec<PathBuf>, RoleError> {
        self.roles.iter_mut().for_each(Role::close_stdin);
        finish(self.roles, interrupt, "its last packets", END)?;
        Ok(self.files)
    }
}

/// What tells a capture role where it is: the host's name and kind, every interface that it has (the loopback
/// left out), and that it ends with the process that started it.
fn point_args(host: &Host) -> Vec<String> {
    let mut args = host_args(host);
    args.extend(host.interfaces.iter().flat_map(|interface| ["-i".to_owned(), interface.name.clone()]));
    args
}

/// The host's name and kind; its interfaces are then named `host:interface` in the file.
pub(crate) fn host_args(host: &Host) -> Vec<String> {
    let kind = match host.kind {
        HostKind::Client => "client",
        HostKind::Node | HostKind::Switch => "node",
        HostKind::Pod => "pod",
    };
    ["--host", &host.name, "--kind", kind, "--stop-at-eof"].map(str::to_owned).to_vec()
}
