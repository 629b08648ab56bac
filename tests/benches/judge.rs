//! How fast a million packets are read and judged, beside a bare walk over the same bytes and beside tshark, and how much memory
//! that takes.
//!
//! `make bench`, or `cargo bench --package labctl-verdict`. Needs no root. Each step is a process of its own, so that its peak
//! of memory is its own; rounds alternate.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Write as _};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use lab::{Paper, plan};
use labctl_model::Mode;
use labctl_verdict::{Evidence, Verdict, judge};
use labctl_wire::CaptureFile;

#[expect(dead_code, reason = "the benchmark needs only part of the lab")]
#[path = "../../labctl/verdict/tests/lab/mod.rs"]
mod lab;

/// Of each protocol; with these a run has about a million packets at six places.
const CONNECTIONS: u32 = 9_000;
const DATAGRAMS: u32 = 46_000;
const ROUNDS: usize = 5;

/// What is asked, relative to the bare walk and to the file.
const MOST_TIME: f64 = 5.0;
const MOST_MEMORY: f64 = 1.5;
/// Packets of which tshark is timed: it needs minutes for all.
const FOR_TSHARK: usize = 20_000;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if let [_, step, folder] = &args[..]
        && ["walk", "read", "judge"].contains(&step.as_str())
    {
        return run_step(step, Path::new(folder));
    }
    let folder = tempfile::tempdir().expect("a folder");
    let packets = write(folder.path());
    let size = std::fs::metadata(folder.path().join("flow.pcapng")).expect("it was written").len();
    let mut times: BTreeMap<&str, Vec<(Duration, u64)>> = BTreeMap::new();
    for _ in 0..ROUNDS {
        for step in ["walk", "read", "judge"] {
            times.entry(step).or_default().push(step_in_process(step, folder.path()));
        }
    }
    let tshark = tshark(folder.path());
    print(packets, size, times, tshark)
}

/// Writes the run; how many packets it has.
fn write(folder: &Path) -> usize {
    let evidence = evidence();
    let out = File::create(folder.join("flow.pcapng")).expect("create");
    evidence.capture.write(std::io::BufWriter::new(out), &[], &BTreeMap::new()).expect("write");
    let mut first = CaptureFile::default();
    first.points.clone_from(&evidence.capture.points);
    for (index, packet) in evidence.capture.packets().iter().enumerate().take(FOR_TSHARK) {
        first.push(
            packet.point,
            packet.ts_ns,
            packet.direction,
            packet.original_len,
            evidence.capture.data(index),
        );
    }
    let out = File::create(folder.join("first.pcapng")).expect("create");
    first.write(std::io::BufWriter::new(out), &[], &BTreeMap::new()).expect("write");
    let record = serde_json::to_vec(&evidence).expect("JSON");
    std::fs::write(folder.join("evidence.json"), record).expect("write");
    evidence.capture.packets().len()
}

fn evidence() -> Evidence {
    let mut paper = Paper::new(plan(Mode::Dsr));
    paper.canaries(1);
    for id in 0..CONNECTIONS {
        paper.tcp(id + 1, 10_000 + id as u16);
    }
    for id in 0..DATAGRAMS {
        paper.udp(CONNECTIONS + id + 1, 10_000 + id as u16);
    }
    paper.canaries(2);
    paper.finish(BTreeMap::new())
}

/// One step, timed inside its process; prints nanoseconds and the peak of memory.
#[expect(clippy::print_stdout, reason = "the parent reads it")]
fn run_step(step: &str, folder: &Path) -> ExitCode {
    let path = folder.join("flow.pcapng");
    // The rest of the evidence is read before the clock starts: what is asked is about packets.
    let mut evidence: Option<Evidence> = (step == "judge").then(|| {
        let text = std::fs::read(folder.join("evidence.json")).expect("it is there");
        serde_json::from_slice(&text).expect("JSON")
    });
    let began = Instant::now();
    if step == "walk" {
        walk(&path);
    } else {
        let input = BufReader::with_capacity(256 * 1024, File::open(&path).expect("it is there"));
        let capture = CaptureFile::read(input).expect("a capture");
        if let Some(evidence) = &mut evidence {
            evidence.capture = capture;
            evidence.prove_live();
            assert_eq!(judge(evidence).verdict, Verdict::Pass, "the run is a right one");
        }
    }
    println!("{} {}", began.elapsed().as_nanos(), peak_kib());
    ExitCode::SUCCESS
}

