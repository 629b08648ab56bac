//! Names of labs, nodes and services. Interfaces and namespaces are named after them.

use super::Report;
use crate::diagnostic::Diagnostic;
use crate::given::Given;

/// Longest name in bytes.
const MAX_LEN: usize = 20;

/// Reports a name that is not a short DNS label.
pub(super) fn check(what: &str, name: &Given<String>, report: &mut Report) {
    let found = |message: String| Diagnostic::new(name.place, message);
    if name.is_empty() {
        report.push(found(format!("the name of a {what} cannot be empty")));
    } else if let Some(c) = name.chars().find(|c| !allowed(*c)) {
        let found = found(format!("the name of a {what} cannot contain {c:?}"));
        report.push(found.help("use lower-case letters, digits and hyphens"));
    } else if name.starts_with('-') || name.ends_with('-') {
        report.push(found(format!("the name of a {what} cannot start or end with a hyphen")));
    } else if name.len() > MAX_LEN {
        let found = found(format!("this name has {} bytes, at most {MAX_LEN} fit", name.len()));
        report.push(found.help("interfaces and namespaces are named after it"));
    }
}

/// Reports a service name that Kubernetes would refuse although it is a good node name.
pub(super) fn check_service(name: &Given<String>, report: &mut Report) {
    check("service", name, report);
    if name.starts_with(|c: char| c.is_ascii_digit()) {
        let message = "the name of a service cannot start with a digit";
        report.push(Diagnostic::new(name.place, message).help("Kubernetes takes only a letter there"));
    }
}

fn allowed(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'
}
