//! Captures in fresh network namespaces: nothing is lost at the stop, and what is captured is what was sent.
//!
//! Needs root (to make namespaces) and iproute2; the comparison needs tcpdump. What cannot run says why.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use labctl_node::capture::{
    Capture, CaptureError, CaptureOptions, CaptureSummary, CapturedPacket, Stop, StopHandle, StopReason,
};
use labctl_wire::{CaptureFile, Direction, HostKind};
use nix::sched::{CloneFlags, unshare};
use socket2::{Domain, Socket, Type};

/// UDP port of the test's packets.
const PORT: u16 = 9999;

/// Runs `body` on a thread in a namespace of its own with a veth pair: `left` sends to 10.0.0.2, which is said
/// to live behind `right`.
fn in_namespace(body: impl FnOnce() + Send + 'static) {
    if let Some(why) = unfit() {
        return skip(&why);
    }
    let inside = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("root may make a namespace");
        for line in [
            "link set lo up",
            "link add left type veth peer name right",
            "link set left up",
            "link set right up",
            "address add 10.0.0.1/24 dev left",
            "neighbour add 10.0.0.2 lladdr 02:00:00:00:00:02 dev left nud permanent",
        ] {
            ip(line);
        }
        await_carrier("left");
        body();
    });
    inside.join().expect("the test in the namespace passes");
}

#[expect(clippy::print_stderr, reason = "a skipped test says why")]
fn skip(why: &str) {
    eprintln!("skipped: {why}");
}

fn unfit() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("not root".into());
    }
    Command::new("ip").arg("-V").output().err().map(|e| format!("no ip (iproute2): {e}"))
}

fn ip(line: &str) {
    let output = Command::new("ip").args(line.split(' ')).output().expect("ip was there a moment ago");
    assert!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The kernel turns a link's queue on some time after both ends are up; until then it drops what is sent.
fn await_carrier(interface: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let output = Command::new("ip").args(["-o", "link", "show", interface]).output().expect("ip runs");
        if String::from_utf8_lossy(&output.stdout).contains("state UP") {
            return;
        }
        assert!(Instant::now() < deadline, "{interface} is not up after 10 s");
    }
}

fn options(interface: &str, filter: &str) -> CaptureOptions {
    CaptureOptions {
        interfaces: vec![interface.into()],
        filter: filter.into(),
        ..CaptureOptions::new("worker", HostKind::Node)
    }
}

fn udp() -> CaptureOptions {
    options("right", &format!("udp port {PORT}"))
}

/// A captured packet that outlives the ring.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Kept {
    point: usize,
    ts_ns: u64,
    original_len: u32,
    data: Vec<u8>,
    direction: Direction,
}

/// A capture on a thread of its own, already ready.
struct Running {
    stop: StopHandle,
    thread: std::thread::JoinHandle<(CaptureSummary, Vec<Kept>)>,
}

impl Running {
    fn start(options: &CaptureOptions) -> Self {
        let capture = Capture::open(options).expect("the capture begins");
        let mut stop = Stop::by_handle().expect("a descriptor");
        let handle = stop.handle();
        let thread = std::thread::spawn(move || {
            let mut kept = Vec::new();
            let mut sink = |p: &CapturedPacket<'_>| {
                let CapturedPacket { point, ts_ns, original_len, direction, .. } = *p;
                kept.push(Kept { point, ts_ns, original_len, data: p.data.to_vec(), direction });
                Ok(())
            };
            let summary = capture.run(&mut stop, &mut sink).expect("the capture ends well");
            (summary, kept)
        });
        Self { stop: handle, thread }
    }

    fn stop(self) -> (CaptureSummary, Vec<Kept>) {
        self.stop.stop();
        self.wait()
    }

    fn wait(self) -> (CaptureSummary, Vec<Kept>) {
        self.thread.join().expect("the capture does not panic")
    }
}