/// The floor: every block's header and every packet's first bytes, and nothing kept.
fn walk(path: &Path) {
    let bytes = std::fs::read(path).expect("it is there");
    let (mut at, mut sum) = (0, 0u64);
    while let Some(head) = bytes.get(at..at + 8) {
        let word = |i: usize| u32::from_ne_bytes([head[i], head[i + 1], head[i + 2], head[i + 3]]);
        if word(0) == 6 {
            sum += bytes[at + 28..].first_chunk::<54>().map_or(0, |b| u64::from(b[23]) + u64::from(b[47]));
        }
        at += word(4).max(12) as usize;
    }
    std::hint::black_box(sum);
}

fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

fn step_in_process(step: &str, folder: &Path) -> (Duration, u64) {
    let program = std::env::current_exe().expect("this program");
    let output = Command::new(program).arg(step).arg(folder).output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut words = text.split_whitespace().map(|word| word.parse::<u64>().expect("a number"));
    let (Some(nanos), Some(kib)) = (words.next(), words.next()) else {
        panic!("{step}: {}", String::from_utf8_lossy(&output.stderr));
    };
    (Duration::from_nanos(nanos), kib)
}

/// Time for [`FOR_TSHARK`] packets, of tshark printing the fields that labctl reads; `None` without tshark.
fn tshark(folder: &Path) -> Option<Duration> {
    let run = |file: &Path| {
        let began = Instant::now();
        let mut command = Command::new("tshark");
        command.args([
            "-T",
            "fields",
            "-e",
            "ip.src",
            "-e",
            "ip.dst",
            "-e",
            "ip.ttl",
            "-e",
            "tcp.seq_raw",
            "-e",
            "udp.port",
        ]);
        let output = command.arg("-r").arg(file).output().ok()?;
        output.status.success().then(|| began.elapsed())
    };
    let empty = folder.join("empty.pcapng");
    CaptureFile::default().write(File::create(&empty).ok()?, &[], &BTreeMap::new()).ok()?;
    Some(run(&folder.join("first.pcapng"))?.saturating_sub(run(&empty)?))
}

#[expect(clippy::print_stdout, reason = "the result of a benchmark")]
fn print(
    packets: usize,
    size: u64,
    mut times: BTreeMap<&str, Vec<(Duration, u64)>>,
    tshark: Option<Duration>,
) -> ExitCode {
    let mut median = |step: &str| {
        let samples = times.get_mut(step).expect("it ran");
        samples.sort_unstable();
        samples[samples.len() / 2]
    };
    let (walk, read, judged) = (median("walk"), median("read"), median("judge"));
    let flows = CONNECTIONS + DATAGRAMS;
    let _ = writeln!(
        std::io::stdout(),
        "{packets} packets of {flows} flows, {} MiB, median of {ROUNDS}",
        size >> 20
    );
    println!("{:40} {:>9} {:>11} {:>12} {:>9}", "", "ms", "ns a packet", "times walk", "peak MiB");
    for (name, (time, kib)) in [("bare walk", walk), ("read", read), ("read and judged", judged)] {
        let ns = time.as_nanos() as f64 / packets as f64;
        let times = time.as_secs_f64() / walk.0.as_secs_f64();
        println!("{name:40} {:9.1} {ns:11.0} {times:12.1} {:9}", time.as_secs_f64() * 1e3, kib >> 10);
    }
    let slower = judged.0.as_secs_f64() / walk.0.as_secs_f64();
    let memory = (judged.1 << 10) as f64 / size as f64;
    println!(
        "target: at most {MOST_TIME} times the walk ({slower:.1}), {MOST_MEMORY} times the file in memory ({memory:.1})"
    );
    if let Some(time) = tshark {
        let each = time.as_secs_f64() / FOR_TSHARK as f64;
        let ours = judged.0.as_secs_f64() / packets as f64;
        println!(
            "tshark's fields: {:.0} ns a packet, {:.0} times as long (target: 100)",
            each * 1e9,
            each / ours
        );
    }
    let met = slower <= MOST_TIME && memory <= MOST_MEMORY;
    if met || !std::env::args().any(|arg| arg == "--assert") { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
