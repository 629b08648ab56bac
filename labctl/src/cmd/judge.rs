//! `labctl judge`: a verdict over captures that somebody else took.
//!
//! Owns: files, their names and what is said of them on the command line. Does not own: reading formats
//! ([`labctl_wire::file`]), working out what the captures show ([`labctl_verdict::foreign`]), or judging.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use labctl_model::Mode;
use labctl_verdict::foreign::{Given, InferError, Inferred, infer};
use labctl_verdict::{Report, judge_and_explain};
use labctl_wire::file::{self, Opened};
use labctl_wire::{CaptureFile, HostKind};

use super::form::{Form, exit};
use crate::exit::Exit;
use crate::failure::{Failure, Outcome};
use crate::ui::Ui;

/// No capture that fits into memory with its index is larger.
const LARGEST: u64 = 4 << 30;

/// Judge captures that somebody took with tcpdump, one file a host.
///
/// Reads pcap and pcapng, plain or compressed by gzip or zstd. Client, frontend, backends, nodes and mode are worked out
/// from the packets, and said. What is seen counts; what is not seen proves nothing, unless --complete vouches for the
/// capture. Exits with 0 if every check passed, 1 if one failed, 6 if the captures do not suffice.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Captures; a host is called like its file, or NAME in NAME=FILE; - is stdin.
    #[arg(value_name = "FILE", required = true)]
    files: Vec<String>,
    /// Vouch for the captures of this host: whole, from before the first packet until after the last.
    #[arg(long, value_name = "HOST", value_delimiter = ',')]
    complete: Vec<String>,
    /// The frontend to look at; else the one that is asked most.
    #[arg(long, value_name = "ADDRESS:PORT")]
    frontend: Option<SocketAddrV4>,
    /// The client to look at; else the one that asks most.
    #[arg(long, value_name = "ADDRESS")]
    client: Option<Ipv4Addr>,
    /// The mode to hold the packets against; else the one that they look like.
    #[arg(long, value_name = "MODE", value_parser = mode())]
    mode: Option<Mode>,
    /// Largest packet of the links in bytes; else as the client's SYN says.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(68..))]
    mtu: Option<u16>,
    /// Address of a node.
    #[arg(long, value_name = "HOST=ADDRESS", value_parser = pair::<Ipv4Addr>)]
    node: Vec<(String, Ipv4Addr)>,
    /// What a host is, where the packets do not tell: client, node or pod.
    #[arg(long, value_name = "HOST=ROLE", value_parser = pair::<Role>)]
    role: Vec<(String, Role)>,
    /// Write all packets into one pcapng, with the verdict as comments.
    #[arg(long, short, value_name = "FILE")]
    write: Option<PathBuf>,
    #[command(flatten)]
    form: Form,
}

/// Kinds of host by name.
#[derive(Clone, Copy, Debug)]
struct Role(HostKind);

impl std::str::FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let kinds = [HostKind::Client, HostKind::Node, HostKind::Pod];
        let kind = kinds.into_iter().find(|kind| kind.to_string() == text);
        kind.map(Self).ok_or_else(|| format!("\"{text}\" is no role: client, node or pod"))
    }
}

/// Modes by name, each with a word on it.
const MODES: [(Mode, &str); 4] = [
    (Mode::Dsr, "Direct server return"),
    (Mode::Snat, "Source NAT at the node that was asked"),
    (Mode::Hybrid, "TCP as dsr, UDP as snat"),
    (Mode::Local, "externalTrafficPolicy Local"),
];

fn mode() -> impl TypedValueParser<Value = Mode> {
    let names = MODES.map(|(mode, help)| PossibleValue::new(mode.to_string()).help(help));
    let named = |name: String| MODES.into_iter().map(|(mode, _)| mode).find(|mode| mode.to_string() == name);
    PossibleValuesParser::new(names).try_map(move |name| named(name).ok_or("no mode"))
}

/// `HOST=VALUE`.
fn pair<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<(String, T), String> {
    let (host, value) = text.split_once('=').ok_or("it has no \"=\"")?;
    let value = value.parse().map_err(|error: T::Err| error.to_string())?;
    Ok((host.to_owned(), value))
}

