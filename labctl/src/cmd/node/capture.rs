//! `labctl node capture`: records packets of this network namespace.

use std::path::PathBuf;

use clap::ValueEnum;
use labctl_node::capture::{self, CaptureError, CaptureOptions, CaptureReady, DEFAULT_SNAPLEN};
use labctl_wire::HostKind;

use super::line;
use crate::exit::Exit;
use crate::failure::{Failure, Outcome};
use crate::ui::Ui;

/// Record packets as pcapng until SIGTERM or SIGINT; with a file, say on stdout when all points are ready.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Name of this host in the capture.
    #[arg(long, default_value = "host")]
    host: String,
    /// What this host is.
    #[arg(long, value_enum, default_value_t)]
    kind: Kind,
    /// Interface, may be repeated; without it every interface that is up.
    #[arg(short, long = "interface", value_name = "NAME")]
    interfaces: Vec<String>,
    /// Which packets, in tcpdump's language.
    #[arg(short, long, default_value = "")]
    filter: String,
    /// Bytes to keep of each packet.
    #[arg(long, default_value_t = DEFAULT_SNAPLEN, value_name = "N")]
    snaplen: u32,
    /// End after so many packets.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// End after so many milliseconds.
    #[arg(long, value_name = "MS")]
    duration: Option<u64>,
    /// pcapng file; - is stdout.
    #[arg(short, long, default_value = "-", value_name = "FILE")]
    write: PathBuf,
    /// End when stdin is closed.
    #[arg(long)]
    stop_at_eof: bool,
}

/// What a host is.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Kind {
    /// The client.
    Client,
    /// A node.
    #[default]
    Node,
    /// A pod.
    Pod,
}

impl Args {
    pub(crate) fn exec(self, ui: &Ui) -> Outcome {
        let options = self.options();
        let to_stdout = self.write.as_os_str() == "-";
        // On stdout a line would spoil the capture; there the file's head says the same.
        let mut ready = |ready: &CaptureReady| if to_stdout { Ok(()) } else { line(ui, ready) };
        let summary = capture::run(&options, &mut ready).map_err(|error| {
            let exit = if matches!(error, CaptureError::Filter(_)) { Exit::Usage } else { Exit::SetupFailed };
            Failure::because(exit, "capture", &error)
        })?;
        if !to_stdout {
            line(ui, &summary)
                .map_err(|error| Failure::because(Exit::SetupFailed, "say how the capture ended", &error))?;
        }
        Ok(Exit::Ok)
    }

    fn options(&self) -> CaptureOptions {
        let kind = match self.kind {
            Kind::Client => HostKind::Client,
            Kind::Node => HostKind::Node,
            Kind::Pod => HostKind::Pod,
        };
        CaptureOptions {
            interfaces: self.interfaces.clone(),
            filter: self.filter.clone(),
            snaplen: self.snaplen,
            count: self.count,
            duration_ms: self.duration,
            stop_on_stdin_close: self.stop_at_eof,
            output: Some(self.write.clone()),
            ..CaptureOptions::new(&self.host, kind)
        }
    }
}
