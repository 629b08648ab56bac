//! Roles in a container through a relay: streams, their ends, the exit status. Needs Docker, no kind.

use std::fs::File;
use std::io::{Read, Write, pipe};
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use labctl_provider::Place;
use labctl_provider::relay::{RelayError, Streams, relay};

use crate::machine::{binary, can_make_clusters, docker};

const PROGRAM: &str = "/labctl";

/// A container that has labctl in it and waits. It goes with the value, and so does its image.
struct Waiting {
    name: String,
}

impl Waiting {
    fn start(name: &str) -> Self {
        let waiting = Self { name: name.to_owned() };
        waiting.remove();
        let mut import = Command::new("docker")
            .args(["import", "-", &waiting.image()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("docker runs");
        let tar = Command::new("tar")
            .args(["-C", binary().parent().expect("it is in a folder").to_str().expect("a plain path")])
            .args(["-cf", "-", "labctl"])
            .stdout(import.stdin.take().expect("a pipe"))
            .status();
        assert!(tar.is_ok_and(|status| status.success()), "no tar of the binary");
        assert!(import.wait().is_ok_and(|status| status.success()), "no image of the binary");
        let image = waiting.image();
        let run = [
            "run",
            "-d",
            "--name",
            name,
            "--network",
            "none",
            "--cap-add",
            "NET_RAW",
            "--cap-add",
            "NET_ADMIN",
        ];
        docker(&[&run[..], &[&image, PROGRAM, "node", "idle"]].concat()).expect("the container runs");
        waiting
    }

    fn image(&self) -> String {
        format!("{}:test", self.name)
    }

    fn remove(&self) {
        docker(&["rm", "-f", &self.name]);
        docker(&["rmi", "-f", &self.image()]);
    }

    fn place(&self) -> Place {
        Place::Container { name: self.name.clone(), program: PROGRAM.to_owned() }
    }

    /// How many processes with this word run in it.
    fn count(&self, word: &str) -> usize {
        let processes = docker(&["top", &self.name]).expect("the container runs");
        processes.lines().filter(|line| line.contains(word)).count()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.remove();
    }
}

/// A relay on a thread of its own, with pipes for its streams.
struct Relayed {
    stdin: Option<std::io::PipeWriter>,
    stdout: std::io::PipeReader,
    ended: JoinHandle<Result<i64, RelayError>>,
}

impl Relayed {
    fn start(place: Place, argv: &[&str]) -> Self {
        let argv: Vec<String> = argv.iter().map(|&word| word.to_owned()).collect();
        let ((far_in, stdin), (stdout, far_out)) = (pipe().expect("a pipe"), pipe().expect("a pipe"));
        let stderr = File::options().write(true).open("/dev/null").expect("/dev/null is there");
        let streams = Streams { stdin: far_in.into(), stdout: far_out.into(), stderr: stderr.into() };
        let ended = thread::spawn(move || relay(&place, &argv, streams));
        Self { stdin: Some(stdin), stdout, ended }
    }

    /// Everything that it still says, and its end.
    fn finish(mut self) -> (Vec<u8>, Result<i64, RelayError>) {
        let mut said = Vec::new();
        self.stdout.read_to_end(&mut said).expect("the pipe can be read");
        (said, self.ended.join().expect("the relay does not panic"))
    }
}

/// Types of the blocks of a pcapng stream of this machine's byte order, which must be whole.
fn blocks(stream: &[u8]) -> Vec<u32> {
    let word = |at: usize| u32::from_ne_bytes(stream[at..at + 4].try_into().expect("four bytes")) as usize;
    let (mut at, mut found) = (0, Vec::new());
    while at < stream.len() {
        found.push(word(at) as u32);
        at += word(at + 4);
    }
    assert_eq!(at, stream.len(), "the last block is cut");
    found
}

#[test]
fn a_capture_ends_with_its_stdin_and_delivers_its_counters() {
    if !can_make_clusters() {
        return;
    }
    let container = Waiting::start("labctl-t-relay-eof");
    let capture = [PROGRAM, "node", "capture", "--stop-at-eof", "-i", "lo"];
    let mut relayed = Relayed::start(container.place(), &capture);
    let mut head = [0; 64];
    relayed.stdout.read_exact(&mut head).expect("the capture begins");
    relayed.stdin = None;
    let (rest, ended) = relayed.finish();
    assert_eq!(ended.expect("docker says how it ended"), 0);
    let blocks = blocks(&[&head[..], &rest].concat());
    /// Interface statistics, the last thing that a capture says.
    const STATISTICS: u32 = 5;
    assert_eq!(blocks.last(), Some(&STATISTICS), "{blocks:?}");
}

#[test]
fn megabytes_pass_both_ways_whole() {
    if !can_make_clusters() {
        return;
    }
    const REQUESTS: usize = 10_000;
    let container = Waiting::start("labctl-t-relay-load");
    let mut relayed = Relayed::start(container.place(), &[PROGRAM, "node", "fetch"]);
    let request = |id| {
        format!(
            r#"{{"id":{id},"protocol":"tcp","remote":"127.0.0.1:9","timeout_ms":1000,"response_bytes":0,"upload_bytes":0}}"#
        )
    };
    let requests: Vec<String> = (1..=REQUESTS).map(request).collect();
    let options = format!(r#"{{"requests":[{}],"concurrency":8}}"#, requests.join(","));
    let mut stdin = relayed.stdin.take().expect("nobody took it");
    let feed = thread::spawn(move || stdin.write_all(options.as_bytes()));
    let (said, ended) = relayed.finish();
    feed.join().expect("the writer does not panic").expect("everything is read");
    assert_eq!(ended.expect("docker says how it ended"), 0, "{}", String::from_utf8_lossy(&said));
    let said = String::from_utf8(said).expect("JSON is text");
    assert_eq!(said.lines().count(), REQUESTS);
    for line in said.lines() {
        let exchange: serde_json::Value = serde_json::from_str(line).expect("whole lines");
        assert_eq!(exchange["outcome"]["result"], "failed", "nobody listens there: {line}");
    }
}

#[test]
fn a_failure_s_exit_status_and_a_missing_program_are_told() {
    if !can_make_clusters() {
        return;
    }
    let container = Waiting::start("labctl-t-relay-fail");
    let refused = Relayed::start(container.place(), &[PROGRAM, "node", "fetch", "127.0.0.1:9"]);
    assert_eq!(refused.finish().1.expect("it ran"), 1);
    let (said, ended) = Relayed::start(container.place(), &["/nowhere", "node"]).finish();
    assert!(said.is_empty(), "the runtime's words are no output: {}", String::from_utf8_lossy(&said));
    assert!(matches!(ended, Err(RelayError::NoProgram { program, .. }) if program == "/nowhere"));
    let nobody = Place::Container { name: "labctl-t-nobody".to_owned(), program: PROGRAM.to_owned() };
    let (_, ended) = Relayed::start(nobody, &[PROGRAM, "node", "idle"]).finish();
    assert!(matches!(ended, Err(RelayError::Docker { .. })));
}

#[test]
fn a_relay_that_is_killed_ends_the_role() {
    if !can_make_clusters() {
        return;
    }
    let container = Waiting::start("labctl-t-relay-kill");
    let place = serde_json::to_string(&container.place()).expect("a place is JSON");
    let mut relay: Child = Command::new(binary())
        .args([
            "node",
            "relay",
            "--to",
            &place,
            "--",
            PROGRAM,
            "node",
            "capture",
            "--stop-at-eof",
            "-i",
            "lo",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let mut head = [0; 64];
    relay.stdout.take().expect("a pipe").read_exact(&mut head).expect("the capture begins");
    assert_eq!(container.count("capture"), 1);
    relay.kill().expect("it runs");
    relay.wait().expect("it ends");
    let deadline = Instant::now() + Duration::from_secs(10);
    while container.count("capture") > 0 {
        assert!(Instant::now() < deadline, "the capture outlives its relay");
    }
}
