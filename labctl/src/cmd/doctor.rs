//! `labctl doctor`: what this machine can do, and the command that mends each lack.

use serde::Serialize;

use crate::cmd::ResultFormat;
use crate::exit::Exit;
use crate::failure::Outcome;
use crate::host::{self, Area, Finding, Status};
use crate::ui::{Paint, Tone, Ui};

/// Check that this machine can run labs, by trying it.
///
/// Exits with 0 if labs on network namespaces can run here, else with 3. What labs on kind clusters take
/// (Docker, kind; no root) and missing tools are named and do not count.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How to print the findings.
    #[arg(long, value_enum, default_value_t)]
    format: ResultFormat,
}

/// The JSON of `labctl doctor`.
#[derive(Serialize)]
struct Report<'a> {
    schema: &'static str,
    ready: bool,
    findings: &'a [Finding],
}

impl Args {
    pub(crate) fn exec(self, ui: &Ui) -> Outcome {
        let findings = host::examine();
        let ready = !findings.iter().any(Finding::blocks);
        match self.format {
            ResultFormat::Json => {
                ui.json(&Report { schema: "labctl.doctor/v1", ready, findings: &findings })?
            }
            ResultFormat::Text => ui.text(&text(&findings, ready, ui.paint()))?,
        }
        Ok(if ready { Exit::Ok } else { Exit::HostUnfit })
    }
}

fn text(findings: &[Finding], ready: bool, paint: Paint) -> String {
    let mut text = String::new();
    let areas = [
        (Area::Privileges, "privileges"),
        (Area::Kernel, "kernel"),
        (Area::Clusters, "clusters (optional)"),
        (Area::Tools, "tools (optional)"),
    ];
    for (area, title) in areas {
        text.push_str(&format!("{title}\n"));
        for finding in findings.iter().filter(|f| f.area == area) {
            text.push_str(&line(finding, paint));
        }
    }
    text.push_str(&conclusion(findings, ready, paint));
    text
}

fn line(finding: &Finding, paint: Paint) -> String {
    let mark = match finding.status {
        Status::Ok => paint.tone(Tone::Good, "✓"),
        _ if !finding.required => paint.tone(Tone::Warn, "-"),
        Status::Missing => paint.tone(Tone::Bad, "✗"),
        Status::Unknown => paint.tone(Tone::Warn, "?"),
    };
    let mut line = format!("  {mark} {:18} {}\n", finding.name, finding.detail);
    if let Some(fix) = &finding.fix {
        line.push_str(&format!("    {:18} {} {fix}\n", "", paint.tone(Tone::Name, "→")));
    }
    line
}

fn conclusion(findings: &[Finding], ready: bool, paint: Paint) -> String {
    // A cluster's agents run in its nodes, on this kernel: whoever asks needs Docker and kind, not root.
    let matters = |f: &Finding| f.area == Area::Clusters || (f.area == Area::Kernel && f.required);
    let clusters = !findings.iter().any(|f| matters(f) && f.status == Status::Missing);
    if ready {
        let places = if clusters { "network namespaces and on kind clusters" } else { "network namespaces" };
        let ready = paint.tone(Tone::Good, "ready");
        return format!("{ready}: labs on {places} run here. Next: labctl up dsr\n");
    }
    let blocking: Vec<&str> = findings.iter().filter(|f| f.blocks()).map(|f| f.name).collect();
    let mut text = format!("{}: {}\n", paint.tone(Tone::Bad, "not ready"), blocking.join(", "));
    if clusters {
        let ready = paint.tone(Tone::Good, "ready for kind");
        text.push_str(&format!(
            "{ready}: labs on kind clusters run here. Next: labctl up dsr --provider kind\n"
        ));
    }
    text
}