fn sender() -> UdpSocket {
    let socket = UdpSocket::bind("10.0.0.1:0").expect("left has this address");
    socket.connect(("10.0.0.2", PORT)).expect("left leads there");
    socket
}

fn send(count: usize, size: usize) {
    let socket = sender();
    for number in 0..count {
        let mut payload = vec![0; size];
        payload[..4].copy_from_slice(&(number as u32).to_be_bytes());
        assert_eq!(socket.send(&payload).expect("veth takes it"), size);
    }
}

/// The numbers that [`send`] wrote, in the order of capture.
fn numbers(packets: &[Kept]) -> Vec<u32> {
    const PAYLOAD: usize = 14 + 20 + 8;
    let number = |p: &Kept| u32::from_be_bytes(p.data[PAYLOAD..PAYLOAD + 4].try_into().expect("four bytes"));
    packets.iter().map(number).collect()
}

#[test]
fn nothing_is_lost_when_stopped_at_once() {
    in_namespace(|| {
        for _ in 0..12 {
            let capture = Running::start(&udp());
            send(200, 64);
            let asked = Instant::now();
            let (summary, packets) = capture.stop();
            assert!(asked.elapsed() < Duration::from_millis(500), "stopping took {:?}", asked.elapsed());
            assert_eq!(numbers(&packets), (0..200).collect::<Vec<_>>());
            let point = &summary.points[0];
            assert_eq!((point.received, point.dropped, point.captured), (200, 0, 200));
            assert_eq!(summary.stopped_by, StopReason::Asked);
        }
    });
}

#[test]
fn a_file_holds_every_packet_with_its_point_and_counters() {
    in_namespace(|| {
        for _ in 0..12 {
            let options = CaptureOptions { interfaces: Vec::new(), ..udp() };
            let capture = Capture::open(&options).expect("the capture begins");
            let ready = capture.ready();
            assert_eq!(ready.skipped, Vec::<String>::new());
            let names: Vec<_> = ready.points.iter().map(|p| p.interface.clone()).collect();
            assert_eq!(names.len(), 3, "{names:?}");
            let mut stop = Stop::by_handle().expect("a descriptor");
            let mut file = Vec::new();
            let mut recorder = capture.recorder(&mut file).expect("memory takes it");
            send(200, 64);
            stop.handle().stop();
            capture.run(&mut stop, &mut recorder).expect("the capture ends well");
            drop(recorder);
            let read = CaptureFile::read(file.as_slice()).expect("our own file");
            for (index, point) in read.points.iter().enumerate() {
                let here: Vec<_> = read.packets().iter().filter(|p| p.point == index).collect();
                let (count, direction) = match point.point.interface.as_str() {
                    "left" => (200, Direction::Out),
                    "right" => (200, Direction::In),
                    _ => (0, Direction::Unknown),
                };
                assert_eq!((here.len(), point.dropped), (count, Some(0)), "{}", point.point);
                assert_eq!(point.received, Some(count as u64));
                assert!(here.iter().all(|p| p.direction == direction));
                assert!(point.mac.is_some());
            }
            assert!(read.packets().windows(2).all(|w| w[0].ts_ns <= w[1].ts_ns), "packets are in order");
        }
    });
}

#[test]
fn time_stamps_are_the_clock_of_the_host() {
    in_namespace(|| {
        let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        let capture = Running::start(&udp());
        let before = now().as_nanos() as u64;
        send(50, 64);
        let after = now().as_nanos() as u64;
        let (_, packets) = capture.stop();
        assert_eq!(packets.len(), 50);
        assert!(packets.iter().all(|p| (before..=after).contains(&p.ts_ns)));
        let distinct: std::collections::HashSet<_> = packets.iter().map(|p| p.ts_ns).collect();
        assert!(distinct.len() > 40, "nanoseconds tell packets apart");
    });
}

/// Sends frames as they are.
struct RawSocket(Socket);

