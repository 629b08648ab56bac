//! `labctl node framed`: the far end of a relay whose connection cannot close one direction alone.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::thread;

use labctl_provider::relay::unframe;

use crate::exit::Exit;
use crate::failure::{Failure, Outcome};
use crate::ui::Ui;

/// Run a command with a stdin that comes in frames; its other streams are this process's.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The command: program and arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl Args {
    pub(crate) fn exec(self, _: &Ui) -> Outcome {
        let failed = |error: &io::Error| {
            Failure::because(Exit::SetupFailed, format_args!("run {}", self.command[0].display()), error)
        };
        let mut child = Command::new(&self.command[0])
            .args(&self.command[1..])
            .stdin(Stdio::piped())
            .spawn()
            .map_err(|error| failed(&error))?;
        let stdin = child.stdin.take();
        // It may wait for frames longer than the command runs; it ends with this process.
        thread::spawn(move || stdin.map(|stdin| unframe(io::stdin(), stdin)));
        let status = child.wait().map_err(|error| failed(&error))?;
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        super::relay::ended(code.into())
    }
}
