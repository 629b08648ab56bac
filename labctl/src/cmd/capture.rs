//! `labctl capture`: watches packets of a lab, as lines or as a pcapng stream with named interfaces.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use datapath_types::option::WireOrder;
use labctl_model::WireFormat;
use labctl_node::filter;
use labctl_provider::{Host, HostKind, Lab, Labs};
use labctl_wire::packet::Mac;
use labctl_wire::pcapng::{Packet, SNAPLEN_WHOLE, WriteError, Writer};
use labctl_wire::{CapturePoint, Frame, text};

use crate::exit::Exit;
use crate::failure::{Failure, Outcome, did_you_mean};
use crate::pick::find_up;
use crate::run::{Interrupt, Limits, Sink, Source, Stream, Tally};
use crate::ui::Ui;

/// Watch packets: lines on a terminal, or a pcapng file with the names of hosts and interfaces.
///
/// Ends with Ctrl-C. Into Wireshark: labctl capture --all -w - | wireshark -k -i -
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The lab; may be left out when one is up.
    name: Option<String>,
    /// The host: a node, the client, a pod or the switch.
    #[arg(long, value_name = "HOST", required_unless_present = "all")]
    node: Option<String>,
    /// Every node, the client and every pod, in one capture.
    #[arg(long, conflicts_with = "node")]
    all: bool,
    /// Interface of the host, may be repeated; without it every one.
    #[arg(short, long = "interface", value_name = "NAME", conflicts_with = "all")]
    interfaces: Vec<String>,
    /// Which packets, in tcpdump's language: 'tcp port 32000'.
    #[arg(short, long, default_value = "", value_name = "FILTER", hide_default_value = true)]
    filter: String,
    /// Write pcapng into this file; - is stdout.
    #[arg(short, long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// End after this time: 500ms, 5s, 2m.
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    time: Option<Duration>,
    /// End after so many packets.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Bytes to keep of each packet.
    #[arg(long, value_name = "N", default_value_t = SNAPLEN_WHOLE, hide_default_value = true)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=SNAPLEN_WHOLE as i64))]
    snaplen: u32,
}

impl Args {
    pub(crate) fn exec(self, ui: &Ui) -> Outcome {
        let interrupt = Interrupt::take_over()?;
        filter::compile(&self.filter, self.snaplen)
            .map_err(|error| Failure::because(Exit::Usage, "read the filter", &error))?;
        let lab = find_up(&Labs::new(), self.name.as_deref(), "capture")?;
        let sources = self.sources(&lab)?;
        let limits =
            Limits { filter: self.filter, snaplen: self.snaplen, count: self.count, time: self.time };
        let stream = Stream { lab: &lab, sources: &sources, limits: &limits };
        let captured = match self.write.as_deref() {
            None => stream.run(&interrupt, &mut Lines::new(&lab, ui)),
            Some(path) => {
                let out = open(path, ui)?;
                let mut file = Recording::new(out, limits.snaplen, ui)
                    .map_err(|error| Failure::because(Exit::SetupFailed, "write the capture", &error))?;
                stream.run(&interrupt, &mut file)
            }
        };
        let tally = captured.map_err(|error| Failure::because(Exit::SetupFailed, "capture", &error))?;
        conclude(ui, tally, self.write.as_deref());
        Ok(Exit::Ok)
    }

    fn sources<'a>(&self, lab: &'a Lab) -> Result<Vec<Source<'a>>, Failure> {
        let every = |host: &'a Host| Source {
            host,
            interfaces: host.interfaces.iter().map(|interface| interface.name.clone()).collect(),
        };
        let Some(name) = &self.node else {
            let hosts = lab.hosts().iter().filter(|host| host.kind != HostKind::Switch);
            return Ok(hosts.map(every).collect());
        };
        let host = lab.host(name).ok_or_else(|| {
            let names = || lab.hosts().iter().map(|host| host.name.as_str());
            unknown(&format!("lab {} has no host", lab.name()), name, names)
        })?;
        if self.interfaces.is_empty() {
            return Ok(vec![every(host)]);
        }
        let names = || host.interfaces.iter().map(|i| i.name.as_str()).chain(["lo"]);
        match self.interfaces.iter().find(|typed| !names().any(|name| name == typed.as_str())) {
            Some(typed) => Err(unknown(&format!("host {} has no interface", host.name), typed, names)),
            None => Ok(vec![Source { host, interfaces: self.interfaces.clone() }]),
        }
    }
}

/// "lab dsr has no host "wroker"", with a guess or with all that there is.
fn unknown<'a, N: Iterator<Item = &'a str>>(what: &str, typed: &str, names: impl Fn() -> N) -> Failure {
    let all = || format!("there are: {}", names().collect::<Vec<_>>().join(", "));
    Failure::new(Exit::Usage, format!("{what} \"{typed}\""))
        .hint(did_you_mean(typed, names()).unwrap_or_else(all))
}