impl RawSocket {
    fn open(interface: &str) -> Self {
        let socket = Socket::new(Domain::PACKET, Type::RAW, None).expect("root may open a packet socket");
        let index = nix::net::if_::if_nametoindex(interface).expect("the interface is there");
        // SAFETY: `sockaddr_ll` is plain data, fits into the storage, and its size is what is reported.
        let ((), address) = unsafe {
            socket2::SockAddr::try_init(|storage, len| {
                let mut address: libc::sockaddr_ll = std::mem::zeroed();
                address.sll_family = libc::AF_PACKET as u16;
                address.sll_ifindex = index as i32;
                storage.cast::<libc::sockaddr_ll>().write(address);
                *len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
                Ok(())
            })
        }
        .expect("a link address");
        socket.bind(&address).expect("the interface is up");
        Self(socket)
    }

    fn send(&self, frame: &[u8]) {
        assert_eq!(self.0.send(frame).expect("veth takes it"), frame.len());
    }
}

/// A UDP packet with a VLAN tag in its frame; the kernel takes the tag out where the frame arrives.
fn tagged(id: u16, size: usize) -> Vec<u8> {
    let builder = etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
        .ipv4([10, 0, 5, 1], [10, 0, 5, 2], 64)
        .udp(40_000, PORT);
    let mut frame = Vec::new();
    builder.write(&mut frame, &vec![5; size]).expect("memory takes it");
    let tag = [[0x81, 0], id.to_be_bytes()].concat();
    frame.splice(12..12, tag);
    frame
}

/// Frames of a classic pcap file of this machine's byte order.
fn pcap_frames(file: &[u8]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let mut rest = &file[24..];
    while rest.len() >= 16 {
        let len = u32::from_ne_bytes(rest[8..12].try_into().expect("four bytes")) as usize;
        frames.push(rest[16..16 + len].to_vec());
        rest = &rest[16 + len..];
    }
    frames
}

#[test]
fn tcpdump_sees_the_same_bytes() {
    in_namespace(|| {
        if Command::new("tcpdump").arg("--version").output().is_err() {
            return skip("no tcpdump");
        }
        let raw = RawSocket::open("left");
        for filter in ["udp", "udp or (vlan and udp)", "vlan 5 and udp port 9999", "udp and not vlan"] {
            let mut witness = Command::new("tcpdump")
                .args(["--immediate-mode", "-U", "-p", "-i", "right", "-w", "-", filter])
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("tcpdump starts");
            let mut talk = BufReader::new(witness.stderr.take().expect("piped"));
            let mut line = String::new();
            while !line.contains("listening on") {
                line.clear();
                assert_ne!(talk.read_line(&mut line).expect("tcpdump talks"), 0, "tcpdump ended");
            }
            let capture = Running::start(&options("right", filter));
            for size in [0, 1, 100, 1400] {
                sender().send(&vec![7; size]).expect("veth takes it");
                for id in [5, 0x2007] {
                    raw.send(&tagged(id, size));
                }
            }
            let (_, packets) = capture.stop();
            let pid = nix::unistd::Pid::from_raw(witness.id() as i32);
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("our own child");
            let mut file = Vec::new();
            witness.stdout.take().expect("piped").read_to_end(&mut file).expect("tcpdump writes");
            witness.wait().expect("our own child");
            let ours: Vec<_> = packets.iter().map(|p| p.data.clone()).collect();
            assert_eq!(ours, pcap_frames(&file), "{filter}");
            assert!(!ours.is_empty(), "{filter}");
            let tags = ours.iter().filter(|f| f[12..14] == [0x81, 0]).count();
            assert_eq!(tags > 0, !filter.contains("not vlan"), "{filter}");
            assert!(packets.iter().all(|p| p.original_len as usize == p.data.len()));
        }
    });
}

