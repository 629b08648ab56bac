//! `labctl node relay`: the process on this machine that stands for a role in a container or a pod.

use std::ffi::OsString;

use labctl_provider::Place;
use labctl_provider::relay::{Streams, relay};

use crate::exit::Exit;
use crate::failure::{Failure, Outcome};
use crate::ui::Ui;

/// Run a command in a container or a pod with the streams and the exit status of this process.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where to, as JSON.
    #[arg(long, value_name = "PLACE", value_parser = place)]
    to: Place,
    /// The command: program and arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

fn place(text: &str) -> Result<Place, serde_json::Error> {
    serde_json::from_str(text)
}

impl Args {
    pub(crate) fn exec(self, _: &Ui) -> Outcome {
        let failed = |error| Failure::failed(Exit::SetupFailed, &error);
        let command: Vec<String> =
            self.command.iter().map(|word| word.to_string_lossy().into_owned()).collect();
        let streams = Streams::of_this_process().map_err(|error| failed(error.into()))?;
        ended(relay(&self.to, &command, streams).map_err(failed)?)
    }
}

/// The role's own exit code. A role is this program, so other codes than its own come from who ended it.
pub(super) fn ended(status: i64) -> Outcome {
    let own = Exit::MEANINGS.iter().find(|(exit, _)| *exit as i64 == status);
    match own {
        Some((exit, _)) => Ok(*exit),
        None if status > 128 => {
            Err(Failure::new(Exit::SetupFailed, format!("signal {} ended the role", status - 128)))
        }
        None => Err(Failure::new(Exit::SetupFailed, format!("the role ended with status {status}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_s_exit_code_passes_through() {
        assert_eq!(ended(0).unwrap(), Exit::Ok);
        assert_eq!(ended(6).unwrap(), Exit::Inconclusive);
        assert_eq!(ended(137).unwrap_err().message(), "signal 9 ended the role");
        assert_eq!(ended(127).unwrap_err().message(), "the role ended with status 127");
    }
}
