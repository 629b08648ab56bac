//! A machine of a test's own: a mount namespace with an empty `/run` and a network namespace with nothing but
//! loopback.
//!
//! Owns: making it, running programs and closures inside it, and looking at everything that a command could leave
//! behind there. Does not own: labs. Whatever else the real machine does meanwhile is invisible inside, so a
//! snapshot can be compared with another one to the last file. Everything in it is gone with the value.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::MutexGuard;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::turn;
use crate::verdict::text;

/// Where commands run unless a test says otherwise.
pub(crate) const WORK: &str = "/run/work";
/// For temporary files.
const TEMP: &str = "/run/temp";
/// How long the kernel and orphaned roles may take until nothing is left. Killed agents may still have
/// programs with the verifier, and a machine with two cores may be busy.
const SETTLE: Duration = Duration::from_secs(20);

/// Between two looks at what has no descriptor to wait on.
const PAUSE: Duration = Duration::from_millis(10);

/// The machine.
pub(crate) struct World {
    mounts: File,
    network: File,
    programs_before: BTreeSet<u32>,
    _turn: Option<MutexGuard<'static, ()>>,
}

impl World {
    /// A machine without a lab. Needs root.
    pub(crate) fn new() -> Self {
        Self::made(Some(turn()))
    }

    /// Another machine that shares this one's processes and nothing else, as a container may.
    pub(crate) fn beside(&self) -> Self {
        Self::made(None)
    }

    fn made(turn: Option<MutexGuard<'static, ()>>) -> Self {
        let programs_before = programs();
        let (mounts, network) = on_own_thread(|| make().expect("make a machine of the test's own"));
        Self { mounts, network, programs_before, _turn: turn }
    }

    /// As [`World::new`], with a lab like the built-in one of this name, called `lab`, up.
    pub(crate) fn with_lab(base: &str, lab: &str) -> Self {
        let world = Self::new();
        world.labctl(&["up", base, "--name", lab]).expect(0);
        world
    }

    /// Runs labctl in [`WORK`] until it ends.
    pub(crate) fn labctl(&self, args: &[&str]) -> Ran {
        Ran::of(self.command(args))
    }

