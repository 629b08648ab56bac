//! From what was written to what will be done: fills in defaults, resolves names and addresses, and reports
//! everything that cannot be. One file per section of the lab file. Each goes on with a stand-in value
//! after a mistake, so that one run shows all of them; a plan leaves here only if there was none.

mod addresses;
mod backends;
mod datapath;
mod faults;
mod names;
mod service;
mod topology;
mod traffic;

pub use traffic::{MAX_REQUESTS, MAX_RESPONSE_BYTES};

use crate::diagnostic::{Diagnostic, Place};
use crate::file::{ApiVersion, LabFile, Overlay};
use crate::given::Given;
use crate::plan::{Mode, Plan, ProviderKind, WireFormat};

/// Mistakes found so far.
type Report = Vec<Diagnostic>;

/// Makes the plan.
///
/// # Errors
/// Everything in the file that contradicts something else or that no lab can be.
pub(crate) fn resolve(file: &LabFile) -> Result<Plan, Vec<Diagnostic>> {
    // A second version of the grammar will part here.
    let ApiVersion::V1 = *file.api_version;
    let mut report = Report::new();
    names::check("lab", &file.name, &mut report);
    check_overlay(file, &mut report);
    let topology = topology::resolve(file, &mut report);
    let service = service::resolve(file, &topology, &mut report);
    let mut nodes = topology.nodes;
    backends::place(file, &service, &mut nodes, &mut report);
    let traffic = traffic::resolve(file, &service, &nodes, &mut report);
    let datapath = datapath::resolve(file, &service, &nodes, &mut report);
    let image = datapath::kind_image(file, &mut report);
    let faults = faults::resolve(file, &nodes, topology.mtu, &mut report);
    let expect = faults::expectations(file, &mut report);
    if !report.is_empty() {
        return Err(report);
    }
    Ok(Plan {
        lab: file.name.to_string(),
        provider: given_or(&file.provider, ProviderKind::Netns),
        mode: *file.mode,
        wire: given_or(&file.wire, WireFormat::Network),
        network: topology.network,
        mtu: topology.mtu,
        offloads: given_or(&file.offloads, false),
        pod_cidr: topology.pod_cidr,
        client: topology.client,
        nodes,
        service,
        traffic,
        datapath,
        image,
        faults,
        expect,
    })
}

/// The value that was written, else the default.
fn given_or<T: Copy>(given: &Option<Given<T>>, default: T) -> T {
    given.as_ref().map_or(default, |given| **given)
}

/// Where a value was written, else where its section starts, else the whole file.
fn place_of<T, S>(given: Option<&Given<T>>, section: &Option<Given<S>>) -> Place {
    given.map(|given| given.place).or(section.as_ref().map(|section| section.place)).unwrap_or(Place::FILE)
}

fn check_overlay(file: &LabFile, report: &mut Report) {
    let Some(overlay) = file.overlay.as_ref().filter(|overlay| ***overlay != Overlay::None) else { return };
    let found = match *file.mode {
        Mode::Dsr | Mode::Hybrid => {
            let message = format!("mode `{}` cannot run over an overlay", *file.mode);
            Diagnostic::new(overlay.place, message).related(file.mode.place, "the mode is chosen here").help(
                "the DSR option is in the client's own IPv4 header and the reply leaves the backend's node \
                 directly: both need natively routed pod addresses. Use `overlay: none` or mode `snat`",
            )
        }
        Mode::Snat | Mode::Local => {
            Diagnostic::new(overlay.place, "no lab can be set up over an overlay yet")
                .help("use `overlay: none`: pod addresses are routed natively")
        }
    };
    report.push(found);
}
