//! `labctl list`: the labs of this machine and how far each is.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use labctl_model::ProviderKind;
use labctl_provider::{Lab, LabState, Labs, ProvidedLab};
use serde::Serialize;

use crate::cmd::ResultFormat;
use crate::exit::Exit;
use crate::failure::{Failure, Outcome};
use crate::run::complete;
use crate::ui::{Ui, table};

/// List the labs of this machine.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How to print them.
    #[arg(long, value_enum, default_value_t)]
    format: ResultFormat,
}

/// The JSON of `labctl list`.
#[derive(Serialize)]
struct Report {
    schema: &'static str,
    labs: Vec<Row>,
}

/// One lab. What is known only of a lab that is up is left out for others.
#[derive(Serialize)]
struct Row {
    name: String,
    provider: ProviderKind,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    #[serde(flatten)]
    up: Option<UpRow>,
}

#[derive(Serialize)]
struct UpRow {
    mode: String,
    nodes: usize,
    backends: usize,
    /// Seconds since 1970.
    created: u64,
    version: String,
}

impl Args {
    pub(crate) fn exec(self, ui: &Ui) -> Outcome {
        let labs = Labs::new().list().map_err(|error| Failure::failed(Exit::SetupFailed, &error))?;
        let labs: Vec<Row> = labs.into_iter().map(row).collect();
        match self.format {
            ResultFormat::Json => ui.json(&Report { schema: "labctl.list/v1", labs })?,
            ResultFormat::Text if labs.is_empty() => ui.say("no lab is up; start one with: labctl up dsr"),
            ResultFormat::Text => ui.text(&text(&labs))?,
        }
        Ok(Exit::Ok)
    }
}

fn row(entry: ProvidedLab) -> Row {
    let (state, detail, up) = match entry.state {
        LabState::Ready(lab) if complete::is_marked(&lab) => ("up", None, Some(up_row(&lab))),
        LabState::Ready(_) => ("incomplete", Some("its up has not ended, or was killed".to_owned()), None),
        LabState::Incomplete => ("incomplete", Some("killed; labctl gc removes it".to_owned()), None),
        LabState::Busy { pid } => ("busy", pid.map(|pid| format!("process {pid} works on it")), None),
        LabState::Unreadable { reason } => ("unreadable", Some(reason), None),
    };
    Row { name: entry.name, provider: entry.provider, state, detail, up }
}

fn up_row(lab: &Lab) -> UpRow {
    let plan = lab.plan();
    UpRow {
        mode: plan.mode.to_string(),
        nodes: plan.nodes.len(),
        backends: plan.backends().count(),
        created: lab.created().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        version: lab.version().to_owned(),
    }
}

fn text(labs: &[Row]) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let rows = labs.iter().map(|lab| {
        let up = |field: fn(&UpRow) -> String| lab.up.as_ref().map_or_else(|| "-".to_owned(), field);
        [
            lab.name.clone(),
            lab.detail.as_ref().map_or_else(|| lab.state.to_owned(), |why| format!("{} ({why})", lab.state)),
            lab.provider.to_string(),
            up(|lab| lab.mode.clone()),
            up(|lab| lab.nodes.to_string()),
            up(|lab| lab.backends.to_string()),
            lab.up.as_ref().map_or_else(|| "-".to_owned(), |up| age(now.saturating_sub(up.created))),
        ]
    });
    table(["lab", "state", "provider", "mode", "nodes", "backends", "age"], rows)
}

/// An age as kubectl prints it: the largest unit that fits.
pub(crate) fn age(seconds: u64) -> String {
    let age = Duration::from_secs(seconds).as_secs();
    match age {
        0..120 => format!("{age}s"),
        120..7200 => format!("{}m", age / 60),
        7200..172_800 => format!("{}h", age / 3600),
        _ => format!("{}d", age / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_keep_one_unit() {
        assert_eq!([5, 119, 120, 7200, 200_000].map(age), ["5s", "119s", "2m", "2h", "2d"]);
    }
}
