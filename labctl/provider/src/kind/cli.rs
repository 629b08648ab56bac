//! The `kind` program: finding it, asking its version, `kind create cluster`.
//!
//! Owns: its process group, its output in `log/kind.log`, the reading of its progress. Does not own: its
//! configuration (`config`) or what it makes (`sweep` removes that without it).

use std::collections::VecDeque;
use std::env;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::time::timeout;

/// Nodes without a CNI and with `kubeProxyMode: none` have been the same since.
const OLDEST: Version = Version(0, 20, 0);
/// Its output that an error shows.
const LAST_LINES: usize = 12;
/// Longer than pulling a node image over a slow line and every wait of kubeadm together.
const CREATE_DEADLINE: Duration = Duration::from_secs(20 * 60);

/// Major, minor and patch version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(u32, u32, u32);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// Why `kind` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KindCliError {
    /// It is not installed.
    #[error(
        "find `{program}` in PATH: it is not installed; {}",
        if *program == "kind" {
            "get it from https://kind.sigs.k8s.io/docs/user/quick-start/#installation"
        } else {
            "kind calls it: install Docker's command line, https://docs.docker.com/engine/install"
        }
    )]
    Missing {
        /// The program.
        program: &'static str,
    },
    /// It does not run.
    #[error("run {} version: {reason}", path.display())]
    Broken {
        /// The program.
        path: PathBuf,
        /// What happened.
        reason: String,
    },
    /// It is too old.
    #[error(
        "use {}: it is version {found}, labs need {OLDEST} or newer; see https://kind.sigs.k8s.io for a newer one",
        path.display()
    )]
    Old {
        /// The program.
        path: PathBuf,
        /// Its version.
        found: String,
    },
}

/// How `kind create cluster` failed.
#[derive(Debug)]
pub(super) enum CreateError {
    /// The program did not start, or its log cannot be written.
    Io(io::Error),
    /// It took longer than any healthy run.
    Late(Duration),
    /// It said no.
    Failed { status: ExitStatus, last: Vec<String> },
}

/// The program.
#[derive(Clone, Debug)]
pub(crate) struct Kind {
    path: PathBuf,
    /// Its version.
    pub(crate) version: Version,
}

/// What to create.
pub(super) struct Create<'a> {
    pub(super) docker_host: String,
    pub(super) network: &'a str,
    pub(super) config: &'a Path,
    pub(super) kubeconfig: &'a Path,
    pub(super) image: Option<&'a str>,
    pub(super) log: &'a Path,
    /// Leave the nodes of a failure for whoever looks for its cause.
    pub(super) retain: bool,
}

impl Kind {
    /// Finds the program in PATH, and Docker's, which it calls.
    pub(crate) fn find() -> Result<Self, KindCliError> {
        let path = in_path("kind").ok_or(KindCliError::Missing { program: "kind" })?;
        in_path("docker").ok_or(KindCliError::Missing { program: "docker" })?;
        let broken = |reason: String| KindCliError::Broken { path: path.clone(), reason };
        let asked = Command::new(&path).arg("version").stdin(Stdio::null()).output();
        let said = asked.map_err(|e| broken(e.to_string()))?;
        let text = String::from_utf8_lossy(&said.stdout).into_owned();
        if !said.status.success() {
            return Err(broken(format!("{}: {}", said.status, String::from_utf8_lossy(&said.stderr).trim())));
        }
        let version = version(&text).ok_or_else(|| broken(format!("it says `{}`", text.trim())))?;
        if version < OLDEST {
            return Err(KindCliError::Old { found: version.to_string(), path });
        }
        Ok(Self { path, version })
    }