    /// labctl in [`WORK`], not started yet: no terminal, no colours of the caller's.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = self.program(env!("CARGO_BIN_EXE_labctl"));
        command.args(args);
        command
    }

    /// Any program in [`WORK`], not started yet.
    pub(crate) fn program(&self, program: &str) -> Command {
        self.program_in(program, WORK)
    }

    /// labctl in another folder.
    pub(crate) fn command_in(&self, folder: &str, args: &[&str]) -> Command {
        let mut command = self.program_in(env!("CARGO_BIN_EXE_labctl"), folder);
        command.args(args);
        command
    }

    /// labctl on a kernel whose bpf(2) always says "not permitted", for it and all that it starts.
    pub(crate) fn without_bpf(&self, args: &[&str]) -> Command {
        let mut command = self.command(args);
        // SAFETY: prctl is async-signal-safe, and the filter is on the closure's own stack.
        unsafe { command.pre_exec(forbid_bpf) };
        command
    }

    fn program_in(&self, program: &str, folder: &str) -> Command {
        let folder = std::ffi::CString::new(folder).expect("no zero byte");
        let (mounts, network) = (self.mounts.as_raw_fd(), self.network.as_raw_fd());
        let mut command = Command::new(program);
        command.env("TMPDIR", TEMP).env_remove("NO_COLOR").stdin(Stdio::null());
        // SAFETY: setns and chdir are async-signal-safe, and the closure allocates nothing. The descriptors are
        // those of this world, which outlives the commands that it starts.
        unsafe {
            command.pre_exec(move || {
                let (mounts, network) = (BorrowedFd::borrow_raw(mounts), BorrowedFd::borrow_raw(network));
                setns(mounts, CloneFlags::CLONE_NEWNS)?;
                setns(network, CloneFlags::CLONE_NEWNET)?;
                // Entering a mount namespace goes to its root.
                match libc::chdir(folder.as_ptr()) {
                    0 => Ok(()),
                    _ => Err(io::Error::last_os_error()),
                }
            });
        }
        command
    }

    /// Runs `f` on a thread inside.
    pub(crate) fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        on_own_thread(|| {
            unshare(CloneFlags::CLONE_FS).expect("a root folder of the thread's own");
            setns(&self.mounts, CloneFlags::CLONE_NEWNS).expect("the mounts are there");
            setns(&self.network, CloneFlags::CLONE_NEWNET).expect("the network is there");
            f()
        })
    }

    /// Mounts a file system of 64 KiB, or a read-only one, over a folder that is made for it.
    pub(crate) fn mount_tmpfs(&self, at: &str, options: &str, flags: MsFlags) {
        self.enter(|| {
            fs::create_dir_all(at).expect("a folder");
            mount(Some("test"), at, Some("tmpfs"), flags, Some(options)).expect("mount a tmpfs");
        });
    }

    /// Every process that was started inside, by number and words.
    pub(crate) fn processes(&self) -> Vec<(u32, String)> {
        let ours = self.mounts.metadata().expect("a namespace").ino();
        let entries = fs::read_dir("/proc").expect("proc").flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let inside = |pid: &u32| fs::metadata(format!("/proc/{pid}/ns/mnt")).is_ok_and(|m| m.ino() == ours);
        pids.filter(inside).map(|pid| (pid, words(pid))).collect()
    }

    /// Processes whose words hold all of these.
    pub(crate) fn processes_like(&self, parts: &[&str]) -> Vec<(u32, String)> {
        let mut found = self.processes();
        found.retain(|(_, words)| parts.iter().all(|part| words.contains(part)));
        found
    }

    /// All that a command can leave behind, but programs.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let processes = self.processes().into_iter().map(|(pid, words)| format!("process {pid}: {words}"));
        let processes: Vec<String> = processes.collect();
        let mut things: BTreeSet<String> = self.enter(|| {
            let mut things = BTreeSet::new();
            files_below(Path::new("/run"), &mut things);
            things.extend(mount_points());
            things
        });
        things.extend(processes);
        things.extend(self.listed(&["netns", "list"]));
        things.extend(self.listed(&["-br", "link"]));
        Snapshot(things)
    }

    fn listed(&self, args: &[&str]) -> Vec<String> {
        let output = self.program("ip").args(args).output().expect("ip from iproute2 runs");
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        text.lines().map(|line| format!("ip {}: {}", args.join(" "), line.trim())).collect()
    }

    /// Waits until the machine is as it was, to the last process, mount, link, file and program.
    #[track_caller]
    pub(crate) fn expect_as(&self, before: &Snapshot, after_what: &str) {
        let outcome = eventually(|| match self.snapshot().beyond(before) {
            more if more.is_empty() => Ok(()),
            more => Err(more.join("\n  ")),
        });
        if let Err(more) = outcome {
            panic!("{after_what} left behind:\n  {more}");
        }
        self.expect_no_program(after_what);
    }

    /// As [`World::expect_as`] while a lab is up: without programs, and without the files below some folders.
    #[track_caller]
    pub(crate) fn expect_as_but(&self, before: &Snapshot, after_what: &str, but: &[&str]) {
        let outcome = eventually(|| {
            let mut more = self.snapshot().beyond(before);
            more.retain(|thing| !but.iter().any(|folder| thing.contains(&format!("file {folder}"))));
            if more.is_empty() { Ok(()) } else { Err(more.join("\n  ")) }
        });
        outcome.unwrap_or_else(|more| panic!("{after_what} left behind:\n  {more}"));
    }

    /// Numbers of the BPF programs that were loaded since the world was made.
    pub(crate) fn new_programs(&self) -> BTreeSet<u32> {
        programs().difference(&self.programs_before).copied().collect()
    }

    /// Waits until every program that was loaded since the world was made is gone. Programs have no namespace:
    /// when the real machine has labs of its own, they cannot be told apart.
    #[track_caller]
    fn expect_no_program(&self, after_what: &str) {
        let mut suspects = self.new_programs();
        let gone = eventually(|| {
            let now = programs();
            suspects.retain(|id| now.contains(id));
            if suspects.is_empty() { Ok(()) } else { Err(format!("{suspects:?}")) }
        });
        if let Err(ids) = gone {
            let others = fs::read_dir("/run/labctl").map_or(0, Iterator::count);
            assert!(others > 0, "{after_what} left these BPF programs behind: {ids}");
            let _ = writeln!(io::stderr(), "SKIPPED programs: {others} other labs are up on this machine");
        }
    }
}