#[test]
fn snap_length_cuts_and_remembers() {
    in_namespace(|| {
        let capture = Running::start(&CaptureOptions { snaplen: 60, ..udp() });
        send(20, 1000);
        let (_, packets) = capture.stop();
        assert_eq!(packets.len(), 20);
        assert!(packets.iter().all(|p| p.data.len() == 60 && p.original_len == 14 + 20 + 8 + 1000));
    });
}

#[test]
fn count_and_duration_end_a_capture() {
    in_namespace(|| {
        let capture = Running::start(&CaptureOptions { count: Some(50), ..udp() });
        send(200, 64);
        let (summary, packets) = capture.wait();
        assert_eq!((summary.stopped_by, packets.len()), (StopReason::Count, 50));
        let begun = Instant::now();
        let capture = Running::start(&CaptureOptions { duration_ms: Some(300), ..udp() });
        send(10, 64);
        let (summary, packets) = capture.wait();
        assert_eq!((summary.stopped_by, packets.len()), (StopReason::Duration, 10));
        assert!((300..3000).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    });
}

#[test]
fn segmentation_offload_packets_are_whole() {
    in_namespace(|| {
        const SIZE: usize = 8 << 20;
        let listener = TcpListener::bind("127.0.0.1:0").expect("lo is up");
        let address = listener.local_addr().expect("bound");
        let filter = format!("tcp src port {}", address.port());
        let capture = Running::start(&options("lo", &filter));
        let serve = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("the client connects");
            stream.write_all(&vec![9; SIZE]).expect("the client reads");
        });
        let mut received = Vec::new();
        TcpStream::connect(address).expect("lo is up").read_to_end(&mut received).expect("the server writes");
        serve.join().expect("the server is well");
        let (summary, packets) = capture.stop();
        assert_eq!(summary.points[0].dropped, 0);
        assert!(packets.iter().all(|p| p.data.len() == p.original_len as usize));
        assert!(packets.iter().any(|p| p.original_len > 32 * 1024), "lo sends segments of 64 KiB");
        // TCP may send a byte twice on a busy machine, but not every byte.
        let header = |p: &Kept| 14 + 20 + usize::from(p.data[14 + 20 + 12] >> 4) * 4;
        let sequence = |p: &Kept| u32::from_be_bytes(p.data[38..42].try_into().expect("four bytes"));
        let first = sequence(&packets[0]).wrapping_add(1);
        let mut ranges: Vec<(usize, usize)> = packets[1..]
            .iter()
            .map(|p| (sequence(p).wrapping_sub(first) as usize, p.data.len() - header(p)))
            .filter(|(_, len)| *len > 0)
            .collect();
        let carried: usize = ranges.iter().map(|(_, len)| len).sum();
        assert!(carried < SIZE * 3 / 2, "lo's frames are not doubled: {carried}");
        ranges.sort_unstable();
        let end = ranges.iter().fold(0, |end, (from, len)| {
            assert!(*from <= end, "bytes {end} to {from} were not captured");
            end.max(from + len)
        });
        assert_eq!(end, SIZE);
    });
}

#[test]
fn what_finds_no_room_is_counted() {
    in_namespace(|| {
        let capture = Capture::open(&udp()).expect("the capture begins");
        send(20_000, 1400);
        let mut stop = Stop::by_handle().expect("a descriptor");
        stop.handle().stop();
        let mut captured = 0;
        let mut sink = |_: &CapturedPacket<'_>| {
            captured += 1;
            Ok(())
        };
        let summary = capture.run(&mut stop, &mut sink).expect("the capture ends well");
        let point = &summary.points[0];
        assert_eq!(point.received, 20_000);
        assert!(point.dropped > 0, "16 MiB do not hold 28 MB");
        assert_eq!(point.received - point.dropped, captured);
    });
}