/// A time with its unit, as `--for` takes it.
fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let scale = match unit {
        "ms" => 1e-3,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err("the unit is one of ms, s, m, h".to_owned()),
    };
    let seconds =
        number.parse::<f64>().map_err(|_| "write a number and a unit, for example 5s".to_owned())?;
    Duration::try_from_secs_f64(seconds * scale)
        .ok()
        .filter(|time| !time.is_zero())
        .ok_or_else(|| "the time must be more than nothing and less than for ever".to_owned())
}

fn open(path: &Path, ui: &Ui) -> Result<Box<dyn Write>, Failure> {
    if path.as_os_str() == "-" {
        if ui.out_is_terminal() {
            return Err(Failure::new(Exit::Usage, "a terminal cannot show pcapng")
                .hint("labctl capture --all -w - | wireshark -k -i -\nwithout -w, packets come as lines"));
        }
        return Ok(Box::new(ui.stdout()));
    }
    let file = File::create(path).map_err(|error| {
        Failure::because(Exit::SetupFailed, format_args!("write the capture to {}", path.display()), &error)
    })?;
    Ok(Box::new(file))
}

fn conclude(ui: &Ui, tally: Tally, file: Option<&Path>) {
    let file = file.filter(|path| path.as_os_str() != "-");
    let place = file.map_or_else(String::new, |path| format!(" in {}", path.display()));
    ui.say(&format!("{} packets{place}, {} dropped by the kernel", tally.packets, tally.dropped));
    if tally.dropped > 0 {
        ui.warn("the capture is not complete: narrow it with -f, or keep less of each packet with --snaplen");
    }
}

/// Says what is captured, once it is.
fn announce(ui: &Ui, points: &[(CapturePoint, Option<Mac>)]) {
    let names: Vec<String> = points.iter().map(|(point, _)| point.to_string()).collect();
    ui.say(&format!("capturing {} (Ctrl-C ends it)", names.join(", ")));
}

/// Packets as lines.
struct Lines<'a> {
    ui: &'a Ui,
    order: WireOrder,
    points: Vec<CapturePoint>,
}

impl<'a> Lines<'a> {
    fn new(lab: &Lab, ui: &'a Ui) -> Self {
        let order = match lab.plan().wire {
            WireFormat::Network => WireOrder::Network,
            WireFormat::Cilium => WireOrder::Cilium,
        };
        Self { ui, order, points: Vec::new() }
    }
}

impl Sink for Lines<'_> {
    fn begin(&mut self, points: &[(CapturePoint, Option<Mac>)]) -> io::Result<()> {
        announce(self.ui, points);
        self.points = points.iter().map(|(point, _)| point.clone()).collect();
        Ok(())
    }

    fn packet(&mut self, packet: Packet) -> io::Result<()> {
        let point = packet.interface as usize;
        let frame = Frame::parse(&packet.data, packet.original_len);
        let (point, order) = (&self.points[point], Some(self.order));
        self.ui.line(&text::line(packet.ts_ns, packet.direction, &frame, point, order))
    }

    fn pause(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn counters(&mut self, _: usize, _: u64, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
}

/// Packets as pcapng.
struct Recording<'a> {
    writer: Writer<BufWriter<Box<dyn Write>>>,
    snaplen: u32,
    ui: &'a Ui,
}

impl<'a> Recording<'a> {
    fn new(out: Box<dyn Write>, snaplen: u32, ui: &'a Ui) -> Result<Self, WriteError> {
        Ok(Self { writer: Writer::new(BufWriter::new(out))?, snaplen, ui })
    }
}

impl Sink for Recording<'_> {
    fn begin(&mut self, points: &[(CapturePoint, Option<Mac>)]) -> io::Result<()> {
        for (point, mac) in points {
            self.writer
                .add_interface_with_mac(point, self.snaplen, "captured by labctl", *mac)
                .map_err(into_io)?;
        }
        announce(self.ui, points);
        Ok(())
    }

    fn packet(&mut self, packet: Packet) -> io::Result<()> {
        let Packet { interface, ts_ns, original_len, data, direction, comment } = packet;
        self.writer
            .packet(interface, ts_ns, original_len, &data, direction, comment.as_deref())
            .map_err(into_io)
    }

    fn pause(&mut self) -> io::Result<()> {
        self.writer.flush().map_err(into_io)
    }

    fn counters(&mut self, point: usize, ts_ns: u64, received: u64, dropped: u64) -> io::Result<()> {
        self.writer.statistics(point as u32, ts_ns, received, dropped).map_err(into_io)
    }
}

fn into_io(error: WriteError) -> io::Error {
    match error {
        WriteError::Io(error) => error,
        other => io::Error::other(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        let ms = Duration::from_millis;
        let good = [
            ("500ms", ms(500)),
            ("5s", ms(5000)),
            ("1.5", ms(1500)),
            ("2m", ms(120_000)),
            ("1h", ms(3_600_000)),
        ];
        for (text, time) in good {
            assert_eq!(duration(text), Ok(time), "{text}");
        }
        for text in ["", "s", "5d", "0s", "-1s", "1e99", "five"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
