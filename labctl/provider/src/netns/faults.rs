//! Disturbances that a lab file asks for.
//!
//! Owns: setting each up with sysctls or nftables, inside the hosts it names. Does not own: which
//! faults exist (the model); a smaller pod MTU, which the topology already has.
//!
//! Nothing here has an undo: all of it ends with its namespace.

use std::io::Write;
use std::process::Stdio;

use labctl_model::{Fault, FaultPlan, FaultScope, Plan};

use super::build::UpError;
use super::namespace;
use super::preflight::find_tool;
use crate::host::{Host, HostKind};

/// As distributions' firewalls do it.
const DROP_INVALID: &str = "table ip labctl_drop_invalid {
    chain forward { type filter hook forward priority 0; ct state invalid counter drop; }
    chain input { type filter hook input priority 0; ct state invalid counter drop; }
}
";
/// As Docker leaves the FORWARD chain.
const FORWARD_DROP: &str = "table ip labctl_forward_drop {
    chain forward { type filter hook forward priority 0; policy drop; counter; }
}
";

/// Sets up every fault of the plan.
pub(super) fn apply(plan: &Plan, hosts: &[Host], did: &mut dyn FnMut(String)) -> Result<(), UpError> {
    for fault in &plan.faults {
        match fault.fault {
            Fault::RpFilterStrict => for_each(nodes_or_client(fault, hosts), fault, strict_rp_filter)?,
            Fault::DropInvalid => for_each(nodes(fault, hosts), fault, |h| nft(h, DROP_INVALID))?,
            Fault::ForwardDrop => for_each(nodes(fault, hosts), fault, |h| nft(h, FORWARD_DROP))?,
            Fault::DropOptions => for_each(switch(hosts), fault, |h| nft(h, &drop_options(h, &fault.on)))?,
            // The links were made with it.
            Fault::PodMtu { .. } => {}
        }
        did(format!("fault {}", fault.fault.name()));
    }
    Ok(())
}

fn for_each<'a>(
    hosts: impl Iterator<Item = &'a Host>,
    fault: &FaultPlan,
    set_up: impl Fn(&Host) -> Result<(), String>,
) -> Result<(), UpError> {
    for host in hosts {
        set_up(host).map_err(|reason| UpError::Fault {
            fault: fault.fault.name(),
            host: host.name.clone(),
            reason,
        })?;
    }
    Ok(())
}

fn nodes<'a>(fault: &'a FaultPlan, hosts: &'a [Host]) -> impl Iterator<Item = &'a Host> {
    hosts.iter().filter(|h| h.kind == HostKind::Node && fault.on.covers(&h.name))
}

fn nodes_or_client<'a>(fault: &'a FaultPlan, hosts: &'a [Host]) -> impl Iterator<Item = &'a Host> {
    hosts.iter().filter(|h| match h.kind {
        HostKind::Node => fault.on.covers(&h.name),
        HostKind::Client => fault.on == FaultScope::All,
        HostKind::Pod | HostKind::Switch => false,
    })
}

fn switch(hosts: &[Host]) -> impl Iterator<Item = &Host> {
    hosts.iter().filter(|h| h.kind == HostKind::Switch)
}

fn strict_rp_filter(host: &Host) -> Result<(), String> {
    let interfaces = ["all", "default", "lo"].into_iter();
    let interfaces: Vec<_> = interfaces.chain(host.interfaces.iter().map(|i| i.name.as_str())).collect();
    let set = || {
        interfaces.iter().try_for_each(|interface| {
            namespace::set_sysctl(&format!("net/ipv4/conf/{interface}/rp_filter"), "1")
        })
    };
    match host.enter(set) {
        Ok(done) => done.map_err(|e| e.to_string()),
        Err(e) => Err(format!("enter it: {e}")),
    }
}

/// Drops packets with options on their way out of the switch, towards these hosts or everywhere.
fn drop_options(switch: &Host, scope: &FaultScope) -> String {
    let ports = switch.interfaces.iter().filter_map(|i| {
        let peer = i.peer.as_ref()?;
        let wanted = match scope {
            FaultScope::All => true,
            FaultScope::Nodes(names) => names.contains(&peer.host),
        };
        wanted.then(|| format!("\"{}\"", i.name))
    });
    let ports: Vec<_> = ports.collect();
    format!(
        "table bridge labctl_drop_options {{
    chain forward {{
        type filter hook forward priority 0;
        oifname {{ {} }} ether type ip ip hdrlength > 5 counter drop
    }}
}}
",
        ports.join(", ")
    )
}

fn nft(host: &Host, rules: &str) -> Result<(), String> {
    let missing = || "`nft` is not installed; try apt-get install nftables".to_owned();
    let mut child = host
        .command(find_tool("nft").ok_or_else(missing)?)
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("run nft: {e}"))?;
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(rules.as_bytes()));
    let output = child.wait_with_output().map_err(|e| format!("run nft: {e}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.lines().next().unwrap_or("no message");
        return Err(format!("nft refused: {said}; the kernel needs nf_tables (and nf_tables_bridge)"));
    }
    written.map_err(|e| format!("write to nft: {e}"))
}