impl Args {
    pub(crate) fn exec(self, ui: &Ui) -> Outcome {
        let began = Instant::now();
        let (capture, shortfalls) = self.read()?;
        let given = Given {
            client: self.client,
            frontend: self.frontend,
            mode: self.mode,
            mtu: self.mtu,
            nodes: self.node.iter().cloned().collect(),
            roles: self.role.iter().map(|(host, role)| (host.clone(), role.0)).collect(),
            complete: self.complete.iter().cloned().collect(),
            shortfalls,
        };
        let Inferred { evidence, notes } = infer(capture, &given).map_err(|error| {
            // What was typed is not in the files; anything else is the files' own lack.
            let typed = matches!(error, InferError::NotThere { .. });
            Failure::failed(if typed { Exit::Usage } else { Exit::Inconclusive }, &error)
        })?;
        let explained = judge_and_explain(&evidence);
        let took = began.elapsed().as_millis() as u64;
        let report = Report::of_files(&evidence, &self.files.join(", "), took, notes, explained.judgement);
        self.form.emit(ui, &self.form.render(&report, ui))?;
        if let Some(path) = &self.write {
            let mut out = create(path)?;
            let written = evidence
                .capture
                .write(&mut out, &report.inferred, &explained.comments)
                .map_err(io::Error::other);
            let written = written.and_then(|()| out.flush());
            written.map_err(|error| unwritable(path, &error))?;
        }
        Ok(exit(report.verdict))
    }

    /// All files as one capture, and by host what is missing of its files.
    fn read(&self) -> Result<(CaptureFile, BTreeMap<String, String>), Failure> {
        let mut files = Vec::with_capacity(self.files.len());
        let mut shortfalls = BTreeMap::new();
        let mut hosts = BTreeSet::new();
        for argument in &self.files {
            let (host, path) = named(argument);
            let Opened { mut capture, shortfalls: missing } = open(path)?;
            name_points(&mut capture, &host);
            if !hosts.insert(host.clone()) {
                let failure = Failure::new(Exit::Usage, format!("two files are of host {host}"));
                return Err(failure.hint("name them: labctl judge first=FILE second=FILE"));
            }
            if let Some(missing) = missing.into_iter().next() {
                shortfalls.insert(host, missing);
            }
            files.push(capture);
        }
        Ok((CaptureFile::merge(files), shortfalls))
    }
}

/// Host and path of `NAME=FILE` or `FILE`; a file that is really called so is one.
fn named(argument: &str) -> (String, &Path) {
    let named = argument.split_once('=').filter(|(name, _)| {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        !name.is_empty() && name.chars().all(fits) && !Path::new(argument).exists()
    });
    match named {
        Some((name, path)) => (name.to_owned(), Path::new(path)),
        None => (stem(Path::new(argument)), Path::new(argument)),
    }
}

/// `worker` of `captures/worker.pcap.gz`.
fn stem(path: &Path) -> String {
    let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let mut stem = name.as_str();
    for ending in [".gz", ".zst", ".pcap", ".pcapng", ".cap", ".dmp"] {
        stem = stem.strip_suffix(ending).unwrap_or(stem);
    }
    match stem {
        "-" => "stdin".to_owned(),
        "" => name,
        stem => stem.to_owned(),
    }
}

/// Points that the file itself names keep their names: labctl's own captures say host and interface.
fn name_points(capture: &mut CaptureFile, host: &str) {
    for info in capture.points.iter_mut().filter(|info| info.point.host.is_empty()) {
        host.clone_into(&mut info.point.host);
    }
}

fn open(path: &Path) -> Result<Opened, Failure> {
    let unreadable = |error: &(dyn std::error::Error + 'static)| {
        Failure::because(Exit::Usage, format_args!("read {}", path.display()), error)
    };
    if path == Path::new("-") {
        return file::read(io::stdin().lock(), LARGEST).map_err(|error| unreadable(&error));
    }
    let meta = std::fs::metadata(path).map_err(|error| unreadable(&error))?;
    if meta.is_dir() {
        let failure = Failure::new(Exit::Usage, format!("{} is a folder", path.display()));
        return Err(failure.hint("name the captures in it; labctl verify --from judges the folder of a run"));
    }
    let input = File::open(path).map_err(|error| unreadable(&error))?;
    file::read(BufReader::with_capacity(256 * 1024, input), LARGEST).map_err(|error| unreadable(&error))
}

fn create(path: &Path) -> Result<BufWriter<File>, Failure> {
    File::create(path).map(BufWriter::new).map_err(|error| unwritable(path, &error))
}

fn unwritable(path: &Path, error: &io::Error) -> Failure {
    Failure::because(Exit::SetupFailed, format_args!("write {}", path.display()), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_called_like_their_files() {
        for (argument, host, path) in [
            ("captures/worker.pcap", "worker", "captures/worker.pcap"),
            ("worker2.pcapng.gz", "worker2", "worker2.pcapng.gz"),
            ("a=captures/b.pcap", "a", "captures/b.pcap"),
            ("./a=b.pcap", "a=b", "./a=b.pcap"),
            ("-", "stdin", "-"),
            ("client=-", "client", "-"),
            (".pcap", ".pcap", ".pcap"),
        ] {
            assert_eq!(named(argument), (host.to_owned(), Path::new(path)), "{argument}");
        }
    }
}
