//! A kind lab of a test's own: its name, its working folder, its home, and its end.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use nix::fcntl::{Flock, FlockArg};
use serde_json::Value;
use tempfile::TempDir;

use crate::docker;
use crate::need;
use crate::verdict::{Verdict, text};

/// Held by one test process at a time, as by those of the namespace labs: `gc` looks at all of the machine.
static MACHINE: LazyLock<Flock<File>> = LazyLock::new(|| {
    let folder = File::open(env!("CARGO_MANIFEST_DIR")).expect("the package is there");
    Flock::lock(folder, FlockArg::LockExclusive).expect("flock(2) waits for its turn")
});

/// Tests with labs of their own share the machine; a test that compares all of it has it alone.
static GATE: RwLock<()> = RwLock::new(());

/// Tells the labs of one test process apart.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// What the user's own kubeconfig holds before and after.
const USERS_KUBECONFIG: &str = "# the user's own\n";

/// The right to use the machine.
pub(crate) enum Turn {
    /// Beside others.
    Shared { _guard: RwLockReadGuard<'static, ()> },
    /// Alone.
    Alone { _guard: RwLockWriteGuard<'static, ()> },
}

impl Turn {
    /// With other labs beside.
    pub(crate) fn shared() -> Self {
        LazyLock::force(&MACHINE);
        Self::Shared { _guard: GATE.read().unwrap_or_else(PoisonError::into_inner) }
    }

    /// With nothing else on the machine.
    pub(crate) fn alone() -> Self {
        LazyLock::force(&MACHINE);
        Self::Alone { _guard: GATE.write().unwrap_or_else(PoisonError::into_inner) }
    }
}

/// One lab, up or not.
pub(crate) struct Lab {
    pub(crate) name: String,
    folder: TempDir,
    file: PathBuf,
    _turn: Option<Turn>,
}

impl Lab {
    /// A lab like the built-in `base` with a name of its own, its file changed by `edit`. Not up yet.
    pub(crate) fn new(base: &str, turn: Turn, edit: impl FnOnce(String) -> String) -> Self {
        Self::made(base, Some(turn), edit)
    }

    /// A second lab of a test that has its turn.
    pub(crate) fn beside(base: &str, edit: impl FnOnce(String) -> String) -> Self {
        Self::made(base, None, edit)
    }

    fn made(base: &str, turn: Option<Turn>, edit: impl FnOnce(String) -> String) -> Self {
        let name = format!("k{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = tempfile::Builder::new().prefix("labctl-kind-").tempdir().expect("a folder");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../labs/{base}.yaml"));
        let lab = fs::read_to_string(source).expect("the lab file is there");
        let lab = lab.replace(&format!("name: {base}\n"), &format!("name: {name}\n"));
        let file = folder.path().join("lab.yaml");
        fs::write(&file, edit(lab)).expect("write the lab file");
        let kube = folder.path().join(".kube");
        fs::create_dir(&kube).expect("a home's folder");
        fs::write(kube.join("config"), USERS_KUBECONFIG).expect("write the user's kubeconfig");
        Self { name, folder, file, _turn: turn }
    }

    /// As [`Lab::new`] without changes, and up.
    pub(crate) fn up(base: &str) -> Self {
        let lab = Self::new(base, Turn::shared(), |text| text);
        lab.bring_up();
        lab
    }

    /// Brings the lab up on kind; panics with what labctl said if that fails.
    #[track_caller]
    pub(crate) fn bring_up(&self) -> Output {
        let output = self.command_up(need::image().as_deref()).output().expect("labctl runs");
        assert!(output.status.success(), "up failed:\n{}", text(&output));
        output
    }

    /// `labctl up` of this lab on kind, not started yet.
    pub(crate) fn command_up(&self, image: Option<&str>) -> Command {
        let mut command = self.command(&["up", self.path(), "--provider", "kind"]);
        if let Some(image) = image {
            command.args(["--image", image]);
        }
        command
    }

    /// Runs labctl in the test's folder.
    pub(crate) fn labctl(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("labctl runs")
    }

    /// As [`Lab::labctl`], which must succeed; returns its stdout.
    #[track_caller]
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let output = self.labctl(args);
        assert!(output.status.success(), "labctl {}:\n{}", args.join(" "), text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// labctl in the test's folder, with a home and a state folder that are not the user's, not started yet.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program());
        command
            .args(args)
            .current_dir(self.folder.path())
            .env("NO_COLOR", "1")
            .env("HOME", self.folder.path())
            .env("LABCTL_STATE_DIR", state_dir())
            .env_remove("KUBECONFIG")
            .stdin(Stdio::null());
        command
    }

    /// Runs `labctl verify --format json`.
    pub(crate) fn verify(&self) -> Verdict {
        Verdict::of(self.labctl(&["verify", &self.name, "--format", "json"]), self.folder(), &self.name)
    }

    /// The JSON of `labctl status`.
    pub(crate) fn status(&self) -> Value {
        let text = self.ok(&["status", &self.name, "--format", "json"]);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"))
    }

    /// The kind cluster.
    pub(crate) fn cluster(&self) -> String {
        format!("labctl-{}", self.name)
    }

    /// The container of a host: a node or the client.
    pub(crate) fn container(&self, host: &str) -> String {
        format!("labctl-{}-{host}", self.name)
    }

    /// `kubectl` in the lab's cluster.
    #[track_caller]
    pub(crate) fn kubectl(&self, args: &[&str]) -> String {
        docker::kubectl(&self.cluster(), args)
    }

    /// Where the test's files and evidence lie.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The lab file.
    pub(crate) fn path(&self) -> &str {
        self.file.to_str().expect("UTF-8")
    }

    /// The lab's folder among the states.
    pub(crate) fn state(&self) -> PathBuf {
        state_dir().join(&self.name)
    }

    /// Takes the lab down and looks for anything of it that is left.
    #[track_caller]
    pub(crate) fn take_down(&self) {
        self.ok(&["down", &self.name]);
        self.expect_nothing("down");
    }

    /// Nothing of the lab is left in Docker, on disk or in the user's kubeconfig.
    #[track_caller]
    pub(crate) fn expect_nothing(&self, after: &str) {
        assert_eq!(docker::objects_of(&self.name), <_>::default(), "{after} left these behind");
        assert!(!self.state().exists(), "{after} left {}", self.state().display());
        let kubeconfig = fs::read_to_string(self.folder().join(".kube/config")).expect("it is the user's");
        assert_eq!(kubeconfig, USERS_KUBECONFIG, "{after} changed the user's kubeconfig");
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

/// The static binary that users get and containers run; `make test` builds it first.
pub(crate) fn program() -> PathBuf {
    let path = std::env::var_os("LABCTL_BINARY")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/labctl"), PathBuf::from);
    assert!(path.is_file(), "{} is missing: run `make build`", path.display());
    path.canonicalize().expect("it is there")
}

/// Where the labs of this test process have their state.
pub(crate) fn state_dir() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("kind-{}", std::process::id()))
}