impl Drop for World {
    /// Ends what a failed test left running; the rest goes with the namespaces.
    fn drop(&mut self) {
        for (pid, _) in self.processes() {
            // A number can only be another process's by now if the first one has ended by itself.
            let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
        }
    }
}

/// A finished labctl.
pub(crate) struct Ran {
    /// Its exit code, `None` after a signal.
    pub(crate) code: Option<i32>,
    /// Results.
    pub(crate) out: String,
    /// Talk.
    pub(crate) err: String,
}

impl Ran {
    /// Runs a command to its end.
    pub(crate) fn of(mut command: Command) -> Self {
        Self::from(command.output().expect("the command starts"))
    }

    /// Demands an exit code.
    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self}");
        self
    }

    /// Demands that the talk holds each of these.
    #[track_caller]
    pub(crate) fn says(self, parts: &[&str]) -> Self {
        for part in parts {
            assert!(self.err.contains(part), "nothing of {part:?} in\n{self}");
        }
        self
    }

    /// The result as JSON, which must be all that there is on stdout.
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error} in\n{self}"))
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let ran = Self {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        };
        assert!(!ran.err.contains("panicked at"), "labctl panicked:\n{}", text(&output));
        ran
    }
}

impl fmt::Display for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { code, out, err } = self;
        write!(f, "exit code {code:?}\n--- stdout\n{out}\n--- stderr\n{err}")
    }
}

/// What a machine had at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot(BTreeSet<String>);

impl Snapshot {
    /// What differs, each with its sign.
    pub(crate) fn beyond(&self, before: &Self) -> Vec<String> {
        let more = self.0.difference(&before.0).map(|thing| format!("+ {thing}"));
        let less = before.0.difference(&self.0).map(|thing| format!("- {thing}"));
        more.chain(less).collect()
    }
}

/// A child that a signal will hit.
pub(crate) struct Victim(Child);

impl Victim {
    /// Starts the command; its output is kept for [`Victim::end`].
    pub(crate) fn start(mut command: Command) -> Self {
        Self(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the command starts"))
    }

    /// Sends the signal when this much time has passed, at once if the child has ended by then. Returns
    /// whether it was still running.
    pub(crate) fn strike_after(&self, time: Duration, signal: Signal) -> bool {
        let runs = !self.ended_within(time);
        let _ = kill(Pid::from_raw(self.0.id() as i32), signal);
        runs
    }

    /// Whether the child ends by itself within this time.
    fn ended_within(&self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        // SAFETY: the call takes two integers; the child is not reaped yet, so its number is its own.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, self.0.id() as libc::pid_t, 0) };
        assert!(fd >= 0, "pidfd_open: {}", io::Error::last_os_error());
        // SAFETY: the kernel has just made this descriptor and nobody else knows it.
        let process = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let limit = PollTimeout::try_from(left.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)], limit) {
                Ok(0) if left.is_zero() || Instant::now() >= deadline => return false,
                Ok(0) | Err(nix::Error::EINTR) => {}
                Ok(_) => return true,
                Err(error) => panic!("poll: {error}"),
            }
        }
    }

    /// Waits until the child has said this on stderr, which has the moments of a command.
    pub(crate) fn heard(&mut self, part: &str) {
        let stderr = self.0.stderr.as_mut().expect("a pipe");
        let (mut said, mut byte) = (Vec::new(), [0u8]);
        while !String::from_utf8_lossy(&said).contains(part) {
            let n = stderr.read(&mut byte).expect("the pipe can be read");
            assert!(n == 1, "it ended without {part:?}: {}", String::from_utf8_lossy(&said));
            said.push(byte[0]);
        }
    }

    /// Waits for its end.
    pub(crate) fn end(self) -> Ran {
        self.0.wait_with_output().expect("it ends").into()
    }
}

