//! The processes that make a network a lab: an agent per node, which applies the datapath and ends, and a
//! backend per pod, which stays.

use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::time::Duration;

use datapath_agent::Applied;
use labctl_model::{NodePlan, PodPlan};
use labctl_node::serve::ServeReady;
use labctl_provider::{Lab, Place};
use labctl_wire::Exchange;
use nix::unistd::setsid;

use super::desired::node_state;
use super::interrupt::Interrupt;
use super::role::{Role, RoleError, finish, next_values};

/// How long an agent may take to load and attach its programs. The verifier takes some 20 ms; the rest is
/// patience for a loaded machine.
const AGENT_LIMIT: Duration = Duration::from_secs(20);

/// How long a backend may take to bind its ports.
const BACKEND_LIMIT: Duration = Duration::from_secs(10);

/// How long a running backend may take to accept a connection from its own namespace.
const ACCEPT_LIMIT: Duration = Duration::from_millis(200);

/// Agents and backends that have been started and have not said ready yet. Dropping it ends them all.
#[derive(Debug)]
pub(crate) struct Launched {
    agents: Vec<Role>,
    backends: Vec<Role>,
}

/// Starts all of them; they then come up side by side.
pub(crate) fn launch(lab: &Lab) -> Result<Launched, RoleError> {
    // Agents first: backends need nothing from them and are ready while programs are still loading.
    let agents = agents(lab)?;
    Ok(Launched { agents, backends: backends(lab)? })
}

impl Launched {
    /// Waits until every backend has bound its ports and lets them run on by themselves.
    pub(crate) fn backends_ready(&mut self, interrupt: &Interrupt) -> Result<Vec<ServeReady>, RoleError> {
        let ready = next_values(&mut self.backends, interrupt, "its ready line", BACKEND_LIMIT)?;
        self.backends.drain(..).for_each(Role::detach);
        Ok(ready)
    }

    /// Waits until every agent has applied its node's state and ended.
    pub(crate) fn datapath_ready(&mut self, interrupt: &Interrupt) -> Result<Vec<Applied>, RoleError> {
        let applied = next_values(&mut self.agents, interrupt, "its report", AGENT_LIMIT)?;
        finish(std::mem::take(&mut self.agents), interrupt, "its end", AGENT_LIMIT)?;
        Ok(applied)
    }
}

/// Which backends accept TCP connections from their own namespace, which no datapath is in the way of; in the order
/// of the plan.
pub(crate) fn listening<'a>(lab: &'a Lab, interrupt: &Interrupt) -> Vec<(&'a PodPlan, bool)> {
    // Those that are somewhere else are all asked before the first answer is waited for.
    let asked: Vec<_> = lab.plan().backends().map(|(_, pod)| (pod, ask(lab, pod))).collect();
    asked.into_iter().map(|(pod, asked)| (pod, asked.is_some_and(|a| a.answer(interrupt)))).collect()
}

/// A backend being asked for a connection.
enum Asked {
    /// Done: its namespace is on this machine.
    Here(bool),
    /// A client in its namespace does it.
    There(Role),
}

/// `None` for a pod that is nowhere, or whose namespace cannot be entered.
fn ask(lab: &Lab, pod: &PodPlan) -> Option<Asked> {
    let address = SocketAddr::from((pod.address, lab.plan().service.target_port));
    let host = lab.host_of_pod(&pod.name)?;
    if matches!(host.place, Place::Namespace { .. }) {
        let connect = || TcpStream::connect_timeout(&address, ACCEPT_LIMIT).is_ok();
        return host.enter(connect).ok().map(Asked::Here);
    }
    let mut client = Role::spawn(host, "fetch", &pod.name, &lab.log_dir(), |command| {
        let limit = ACCEPT_LIMIT.as_millis().to_string();
        command.args([&address.to_string(), "--json", "--timeout", &limit]);
    })
    .ok()?;
    client.close_stdin();
    Some(Asked::There(client))
}

impl Asked {
    fn answer(self, interrupt: &Interrupt) -> bool {
        const AWAITED: &str = "its exchange";
        match self {
            Self::Here(accepted) => accepted,
            // What the backend then says is its own business; only the connection counts.
            Self::There(client) => next_values::<Exchange>(&mut [client], interrupt, AWAITED, BACKEND_LIMIT)
                .is_ok_and(|exchanges| exchanges.iter().all(|e| e.timings.connect_us.is_some())),
        }
    }
}

fn agents(lab: &Lab) -> Result<Vec<Role>, RoleError> {
    let interface = |pod: &str| lab.pod_interface(pod).map_or_else(String::new, |(_, i)| i.name.clone());
    let plan = lab.plan();
    let start = |node: &NodePlan| {
        let host = host(lab, &node.name)?;
        let mut agent = Role::spawn(host, "agent", &node.name, &lab.log_dir(), |command| {
            command.arg("--pin-dir").arg(lab.bpf_dir(&node.name));
        })?;
        agent.hand_over(&node_state(plan, node, interface))?;
        Ok(agent)
    };
    // The nodes with the most hooks have the most to do.
    let mut nodes: Vec<&NodePlan> = plan.nodes.iter().collect();
    nodes.sort_by_key(|node| std::cmp::Reverse(node.pods.len()));
    nodes.into_iter().map(start).collect()
}

fn backends(lab: &Lab) -> Result<Vec<Role>, RoleError> {
    let port = lab.plan().service.target_port.to_string();
    let start = |(node, pod): (&NodePlan, &PodPlan)| {
        let host = lab.host_of_pod(&pod.name).ok_or_else(|| RoleError::NoHost { host: pod.name.clone() })?;
        let mut backend = Role::spawn(host, "serve", &pod.name, &lab.log_dir(), |command| {
            command.args(["--node", &node.name, "--pod", &pod.name, "--port", &port]);
            command.args(["--address", &pod.address.to_string()]);
            // A session of its own: Ctrl-C in the terminal that typed `up` must not end the backends later.
            // SAFETY: setsid(2) is async-signal-safe and touches no memory of this process.
            unsafe { command.pre_exec(|| setsid().map(drop).map_err(Into::into)) };
        })?;
        backend.close_stdin();
        Ok(backend)
    };
    lab.plan().backends().map(start).collect()
}

fn host<'a>(lab: &'a Lab, name: &str) -> Result<&'a labctl_provider::Host, RoleError> {
    lab.host(name).ok_or_else(|| RoleError::NoHost { host: name.to_owned() })
}