#[test]
fn many_interfaces_stay_within_memory() {
    in_namespace(|| {
        for number in 0..40 {
            ip(&format!("link add x{number} up type veth peer name y{number}"));
            ip(&format!("link set y{number} up"));
        }
        let before = resident();
        let capture = Capture::open(&CaptureOptions { interfaces: Vec::new(), ..udp() }).expect("it begins");
        assert_eq!(capture.ready().points.len(), 83);
        send(200, 1000);
        let mut stop = Stop::by_handle().expect("a descriptor");
        stop.handle().stop();
        let summary = capture.run(&mut stop, &mut |_: &CapturedPacket<'_>| Ok(())).expect("it ends well");
        let grown = resident().saturating_sub(before);
        assert_eq!(summary.points.iter().map(|p| p.captured).sum::<u64>(), 400);
        assert!(grown < 40 << 20, "{grown} bytes more");
    });
}

/// Peak resident memory of this process, bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).expect("VmHWM");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib * 1024
}

#[test]
fn an_interface_that_vanishes_ends_the_capture() {
    in_namespace(|| {
        let capture = Running::start(&udp());
        send(30, 64);
        ip("link del left");
        let (summary, packets) = capture.wait();
        assert_eq!((summary.stopped_by, packets.len()), (StopReason::InterfacesGone, 30));
        assert!(summary.points[0].interrupted);
    });
}

#[test]
fn an_interface_that_comes_back_is_captured_again() {
    in_namespace(|| {
        let capture = Running::start(&udp());
        send(10, 64);
        ip("link set right down");
        ip("link set right up");
        await_carrier("left");
        send(10, 64);
        let (summary, packets) = capture.stop();
        assert_eq!((summary.stopped_by, packets.len()), (StopReason::Asked, 20));
        assert!(summary.points[0].interrupted);
    });
}

#[test]
fn a_signal_stops_a_capture() {
    in_namespace(|| {
        let mut stop = Stop::by_signals(false).expect("signals can be waited for");
        let capture = Capture::open(&udp()).expect("the capture begins");
        send(5, 64);
        // Goes to this thread alone, where it is blocked.
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGTERM).expect("a signal");
        let summary = capture.run(&mut stop, &mut |_: &CapturedPacket<'_>| Ok(())).expect("it ends well");
        assert_eq!((summary.stopped_by, summary.points[0].captured), (StopReason::Asked, 5));
    });
}

#[test]
fn a_reader_that_goes_away_ends_the_capture_in_peace() {
    in_namespace(|| {
        let capture = Capture::open(&udp()).expect("the capture begins");
        send(5, 64);
        let mut stop = Stop::by_handle().expect("a descriptor");
        let mut sink = |_: &CapturedPacket<'_>| Err(std::io::ErrorKind::BrokenPipe.into());
        let summary = capture.run(&mut stop, &mut sink).expect("it ends well");
        assert_eq!(summary.stopped_by, StopReason::OutputClosed);
    });
}

#[test]
fn what_cannot_be_captured_is_named() {
    in_namespace(|| {
        let error = |options: &CaptureOptions| Capture::open(options).expect_err("this cannot be captured");
        let missing = error(&options("eth7", ""));
        assert_eq!(missing.to_string(), "there is no interface eth7; there are: lo, right, left");
        ip("link set right down");
        assert!(matches!(error(&options("right", "")), CaptureError::Down { name } if name == "right"));
        assert!(error(&options("left", "tcp prot 80")).to_string().contains("at character 5"));
        let all = Capture::open(&CaptureOptions::new("worker", HostKind::Node)).expect("left and lo are up");
        assert_eq!(all.ready().skipped, ["right"]);
        let tun = Command::new("ip").args(["tuntap", "add", "tun1", "mode", "tun"]).output();
        if !tun.is_ok_and(|o| o.status.success()) {
            return skip("the part about link types: this kernel has no tun device");
        }
        ip("link set tun1 up");
        assert!(matches!(error(&options("tun1", "")), CaptureError::LinkType { name, .. } if name == "tun1"));
    });
}
