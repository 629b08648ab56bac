//! How long a lab takes to come up, to be proved and to go, and how much memory it takes; beside `ip -batch`
//! building the same topology without any load balancer, in the same run.
//!
//! `make bench`, or `cargo bench --package labctl`. Needs root. Prints the targets and whether this machine
//! met them; `--assert` makes a missed target an error. Rounds of the variants alternate, so that a busy
//! machine is busy for all of them.

use std::io::Write as _;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// Rounds that count; one more comes before them.
const ROUNDS: usize = 15;
/// The lab file. Its built-in copy is used, whatever the folder.
const FILE: &str = "dsr";
/// The lab's name: not the file's, which may be up on this machine and would be taken down with each round.
const LAB: &str = "bench-dsr";
/// Prefix of the namespaces of the peer.
const PEER: &str = "labctl-bench-";

fn main() -> ExitCode {
    // SAFETY: no arguments, cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        return say("skipped: needs root");
    }
    let folder = tempfile::tempdir().expect("a folder for the evidence");
    std::env::set_current_dir(folder.path()).expect("the folder is there");
    let mut rows = Rows::default();
    for round in 0..=ROUNDS {
        let samples = one_round();
        if round > 0 {
            rows.add(samples);
        }
    }
    let met = rows.print();
    if met || !std::env::args().any(|arg| arg == "--assert") { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[expect(clippy::print_stdout, reason = "the result of a benchmark")]
fn say(line: &str) -> ExitCode {
    println!("{line}");
    ExitCode::SUCCESS
}

/// One sample of each variant.
struct Samples {
    up: Run,
    again: Run,
    verify: Run,
    down: Run,
    ip_batch: Duration,
    /// Peak of the backend's process, KiB.
    serve_kib: u64,
}

/// One command.
struct Run {
    wall: Duration,
    /// Peak resident memory of the command and of everything that it waited for, KiB.
    peak_kib: u64,
}

fn one_round() -> Samples {
    settle();
    let up = labctl(&["up", FILE, "--name", LAB]);
    let again = labctl(&["up", FILE, "--name", LAB]);
    let verify = labctl(&["verify", LAB]);
    let serve_kib = serve_peak();
    let down = labctl(&["down", LAB]);
    settle();
    let ip_batch = ip_batch();
    Samples { up, again, verify, down, ip_batch, serve_kib }
}

/// Waits until the kernel has done with the namespaces of the round before: making one takes the same lock.
fn settle() {
    for _ in 0..3 {
        let status = Command::new("unshare").args(["--net", "true"]).status().expect("unshare runs");
        assert!(status.success(), "unshare failed");
    }
}

/// Runs labctl to its end, which must be a success.
#[expect(clippy::zombie_processes, reason = "wait4 waits for it: it also tells the memory")]
fn labctl(args: &[&str]) -> Run {
    let start = Instant::now();
    let child = Command::new(env!("CARGO_BIN_EXE_labctl"))
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("labctl starts");
    let mut status = 0;
    // SAFETY: all zero is a valid rusage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers outlive the call; the process is our child and nobody else waits for it.
    let pid = unsafe { libc::wait4(child.id() as libc::pid_t, &mut status, 0, &mut usage) };
    let wall = start.elapsed();
    assert!(pid > 0 && status == 0, "labctl {args:?} failed (wait status {status})");
    Run { wall, peak_kib: usage.ru_maxrss as u64 }
}

/// VmHWM of the lab's backend, KiB.
fn serve_peak() -> u64 {
    let own = |pid: &str| {
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let words: Vec<_> = words.split(|b| *b == 0).collect();
        let serve = words.get(1..3)? == [b"node".as_slice(), b"serve"];
        let ours = words.windows(2).any(|w| w == [b"--lab".as_slice(), LAB.as_bytes()]);
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
        (serve && ours).then(|| peak.trim().trim_end_matches(" kB").parse().ok())?
    };
    let pids = std::fs::read_dir("/proc").expect("/proc is there").flatten();
    pids.filter_map(|entry| own(&entry.file_name().to_string_lossy())).max().expect("the backend runs")
}

/// Builds the lab's topology with `ip netns add` and one `ip -batch` a namespace; gives the time, and takes
/// it away again.
fn ip_batch() -> Duration {
    let batches = peer_batches();
    let start = Instant::now();
    for (host, _) in &batches {
        ip(&["netns", "add", &format!("{PEER}{host}")], "");
    }
    for (host, batch) in &batches {
        ip(&["-n", &format!("{PEER}{host}"), "-batch", "-"], batch);
    }
    let took = start.elapsed();
    for (host, _) in &batches {
        ip(&["netns", "del", &format!("{PEER}{host}")], "");
    }
    took
}

fn ip(args: &[&str], stdin: &str) {
    let mut child = Command::new("ip").args(args).stdin(Stdio::piped()).spawn().expect("ip starts");
    child.stdin.take().expect("piped").write_all(stdin.as_bytes()).expect("ip reads");
    assert!(child.wait().expect("ip ends").success(), "ip {args:?} failed:\n{stdin}");
}

/// Each namespace of labs/dsr.yaml with its commands, in an order in which each link's peer exists.
fn peer_batches() -> Vec<(&'static str, String)> {
    let hosts = [("client", 1), ("control-plane", 4), ("worker", 3), ("worker2", 2)];
    let pod_nets =
        [("control-plane", "10.0.0.0/24", 4), ("worker", "10.0.2.0/24", 3), ("worker2", "10.0.1.0/24", 2)];
    let mut switch = String::from("link set lo up\nlink add br0 type bridge\nlink set br0 up\n");
    for (host, _) in hosts {
        switch += &format!("link add p-{host} master br0 up type veth peer name eth0 netns {PEER}{host}\n");
    }
    let mut batches = vec![("switch", switch)];
    for (host, last) in hosts {
        let mut batch = format!("link set lo up\nlink set eth0 up\naddr add 172.18.0.{last}/16 dev eth0\n");
        for (node, net, via) in pod_nets {
            if node != host && host != "client" {
                batch += &format!("route add {net} via 172.18.0.{via}\n");
            }
        }
        if host == "worker2" {
            batch += &format!(
                "link add lxc-web-1 up type veth peer name eth0 netns {PEER}web-1\n\
                 addr add 10.0.1.1/32 dev lxc-web-1\nroute add 10.0.1.108/32 dev lxc-web-1\n"
            );
        }
        batches.push((host, batch));
    }
    let pod = "link set lo up\nlink set eth0 up\naddr add 10.0.1.108/32 dev eth0\n\
               route add 10.0.1.1/32 dev eth0\nroute add default via 10.0.1.1\n";
    batches.push(("web-1", pod.to_owned()));
    batches
}

/// All samples, by variant.
#[derive(Default)]
struct Rows {
    up: Vec<f64>,
    again: Vec<f64>,
    verify: Vec<f64>,
    down: Vec<f64>,
    ip_batch: Vec<f64>,
    peak_mib: f64,
}

impl Rows {
    fn add(&mut self, samples: Samples) {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        self.up.push(ms(samples.up.wall));
        self.again.push(ms(samples.again.wall));
        self.verify.push(ms(samples.verify.wall));
        self.down.push(ms(samples.down.wall));
        self.ip_batch.push(ms(samples.ip_batch));
        let runs = [&samples.up, &samples.again, &samples.verify, &samples.down];
        let peak = runs.iter().map(|run| run.peak_kib).max().unwrap_or(0).max(samples.serve_kib);
        self.peak_mib = self.peak_mib.max(peak as f64 / 1024.0);
    }

    /// Prints the table; whether every target was met.
    #[expect(clippy::print_stdout, reason = "the result of a benchmark")]
    fn print(&mut self) -> bool {
        println!("lab {FILE}, {ROUNDS} rounds, exec to exit in ms");
        println!("{:<44} {:>8} {:>8} {:>8}  target", "", "min", "median", "max");
        let mut met = true;
        let rows: [(&str, &mut Vec<f64>, Option<f64>); 5] = [
            ("labctl up (datapath attached, first answer)", &mut self.up, Some(150.0)),
            ("labctl up, again", &mut self.again, Some(1000.0)),
            ("labctl verify", &mut self.verify, Some(2000.0)),
            ("labctl down", &mut self.down, None),
            ("ip -batch, same links, no load balancer", &mut self.ip_batch, None),
        ];
        for (name, samples, target) in rows {
            samples.sort_by(f64::total_cmp);
            let (min, median, max) = (samples[0], samples[samples.len() / 2], samples[samples.len() - 1]);
            let verdict = match target {
                Some(target) if median <= target => format!("median <= {target}: met"),
                Some(target) => format!("median <= {target}: MISSED"),
                None => String::new(),
            };
            met &= !verdict.ends_with("MISSED");
            println!("{name:<44} {min:>8.1} {median:>8.1} {max:>8.1}  {verdict}");
        }
        let small = self.peak_mib <= 64.0;
        let verdict = if small { "met" } else { "MISSED" };
        println!("largest process: {:.1} MiB resident at its peak, target 64: {verdict}", self.peak_mib);
        met && small
    }
}
