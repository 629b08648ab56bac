//! `labctl node fetch`: the client.

use std::net::SocketAddrV4;
use std::num::NonZeroU32;

use labctl_node::fetch::{self, Client, FetchOptions, Request, Transport};
use labctl_wire::{Exchange, Outcome as Ending};

use crate::exit::Exit;
use crate::failure::{Failure, Outcome};
use crate::ui::Ui;

/// Ask a backend, check every byte of its answer; without TARGET the requests come as JSON on stdin.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Address and port to ask.
    target: Option<SocketAddrV4>,
    /// Ask over UDP.
    #[arg(long)]
    udp: bool,
    /// Requests to send.
    #[arg(short = 'n', long, default_value_t = 1, value_name = "N")]
    count: u32,
    /// Requests to begin in each second, evenly spread; without, one after the other.
    #[arg(long, value_name = "N")]
    rate: Option<NonZeroU32>,
    /// Own port of the first request; the next ones count up.
    #[arg(long, value_name = "PORT")]
    source_port: Option<u16>,
    /// Bytes to download (UDP: size of the reply).
    #[arg(long, default_value_t = 0, value_name = "N")]
    bytes: u64,
    /// Bytes to upload instead.
    #[arg(long, default_value_t = 0, value_name = "N")]
    upload: u64,
    /// Deadline of each request in milliseconds.
    #[arg(long, default_value_t = 2000, value_name = "MS")]
    timeout: u64,
    /// Speak HTTP with the real curl.
    #[arg(long, conflicts_with = "udp")]
    curl: bool,
    /// Print JSON lines although a target is given.
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(crate) fn exec(self, ui: &Ui) -> Outcome {
        let refused = |error| Failure::because(Exit::Usage, "fetch", &error);
        let Some(target) = self.target else {
            let options: FetchOptions = super::options_from_stdin("the requests")?;
            fetch::run(&options, &mut ui.stdout()).map_err(refused)?;
            return Ok(Exit::Ok);
        };
        let options = self.options(target);
        let exchanges = if self.json {
            fetch::run(&options, &mut ui.stdout()).map_err(refused)?
        } else {
            let describe = |exchange: &Exchange| ui.line(&fetch::describe(exchange));
            fetch::fetch(&options, describe).map_err(refused)?
        };
        let answered = exchanges.iter().all(|exchange| exchange.outcome == Ending::Answered);
        Ok(if answered { Exit::Ok } else { Exit::CheckFailed })
    }

    fn options(&self, target: SocketAddrV4) -> FetchOptions {
        let protocol = if self.udp { Transport::Udp } else { Transport::Tcp };
        let request = |id: u32| Request {
            source_port: self.source_port.map(|first| first.wrapping_add((id - 1) as u16)),
            response_bytes: self.bytes,
            upload_bytes: self.upload,
            timeout_ms: self.timeout,
            ..Request::new(id, protocol, target)
        };
        FetchOptions {
            requests: (1..=self.count).map(request).collect(),
            // By hand and without a rate one after the other: the lines then come in order.
            concurrency: if self.rate.is_some() { self.count as usize } else { 1 },
            per_second: self.rate,
            client: if self.curl { Client::Curl } else { Client::Builtin },
        }
    }
}
