//! A lab of a test's own: its name, its working folder, and its end.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use nix::fcntl::{Flock, FlockArg};
use tempfile::TempDir;

use crate::tcpdump::Tcpdump;
use crate::verdict::{Verdict, text};

/// End-to-end tests take turns: they measure packets, and two cores are not many.
static TURN: Mutex<()> = Mutex::new(());

/// Held by one test process at a time, until it ends: `gc` in one would end the labs of another, whose state it
/// cannot see. A lock on the package's folder leaves no file behind.
static MACHINE: LazyLock<Flock<File>> = LazyLock::new(|| {
    let folder = File::open(env!("CARGO_MANIFEST_DIR")).expect("the package is there");
    Flock::lock(folder, FlockArg::LockExclusive).expect("flock(2) waits for its turn")
});

/// Waits until no other test runs.
pub(crate) fn turn() -> MutexGuard<'static, ()> {
    LazyLock::force(&MACHINE);
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells the labs of one test process apart.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// One lab, up or not.
pub(crate) struct Lab {
    pub(crate) name: String,
    folder: TempDir,
    file: PathBuf,
    mutation: Option<u32>,
    _turn: MutexGuard<'static, ()>,
}

impl Lab {
    /// A lab like the built-in `base` (dsr, snat, hybrid, local) with a name of its own, its file changed
    /// by `edit`. Not up yet.
    pub(crate) fn new(base: &str, edit: impl FnOnce(String) -> String) -> Self {
        let turn = turn();
        let name = format!("t{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = tempfile::Builder::new().prefix("labctl-e2e-").tempdir().expect("a folder");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../labs/{base}.yaml"));
        let text = std::fs::read_to_string(source).expect("the lab file is there");
        let text = text.replace(&format!("name: {base}\n"), &format!("name: {name}\n"));
        let file = folder.path().join("lab.yaml");
        std::fs::write(&file, edit(text)).expect("write the lab file");
        Self { name, folder, file, mutation: None, _turn: turn }
    }

    /// As [`Lab::new`] without changes, and up.
    pub(crate) fn up(base: &str) -> Self {
        let lab = Self::new(base, |text| text);
        lab.bring_up();
        lab
    }

    /// Makes the datapath misbehave: a number of `datapath_types::Mutation`.
    pub(crate) fn mutated(mut self, mutation: u32) -> Self {
        self.mutation = Some(mutation);
        self
    }

    /// Brings the lab up; panics with what labctl said if that fails.
    pub(crate) fn bring_up(&self) {
        let output = self.labctl(&["up", self.file.to_str().expect("UTF-8")]);
        assert!(output.status.success(), "up failed:\n{}", text(&output));
    }

    /// Runs labctl in the test's folder.
    pub(crate) fn labctl(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("labctl runs")
    }

    /// labctl in the test's folder, not started yet.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_labctl"));
        command.args(args).current_dir(self.folder.path()).env("NO_COLOR", "1");
        if let Some(mutation) = self.mutation {
            command.env("LABCTL_MUTATION", mutation.to_string());
        }
        command
    }

    /// A program inside one of the lab's namespaces, by `ip netns exec`.
    pub(crate) fn inside(&self, host: &str, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(host), program]);
        command
    }

    /// The real tcpdump on the `eth0` of a host, listening.
    pub(crate) fn tcpdump(&self, host: &str, filter: &str) -> Tcpdump {
        let file = self.folder().join(format!("{host}.pcap"));
        Tcpdump::start(self.inside(host, "tcpdump"), "eth0", file, filter)
    }

    /// Runs `labctl verify --format json`.
    pub(crate) fn verify(&self) -> Verdict {
        let output = self.labctl(&["verify", &self.name, "--format", "json"]);
        Verdict::of(output, self.folder(), &self.name)
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The namespace of a host.
    pub(crate) fn namespace(&self, host: &str) -> String {
        format!("labctl-{}-{host}", self.name)
    }

    /// Where the test's files and evidence lie.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The lab file.
    pub(crate) fn file(&self) -> &Path {
        &self.file
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let output = self.labctl(&["down", &self.name]);
        // 4: it was not up, which some tests want.
        if !matches!(output.status.code(), Some(0 | 4)) && !std::thread::panicking() {
            panic!("down failed:\n{}", text(&output));
        }
    }
}
