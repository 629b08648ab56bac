//! Disturbances that the lab is set up with, and checks that are expected to fail because of them.

use std::collections::BTreeMap;

use super::backends::unknown_node;
use super::{Report, given_or};
use crate::diagnostic::{Diagnostic, did_you_mean};
use crate::file::{FaultFile, FaultName, FaultTarget, LabFile};
use crate::given::Given;
use crate::plan::{ExpectedStatus, Fault, FaultPlan, FaultScope, NodePlan, ProviderKind};
use crate::{CHECK_NAMES, FORMER_CHECK_NAMES};

/// Every IPv4 link carries packets of this size whole in practice (RFC 791 section 3.1).
const SMALLEST_POD_MTU: u16 = 576;

pub(super) fn resolve(file: &LabFile, nodes: &[NodePlan], mtu: u16, report: &mut Report) -> Vec<FaultPlan> {
    let Some(written) = &file.faults else { return Vec::new() };
    let provider = given_or(&file.provider, ProviderKind::Netns);
    if provider != ProviderKind::Netns && !written.is_empty() {
        let message = format!("provider `{provider}` cannot set up faults");
        report.push(Diagnostic::new(written.place, message).help("only `netns` can: the nodes are its own"));
    }
    for (index, fault) in written.iter().enumerate() {
        if let Some(earlier) = written[..index].iter().find(|earlier| *earlier.name == *fault.name) {
            let found = Diagnostic::new(fault.name.place, "this fault is given twice");
            report.push(
                found.related(earlier.name.place, "first given here").help("list all its nodes in `on`"),
            );
        }
    }
    written
        .iter()
        .filter_map(|fault| {
            Some(FaultPlan { fault: plan(fault, mtu, report)?, on: scope(fault, nodes, report) })
        })
        .collect()
}

fn plan(fault: &FaultFile, lab_mtu: u16, report: &mut Report) -> Option<Fault> {
    if let Some(given) = &fault.mtu
        && *fault.name != FaultName::PodMtu
    {
        let found = Diagnostic::new(given.place, "only the fault `pod-mtu` has an mtu");
        report.push(found.help("leave it out"));
    }
    Some(match *fault.name {
        FaultName::RpFilterStrict => Fault::RpFilterStrict,
        FaultName::DropInvalid => Fault::DropInvalid,
        FaultName::ForwardDrop => Fault::ForwardDrop,
        FaultName::DropOptions => Fault::DropOptions,
        FaultName::PodMtu => Fault::PodMtu { mtu: pod_mtu(fault, lab_mtu, report)? },
    })
}

fn pod_mtu(fault: &FaultFile, lab_mtu: u16, report: &mut Report) -> Option<u16> {
    let Some(given) = &fault.mtu else {
        let found = Diagnostic::new(fault.name.place, "the fault `pod-mtu` needs an mtu");
        report.push(found.help("write `{name: pod-mtu, mtu: 1280}`"));
        return None;
    };
    if !(SMALLEST_POD_MTU..lab_mtu).contains(&**given) {
        let message = format!("a pod MTU of {} is out of range", **given);
        let help = format!("use one from {SMALLEST_POD_MTU} to less than the segment's {lab_mtu}");
        report.push(Diagnostic::new(given.place, message).help(help));
    }
    Some(**given)
}

fn scope(fault: &FaultFile, nodes: &[NodePlan], report: &mut Report) -> FaultScope {
    let Some(on) = &fault.on else { return FaultScope::All };
    let FaultTarget::Nodes(written) = &**on else { return FaultScope::All };
    if written.is_empty() {
        let found = Diagnostic::new(on.place, "the fault is on no node");
        report.push(found.help("list nodes, or write `on: all`"));
    }
    let mut names: Vec<&str> = Vec::new();
    for name in written {
        if !nodes.iter().any(|node| node.name == **name) {
            report.push(unknown_node(name, nodes));
        } else if names.contains(&name.as_str()) {
            report.push(Diagnostic::new(name.place, format!("node `{}` is given twice", **name)));
        } else {
            names.push(name);
        }
    }
    // The order of the lab's nodes, whatever the order here.
    let ordered = nodes.iter().map(|node| &node.name).filter(|name| names.contains(&name.as_str()));
    FaultScope::Nodes(ordered.cloned().collect())
}

/// Checks whose expected outcome the lab overrides.
pub(super) fn expectations(file: &LabFile, report: &mut Report) -> BTreeMap<String, ExpectedStatus> {
    let Some(expect) = &file.expect else { return BTreeMap::new() };
    let mut expectations = BTreeMap::new();
    for (name, status) in &expect.0 {
        let former = FORMER_CHECK_NAMES.iter().find(|(former, _)| *former == name.as_str());
        let now = former.map_or(name.as_str(), |(_, now)| *now);
        if !CHECK_NAMES.contains(&now) {
            report.push(unknown_check(name));
        }
        expectations.insert(now.to_owned(), **status);
    }
    expectations
}

fn unknown_check(name: &Given<String>) -> Diagnostic {
    Diagnostic::new(name.place, format!("there is no check `{}`", **name))
        .help(did_you_mean(name, CHECK_NAMES))
}
