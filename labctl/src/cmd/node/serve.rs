//! `labctl node serve`: a backend.

use std::net::Ipv4Addr;
use std::time::Duration;

use labctl_node::serve::{self, ServeOptions};

use crate::exit::Exit;
use crate::failure::{Failure, Outcome};
use crate::ui::Ui;

/// Answer over TCP and UDP, and say whom was seen; ends with SIGTERM.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Node name to report.
    #[arg(long)]
    node: String,
    /// Pod name to report.
    #[arg(long)]
    pod: String,
    /// Address to bind.
    #[arg(long, default_value_t = Ipv4Addr::UNSPECIFIED)]
    address: Ipv4Addr,
    /// Port to bind for both protocols; 0 lets the kernel choose.
    #[arg(long)]
    port: u16,
    /// After SIGTERM, go on for up to so many seconds as long as requests come.
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    linger: u64,
}

impl Args {
    pub(crate) fn exec(self, ui: &Ui) -> Outcome {
        let options = ServeOptions {
            node: self.node,
            pod: self.pod,
            address: self.address,
            port: self.port,
            linger: Duration::from_secs(self.linger),
        };
        serve::run(&options, &mut ui.stdout())
            .map_err(|error| Failure::because(Exit::SetupFailed, "serve", &error))?;
        Ok(Exit::Ok)
    }
}