    /// `kind create cluster`; `on_progress` is given each of its steps as it begins. Dropping the future
    /// ends kind and all that it started.
    pub(super) async fn create(
        &self,
        create: Create<'_>,
        on_progress: &mut dyn FnMut(&str),
    ) -> Result<(), CreateError> {
        let mut log = File::create(create.log).map_err(CreateError::Io)?;
        let mut command = Command::new(&self.path);
        command.args(["create", "cluster", "--config"]).arg(create.config);
        command.arg("--kubeconfig").arg(create.kubeconfig);
        if let Some(image) = create.image {
            command.args(["--image", image]);
        }
        if create.retain {
            command.arg("--retain");
        }
        command
            .env("DOCKER_HOST", create.docker_host)
            .env("KIND_EXPERIMENTAL_PROVIDER", "docker")
            .env("KIND_EXPERIMENTAL_DOCKER_NETWORK", create.network)
            .env_remove("KUBECONFIG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut group = Group::spawn(command).map_err(CreateError::Io)?;
        let mut last = VecDeque::new();
        let ended = async {
            if let Some(stderr) = group.child.stderr.take() {
                read_progress(stderr, &mut log, &mut last, on_progress).await?;
            }
            group.wait().await
        };
        let status = match timeout(CREATE_DEADLINE, ended).await {
            Ok(ended) => ended.map_err(CreateError::Io)?,
            Err(_) => return Err(CreateError::Late(CREATE_DEADLINE)),
        };
        if status.success() { Ok(()) } else { Err(CreateError::Failed { status, last: last.into() }) }
    }
}

/// Reads its stderr line by line: ` • Preparing nodes 📦 📦 📦  ...` when a step begins, ` ✓ ...` when it
/// has ended.
async fn read_progress(
    stderr: impl AsyncRead + Unpin,
    log: &mut File,
    last: &mut VecDeque<String>,
    on_progress: &mut dyn FnMut(&str),
) -> io::Result<()> {
    let mut lines = BufReader::new(stderr).split(b'\n');
    while let Some(line) = lines.next_segment().await? {
        let line = String::from_utf8_lossy(&line).into_owned();
        writeln!(log, "{line}")?;
        if let Some(step) = step(&line) {
            on_progress(&step);
        }
        if !line.trim().is_empty() {
            last.push_back(line.trim_end().to_owned());
            if last.len() > LAST_LINES {
                last.pop_front();
            }
        }
    }
    Ok(())
}

/// The step that a line says has begun, in words alone: kind decorates them.
fn step(line: &str) -> Option<String> {
    let words = line.trim().strip_prefix('•')?.trim().trim_end_matches("...");
    let plain: String = words.chars().filter(|c| c.is_ascii()).collect();
    Some(plain.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// A program with its children, ended together.
struct Group {
    child: tokio::process::Child,
    id: Option<Pid>,
}

impl Group {
    fn spawn(command: Command) -> io::Result<Self> {
        let mut command = tokio::process::Command::from(command);
        command.process_group(0).kill_on_drop(true);
        // SAFETY: between fork and exec the closure only calls prctl, which is async-signal-safe and
        // allocates nothing.
        unsafe {
            command.pre_exec(|| {
                // A killed labctl must not leave a kind that goes on making what nobody knows of.
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let child = command.spawn()?;
        let id = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        Ok(Self { child, id })
    }

    async fn wait(&mut self) -> io::Result<ExitStatus> {
        let status = self.child.wait().await?;
        // From here on the number may be another's.
        self.id = None;
        Ok(status)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            // Gone already is as good.
            let _ = killpg(id, Signal::SIGKILL);
        }
    }
}

fn in_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|file| file.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0))
}

/// `kind v0.27.0 go1.24.3 linux/amd64`.
fn version(text: &str) -> Option<Version> {
    text.split_whitespace().find_map(|word| {
        let word = word.strip_prefix('v').unwrap_or(word);
        let word = word.split(['-', '+']).next()?;
        let mut numbers = word.split('.').map(str::parse);
        let (major, minor) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
        Some(Version(major, minor, numbers.next().and_then(Result::ok).unwrap_or(0)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_every_kind_of_build_are_read() {
        assert_eq!(version("kind v0.27.0 go1.24.3 linux/amd64\n"), Some(Version(0, 27, 0)));
        assert_eq!(version("kind v0.33.1-alpha+86dfb9dbd15fd0 go1.25 linux/arm64"), Some(Version(0, 33, 1)));
        assert_eq!(version("0.20.0"), Some(Version(0, 20, 0)));
        assert_eq!(version("not kind at all"), None);
        assert!(Version(0, 9, 9) < OLDEST);
    }

    #[test]
    fn steps_come_without_their_decoration() {
        assert_eq!(step(" • Preparing nodes 📦 📦 📦   ...").as_deref(), Some("Preparing nodes"));
        assert_eq!(
            step(" • Ensuring node image (labctl/node:v1.20.2) 🖼  ...").as_deref(),
            Some("Ensuring node image (labctl/node:v1.20.2)")
        );
        assert_eq!(step(" ✓ Preparing nodes 📦"), None);
        assert_eq!(step("Creating cluster \"labctl-dsr\" ..."), None);
    }
}