/// Moments that differ from run to run: xorshift over the clock. Printed by whoever uses them.
pub(crate) struct Moments(u64);

impl Moments {
    /// Seeded by the clock.
    pub(crate) fn new() -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self(now.as_nanos() as u64 | 1)
    }

    /// Some time between nothing and `most`.
    pub(crate) fn before(&mut self, most: Duration) -> Duration {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        Duration::from_micros(self.0 % (most.as_micros() as u64).max(1))
    }
}

/// Asks until it is so; the last answer if it never is.
pub(crate) fn eventually<T>(mut ask: impl FnMut() -> Result<T, String>) -> Result<T, String> {
    let deadline = Instant::now() + SETTLE;
    loop {
        match ask() {
            Err(_) if Instant::now() < deadline => std::thread::park_timeout(PAUSE),
            answer => return answer,
        }
    }
}

fn on_own_thread<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| match scope.spawn(f).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Makes the calling thread's namespaces those of a new machine.
fn make() -> io::Result<(File, File)> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    // The copies of the real machine's mounts would keep its namespaces and programs alive.
    let mut copies = mounted_at()?;
    copies.retain(|path| path.starts_with("/run/"));
    for path in copies.iter().rev() {
        umount2(path, MntFlags::MNT_DETACH)?;
    }
    mount(Some("test"), "/run", Some("tmpfs"), MsFlags::empty(), Some("mode=0755"))?;
    fs::create_dir(WORK)?;
    fs::create_dir(TEMP)?;
    Ok((File::open("/proc/thread-self/ns/mnt")?, File::open("/proc/thread-self/ns/net")?))
}

/// Mount points in the order of mounting.
fn mounted_at() -> io::Result<Vec<PathBuf>> {
    let text = fs::read_to_string("/proc/thread-self/mountinfo")?;
    Ok(text.lines().filter_map(|line| line.split(' ').nth(4).map(PathBuf::from)).collect())
}

fn mount_points() -> Vec<String> {
    let points = mounted_at().expect("mountinfo");
    // Numbered, so that a second mount on the same folder shows too.
    let numbered = points.iter().enumerate().map(|(at, path)| {
        let earlier = points[..at].iter().filter(|other| *other == path).count();
        format!("mount {} {earlier}", path.display())
    });
    numbered.collect()
}

fn files_below(folder: &Path, things: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        things.insert(format!("file {}", path.display()));
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            files_below(&path, things);
        }
    }
}

fn words(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ").trim().to_owned()
}

/// Makes bpf(2) fail with EPERM from here on, across exec (seccomp(2)).
fn forbid_bpf() -> io::Result<()> {
    let instruction = |code: u32, jf, k| libc::sock_filter { code: code as u16, jt: 0, jf, k };
    let mut program = [
        // The number of the system call is the first word of `seccomp_data`.
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, libc::SYS_bpf as u32),
        instruction(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        instruction(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the filter and its program live through the call, which copies them.
    let set = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &filter) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Numbers of every BPF program of the kernel.
fn programs() -> BTreeSet<u32> {
    aya::programs::loaded_programs().flatten().map(|program| program.id()).collect()
}
