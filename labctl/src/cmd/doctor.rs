//! `labctl doctor`: what this machine can do, and the command that mends each lack.

use labctl_model::ProviderKind;
use serde::Serialize;

use crate::cmd::{Provider, ResultFormat};
use crate::exit::Exit;
use crate::failure::Outcome;
use crate::host::{self, Area, Finding, Status};
use crate::ui::{Paint, Tone, Ui};

/// Check that this machine can run labs, by trying it.
///
/// Exits with 0 if labs of the provider can run here, else with 3. What only others take (namespaces: root, the kernel;
/// kind: Docker, kind, no root) and missing tools are named and do not count.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where labs shall run.
    #[arg(long, value_enum, value_name = "PROVIDER", default_value = "netns")]
    provider: Provider,
    /// How to print the findings.
    #[arg(long, value_enum, default_value_t)]
    format: ResultFormat,
}

/// The JSON of `labctl doctor`.
#[derive(Serialize)]
struct Report<'a> {
    schema: &'static str,
    provider: ProviderKind,
    ready: bool,
    findings: &'a [Finding],
}

impl Args {
    pub(crate) fn exec(self, ui: &Ui) -> Outcome {
        let provider = self.provider.into();
        let findings = host::examine(provider);
        let ready = !findings.iter().any(Finding::blocks);
        let report = Report { schema: "labctl.doctor/v1", provider, ready, findings: &findings };
        match self.format {
            ResultFormat::Json => ui.json(&report)?,
            ResultFormat::Text => ui.text(&text(&report, ui.paint()))?,
        }
        Ok(if ready { Exit::Ok } else { Exit::HostUnfit })
    }
}

fn text(report: &Report<'_>, paint: Paint) -> String {
    let mut text = String::new();
    let areas = [
        (Area::Privileges, "privileges"),
        (Area::Kernel, "kernel"),
        (Area::Clusters, "clusters"),
        (Area::Tools, "tools"),
    ];
    for (area, title) in areas {
        let found: Vec<_> = report.findings.iter().filter(|f| f.area == area).collect();
        let optional = if found.iter().any(|f| f.required) { "" } else { " (optional)" };
        text.push_str(&format!("{title}{optional}\n"));
        text.extend(found.into_iter().map(|finding| line(finding, paint)));
    }
    text.push_str(&conclusion(report, paint));
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

fn conclusion(report: &Report<'_>, paint: Paint) -> String {
    let kind = host::runs_kind(report.findings);
    let (places, flag) = match report.provider {
        ProviderKind::Netns if kind => ("on network namespaces and on kind clusters", ""),
        ProviderKind::Netns => ("on network namespaces", ""),
        ProviderKind::Kind => ("on kind clusters", " --provider kind"),
        ProviderKind::Cluster => {
            ("on clusters whose nodes are containers of this machine", " --provider cluster")
        }
    };
    if report.ready {
        let ready = paint.tone(Tone::Good, "ready");
        return format!("{ready}: labs {places} run here. Next: labctl up dsr{flag}\n");
    }
    let blocking: Vec<&str> = report.findings.iter().filter(|f| f.blocks()).map(|f| f.name).collect();
    let mut text = format!("{}: {}\n", paint.tone(Tone::Bad, "not ready"), blocking.join(", "));
    if kind && report.provider == ProviderKind::Netns {
        let ready = paint.tone(Tone::Good, "ready for kind");
        text.push_str(&format!(
            "{ready}: labs on kind clusters run here. Next: labctl up dsr --provider kind\n"
        ));
    }
    text
}
