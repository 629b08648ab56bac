//! How long a kind lab takes to come up, beside bare `kind create cluster` of the same three nodes in the same run,
//! and how much of it is labctl's own share.
//!
//! `cargo bench --package labctl --bench kind`, as part of `make bench`. Needs a Docker engine and kind; the node image
//! is `LABCTL_KIND_IMAGE`, else kind's default. Prints the target and whether this machine met it; `--assert` makes a
//! missed target an error. kind's time inside `up` is taken by a program in front of it, not by labctl's own clock.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// Rounds; each makes two clusters.
const ROUNDS: usize = 3;
/// The lab, and the cluster of the peer.
const LAB: &str = "bench-kind";
/// Seconds of `up` that are not kind's.
const TARGET: f64 = 15.0;

fn main() -> ExitCode {
    if !["docker", "kind"].iter().all(|program| runs(program)) {
        return say("kind: skipped: needs a Docker engine and kind");
    }
    let bench = Bench::new();
    let mut rounds: Vec<Round> = (0..ROUNDS).map(|_| bench.round()).collect();
    let met = print(&mut rounds);
    if met || !std::env::args().any(|arg| arg == "--assert") { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[expect(clippy::print_stdout, reason = "the result of a benchmark")]
fn say(line: &str) -> ExitCode {
    println!("{line}");
    ExitCode::SUCCESS
}

fn runs(program: &str) -> bool {
    let mut command = Command::new(program);
    command.arg("version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Seconds of one round.
struct Round {
    bare: f64,
    up: f64,
    /// kind's part of `up`.
    kind: f64,
    again: f64,
    verify: f64,
    down: f64,
}

/// A folder with a kind that takes its own time.
struct Bench {
    folder: tempfile::TempDir,
    path: String,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = std::env::var("PATH").unwrap_or_default();
        let real = path.split(':').map(|folder| Path::new(folder).join("kind")).find(|p| p.is_file());
        let real = real.expect("kind runs, so it is on PATH");
        let script = format!(
            "#!/bin/sh\nstart=$(date +%s.%N)\n'{real}' \"$@\"\ncode=$?\n\
             case \"$1 $2\" in 'create cluster') echo \"$start $(date +%s.%N)\" >'{times}';; esac\nexit $code\n",
            real = real.display(),
            times = folder.path().join("times").display(),
        );
        let shim = folder.path().join("kind");
        fs::write(&shim, script).expect("write the program in front of kind");
        fs::set_permissions(&shim, fs::Permissions::from_mode(0o755)).expect("make it a program");
        let path = format!("{}:{path}", folder.path().display());
        Self { folder, path }
    }

    fn round(&self) -> Round {
        let bare = self.bare();
        let mut up = self.labctl(&["up", "dsr", "--provider", "kind", "--name", LAB]);
        up.args(image().iter().flat_map(|image| ["--image", image]));
        let up = run(up);
        let kind = self.kinds_time();
        let mut again = self.labctl(&["up", "dsr", "--provider", "kind", "--name", LAB]);
        again.args(image().iter().flat_map(|image| ["--image", image]));
        let again = run(again);
        let verify = run(self.labctl(&["verify", LAB]));
        let down = run(self.labctl(&["down", LAB]));
        Round { bare, up, kind, again, verify, down }
    }

    /// `kind create cluster` with as many nodes, without a network as labctl's has it, and away again.
    fn bare(&self) -> f64 {
        let config = self.folder.path().join("bare.yaml");
        let yaml = "kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\n\
                    networking: {disableDefaultCNI: true, kubeProxyMode: none}\n\
                    nodes: [{role: control-plane}, {role: worker}, {role: worker}]\n";
        fs::write(&config, yaml).expect("write kind's config");
        let kubeconfig = self.folder.path().join("kubeconfig");
        let mut create = Command::new("kind");
        create.args(["create", "cluster", "--name", "bench-bare", "--config"]).arg(&config);
        create.arg("--kubeconfig").arg(&kubeconfig).args(image().iter().flat_map(|i| ["--image", i]));
        let took = run(create);
        let mut delete = Command::new("kind");
        delete.args(["delete", "cluster", "--name", "bench-bare", "--kubeconfig"]).arg(&kubeconfig);
        run(delete);
        took
    }

    /// The static binary, which containers can run, with a state folder of its own.
    fn labctl(&self, args: &[&str]) -> Command {
        let program = std::env::var_os("LABCTL_BINARY")
            .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/labctl"), PathBuf::from);
        let program = program.canonicalize().expect("target/labctl: run `make build` first");
        let mut command = Command::new(program);
        let state = self.folder.path().join("state");
        command
            .args(args)
            .current_dir(self.folder.path())
            .env("PATH", &self.path)
            .env("LABCTL_STATE_DIR", state);
        command
    }

    /// Seconds that the last `kind create cluster` took.
    fn kinds_time(&self) -> f64 {
        let times = fs::read_to_string(self.folder.path().join("times")).expect("kind created a cluster");
        let mut seconds = times.split_whitespace().map(|time| time.parse::<f64>().expect("seconds"));
        let (start, end) = (seconds.next().expect("start"), seconds.next().expect("end"));
        end - start
    }
}

fn image() -> Option<String> {
    std::env::var("LABCTL_KIND_IMAGE").ok().filter(|image| !image.is_empty())
}

/// Runs a command, which must succeed; gives its seconds.
fn run(mut command: Command) -> f64 {
    let start = Instant::now();
    let output = command.stdin(Stdio::null()).output().expect("it starts");
    let took: Duration = start.elapsed();
    assert!(output.status.success(), "{command:?}:\n{}", String::from_utf8_lossy(&output.stderr));
    took.as_secs_f64()
}

/// Prints the table; whether the target was met.
#[expect(clippy::print_stdout, reason = "the result of a benchmark")]
fn print(rounds: &mut [Round]) -> bool {
    let mut table = format!("lab dsr on kind, {ROUNDS} rounds, exec to exit in s\n");
    let _ = writeln!(table, "{:<44} {:>8} {:>8} {:>8}  target", "", "min", "median", "max");
    let mut met = true;
    type Of = fn(&Round) -> f64;
    let rows: [(&str, Of, Option<f64>); 7] = [
        ("kind create cluster, bare", |r| r.bare, None),
        ("labctl up (first answer)", |r| r.up, None),
        ("  of that kind create cluster", |r| r.kind, None),
        ("  of that labctl's share", |r| r.up - r.kind, Some(TARGET)),
        ("labctl up, again", |r| r.again, None),
        ("labctl verify", |r| r.verify, None),
        ("labctl down", |r| r.down, None),
    ];
    for (name, of, target) in rows {
        let mut samples: Vec<f64> = rounds.iter().map(of).collect();
        samples.sort_by(f64::total_cmp);
        let (min, median, max) = (samples[0], samples[samples.len() / 2], samples[samples.len() - 1]);
        let verdict = match target {
            Some(target) if max <= target => format!("max <= {target}: met"),
            Some(target) => format!("max <= {target}: MISSED"),
            None => String::new(),
        };
        met &= !verdict.ends_with("MISSED");
        let _ = writeln!(table, "{name:<44} {min:>8.1} {median:>8.1} {max:>8.1}  {verdict}");
    }
    println!("{}", table.trim_end());
    met
}
