//! An independent witness: the real tcpdump, and tshark over what it wrote.
//!
//! Owns: starting and ending tcpdump without losing a packet, counting with its own filters. Does not own: any
//! use of labctl's capture code; these tests must not believe it.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long tcpdump may take for anything.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks at its counters.
const PAUSE: Duration = Duration::from_millis(20);

/// A tcpdump that runs.
pub(crate) struct Tcpdump {
    child: Child,
    said: Receiver<String>,
    file: PathBuf,
}

/// What it wrote.
#[derive(Clone, Debug)]
pub(crate) struct Pcap {
    file: PathBuf,
    /// Packets in it.
    pub(crate) packets: u64,
}

/// Its counters: packets written, packets that its filter took, packets that the kernel dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counters {
    captured: u64,
    received: u64,
    dropped: u64,
}

impl Tcpdump {
    /// Starts it on an interface and returns when it listens. `tcpdump` is the program without arguments: plain, or
    /// behind `ip netns exec`, which becomes the program that it starts.
    pub(crate) fn start(mut tcpdump: Command, interface: &str, file: PathBuf, filter: &str) -> Self {
        let mut child = tcpdump
            // 64 MiB: a download of 10 MiB in whole packets fits twice.
            .args(["-i", interface, "--immediate-mode", "-U", "-n", "-B", "65536", "-Z", "root", "-w"])
            .arg(&file)
            .args(filter.split_ascii_whitespace())
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("tcpdump is installed");
        let stderr = child.stderr.take().expect("it was piped");
        let (send, said) = channel();
        // Ends with tcpdump's stderr.
        std::thread::spawn(move || {
            BufReader::new(stderr).lines().map_while(Result::ok).try_for_each(|line| send.send(line))
        });
        let watch = Self { child, said, file };
        watch.wait_for("listening on");
        watch
    }

    /// Waits until it has written every packet that its filter took, ends it, reads its last word.
    pub(crate) fn stop(mut self) -> Pcap {
        let deadline = Instant::now() + PATIENCE;
        let mut before = None;
        loop {
            let now = self.counters();
            if now.captured == now.received && before == Some(now) {
                break;
            }
            assert!(Instant::now() < deadline, "tcpdump never caught up: {now:?}");
            before = Some(now);
            self.pause();
        }
        self.signal(Signal::SIGINT);
        let status = self.child.wait().expect("tcpdump is ours");
        assert!(status.success(), "tcpdump ended with {status}");
        let counters = before.expect("the loop has looked at least twice");
        assert_eq!(counters.dropped, 0, "the kernel dropped packets of the witness");
        Pcap { file: self.file.clone(), packets: counters.captured }
    }

    /// A condition that nothing announces: looks at it again after a moment.
    fn pause(&self) {
        match self.said.recv_timeout(PAUSE) {
            Err(RecvTimeoutError::Disconnected) => panic!("tcpdump ended by itself"),
            Ok(_) | Err(RecvTimeoutError::Timeout) => {}
        }
    }

    fn counters(&self) -> Counters {
        self.signal(Signal::SIGUSR1);
        let line = self.wait_for(" captured, ");
        let mut numbers = line.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok());
        let mut next = || numbers.next().unwrap_or_else(|| panic!("three numbers in {line:?}"));
        Counters { captured: next(), received: next(), dropped: next() }
    }

    fn wait_for(&self, words: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut heard = Vec::new();
        loop {
            match self.said.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains(words) => return line,
                Ok(line) => heard.push(line),
                Err(error) => panic!("tcpdump never said {words:?} ({error}); it said {heard:?}"),
            }
        }
    }

    fn signal(&self, signal: Signal) {
        // The child is tcpdump itself, whatever started it.
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).expect("tcpdump runs");
    }
}

impl Drop for Tcpdump {
    fn drop(&mut self) {
        // Only a test that panics comes here with a running one.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What tshark found in a capture with every checksum computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Analysis {
    /// IPv4 packets.
    pub(crate) packets: u32,
    /// IPv4 header, TCP and UDP checksums that are right.
    pub(crate) right: u32,
    /// The same, wrong.
    pub(crate) wrong: u32,
    /// TCP segments with RST.
    pub(crate) resets: u32,
    /// TCP segments that were sent before.
    pub(crate) retransmissions: u32,
}

impl Pcap {
    /// How many packets a tcpdump filter takes.
    pub(crate) fn count(&self, filter: &str) -> usize {
        self.lines(filter, &[]).len()
    }

    /// The packets that a filter takes, one line each.
    pub(crate) fn lines(&self, filter: &str, flags: &[&str]) -> Vec<String> {
        let output = Command::new("tcpdump")
            .args(["-n", "-t"])
            .args(flags)
            .arg("-r")
            .arg(&self.file)
            .args(filter.split_ascii_whitespace())
            .output()
            .expect("tcpdump is installed");
        assert!(output.status.success(), "tcpdump -r: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
    }

    /// The bytes of each packet that a filter takes, in hexadecimal, from the Ethernet header on.
    pub(crate) fn hex(&self, filter: &str) -> Vec<String> {
        let mut packets: Vec<String> = Vec::new();
        for line in self.lines(filter, &["-xx"]) {
            match line.trim_start().strip_prefix("0x") {
                Some(row) => {
                    let bytes = row.split_once(':').map_or("", |(_, bytes)| bytes);
                    let packet = packets.last_mut().expect("a packet's line comes before its bytes");
                    packet.extend(bytes.chars().filter(char::is_ascii_hexdigit));
                }
                None => packets.push(String::new()),
            }
        }
        packets
    }

    /// Lets tshark compute every checksum and follow every TCP stream.
    pub(crate) fn analyse(&self) -> Analysis {
        let mut analysis = Analysis::default();
        let fields = [
            "ip.version",
            "ip.checksum.status",
            "tcp.checksum.status",
            "udp.checksum.status",
            "tcp.checksum",
            "tcp.checksum_calculated",
            "tcp.flags.reset",
            "tcp.analysis.retransmission",
        ];
        for line in tshark(&self.file, &fields) {
            let fields: Vec<&str> = line.split('\t').collect();
            let [version, ip, tcp, udp, sum, expected, reset, retransmission] = fields[..] else {
                panic!("eight fields in {line:?}");
            };
            if version.is_empty() {
                continue;
            }
            analysis.packets += 1;
            // Linux writes a computed zero as ffff in TCP too (`skb_checksum_help`). That is the same number in one's
            // complement and every receiver takes it; tshark does not.
            let tcp = if (sum, expected) == ("0xffff", "0x0000") { "1" } else { tcp };
            // "0" is bad, "1" good; a quoted packet in an ICMP error adds values after commas.
            for status in [ip, tcp, udp].into_iter().flat_map(|s| s.split(',')) {
                analysis.right += u32::from(status == "1");
                analysis.wrong += u32::from(status == "0");
            }
            analysis.resets += u32::from(reset == "1");
            analysis.retransmissions += u32::from(!retransmission.is_empty());
        }
        analysis
    }
}

/// Fields of every packet of a capture file, by tshark, separated by tabs.
pub(crate) fn tshark(file: &std::path::Path, fields: &[&str]) -> Vec<String> {
    let mut command = Command::new("tshark");
    command.arg("-n").arg("-r").arg(file).args(["-T", "fields"]);
    for option in ["ip.check_checksum", "tcp.check_checksum", "udp.check_checksum"] {
        command.args(["-o", &format!("{option}:TRUE")]);
    }
    for field in fields {
        command.args(["-e", field]);
    }
    let output = command.output().expect("tshark is installed");
    assert!(output.status.success(), "tshark: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}
