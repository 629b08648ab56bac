//! A role process (`labctl node ...`) inside a node, a pod or the client: its one ready line, its
//! remaining output, its end.
//!
//! Owns: the child and the pipe from its stdout. Its stderr goes into a log file, and the last lines of
//! that file belong to every error: a role that fails has said why there. A role that is dropped before
//! it ended is killed and reaped, so an interrupted command leaves none behind.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use labctl_provider::Host;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::interrupt::{Interrupt, Woken};

/// A running role.
#[derive(Debug)]
pub(crate) struct Role {
    what: String,
    child: Option<Child>,
    stdout: ChildStdout,
    output: Vec<u8>,
    closed: bool,
    log: PathBuf,
}

/// Why a role did not do what was waited for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RoleError {
    /// It ended, or closed its output, first.
    #[error("{what} ended with {status} before {awaited}{}", tail(log))]
    Ended {
        /// Which role.
        what: String,
        /// How it ended.
        status: ExitStatus,
        /// What was waited for.
        awaited: &'static str,
        /// Its stderr.
        log: PathBuf,
    },
    /// The deadline passed.
    #[error("{what}: {awaited} did not come within {} ms{}", limit.as_millis(), tail(log))]
    TimedOut {
        /// Which role.
        what: String,
        /// What was waited for.
        awaited: &'static str,
        /// How long it had.
        limit: Duration,
        /// Its stderr.
        log: PathBuf,
    },
    /// Its output is not what the protocol says.
    #[error("{what} said something that is not {awaited}: {line}")]
    Garbled {
        /// Which role.
        what: String,
        /// What was waited for.
        awaited: &'static str,
        /// What it said.
        line: String,
    },
    /// Its pipe or its process could not be handled.
    #[error("{what}: {source}")]
    Io {
        /// Which role.
        what: String,
        /// The operating system's words.
        source: io::Error,
    },
    /// The lab has no such host, although its plan has.
    #[error("the lab has no host {host}; take it down and up again")]
    NoHost {
        /// The host.
        host: String,
    },
    /// Its log file cannot be made.
    #[error("make the log file {}: {source}", path.display())]
    Log {
        /// The file.
        path: PathBuf,
        /// The operating system's words.
        source: io::Error,
    },
    /// A signal came.
    #[error("interrupted while waiting for {awaited}")]
    Interrupted {
        /// What was waited for.
        awaited: &'static str,
    },
}

impl Role {
    /// Starts `labctl node <role>` in a host with what `configure` adds (arguments, a session of its own).
    /// stdin and stdout are pipes, stderr goes to `<log_dir>/<role>-<name>.log`.
    ///
    /// # Errors
    /// [`RoleError::Log`] when the log file cannot be made, [`RoleError::Io`] when the process cannot be
    /// started.
    pub(crate) fn spawn(
        host: &Host,
        role: &str,
        name: &str,
        log_dir: &Path,
        configure: impl FnOnce(&mut Command),
    ) -> Result<Self, RoleError> {
        let what = format!("{role} on {name}");
        let path = log_dir.join(format!("{role}-{name}.log"));
        let log = fs::create_dir_all(log_dir)
            .and_then(|()| File::create(&path))
            .map_err(|source| RoleError::Log { path: path.clone(), source })?;
        let mut command = host.role(role);
        configure(&mut command);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let child = command.spawn().map_err(|source| RoleError::Io { what: what.clone(), source })?;
        Self::new(what, child, path)
    }

    /// Takes over a child whose stdout is a pipe; `what` names it in errors, for example
    /// `capture on worker`; `log` is the file that its stderr goes to.
    ///
    /// # Errors
    /// [`RoleError::Io`] when the child has no stdout pipe.
    fn new(what: String, mut child: Child, log: PathBuf) -> Result<Self, RoleError> {
        let error = |what: &str, source| RoleError::Io { what: what.to_owned(), source };
        let Some(stdout) = child.stdout.take() else {
            return Err(error(&what, io::Error::other("started without a pipe for its output")));
        };
        // Reads must not wait for one role while another one has something to say.
        fcntl(&stdout, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(|e| error(&what, e.into()))?;
        Ok(Self { what, child: Some(child), stdout, output: Vec::new(), closed: false, log })
    }

    /// What it is, as in errors.
    pub(crate) fn what(&self) -> &str {
        &self.what
    }

    /// Its stdout as a stream, for a role whose output is not lines. Nothing of it may have been read.
    ///
    /// # Errors
    /// [`RoleError::Io`] when the pipe cannot be duplicated.
    pub(crate) fn stream(&self) -> Result<File, RoleError> {
        let error = |source| RoleError::Io { what: self.what.clone(), source };
        let fd = self.stdout.as_fd().try_clone_to_owned().map_err(error)?;
        // The reader of a stream has a thread of its own and may wait.
        fcntl(&fd, FcntlArg::F_SETFL(OFlag::empty())).map_err(|e| error(e.into()))?;
        Ok(File::from(fd))
    }

    /// Takes its stdin; closing it is how a capture is stopped.
    pub(crate) fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.child.as_mut().and_then(|child| child.stdin.take())
    }

    /// Closes its stdin.
    pub(crate) fn close_stdin(&mut self) {
        drop(self.take_stdin());
    }

    /// What a role that reads nothing says, once it has ended well.
    ///
    /// # Errors
    /// [`RoleError`].
    pub(crate) fn answer<T: DeserializeOwned>(
        mut self,
        interrupt: &Interrupt,
        awaited: &'static str,
        limit: Duration,
    ) -> Result<T, RoleError> {
        self.close_stdin();
        let what = self.what().to_owned();
        read(finish(vec![self], interrupt, awaited, limit)?.concat(), &what, awaited)
    }

    /// Writes its options to its stdin as one JSON document, and closes it.
    ///
    /// # Errors
    /// [`RoleError::Io`] when it does not read them: it has ended.
    pub(crate) fn hand_over(&mut self, options: &impl Serialize) -> Result<(), RoleError> {
        let written = match self.take_stdin() {
            Some(stdin) => serde_json::to_writer(stdin, options).map_err(io::Error::from),
            None => Err(io::Error::other("its stdin is closed")),
        };
        match written {
            // It ended early; what it said on the way is worth more than "broken pipe".
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
            written => written.map_err(|source| RoleError::Io { what: self.what.clone(), source }),
        }
    }

    /// Lets it run on by itself (backends): it is neither killed nor waited for from here on.
    pub(crate) fn detach(mut self) {
        // Nobody reaps it while this process lives; when this process ends, init does.
        self.child = None;
    }

    /// Reads what there is. Returns once nothing more is there now.
    fn drain(&mut self) -> Result<(), RoleError> {
        let mut chunk = [0u8; 4096];
        while !self.closed {
            match self.stdout.read(&mut chunk) {
                Ok(0) => self.closed = true,
                Ok(n) => self.output.extend_from_slice(&chunk[..n]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(source) => return Err(RoleError::Io { what: self.what.clone(), source }),
            }
        }
        Ok(())
    }

    /// Takes the first whole line out of what has been read.
    fn take_line(&mut self) -> Option<String> {
        let end = self.output.iter().position(|byte| *byte == b'\n')?;
        let line: Vec<u8> = self.output.drain(..=end).collect();
        Some(String::from_utf8_lossy(&line[..end]).into_owned())
    }

    /// Reaps a child that has closed its output, and is therefore ending.
    fn reap(&mut self) -> Result<ExitStatus, RoleError> {
        let status =
            self.child.as_mut().map_or_else(|| Err(io::Error::other("waited for twice")), Child::wait);
        self.child = None;
        status.map_err(|source| RoleError::Io { what: self.what.clone(), source })
    }

    fn ended(&mut self, awaited: &'static str) -> RoleError {
        match self.reap() {
            Ok(status) => {
                RoleError::Ended { what: self.what.clone(), status, awaited, log: self.log.clone() }
            }
            Err(error) => error,
        }
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It ended by itself, or it must not outlive the command; either way it is reaped.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Waits until every role has printed one line; returns the lines in the order of the roles. `awaited` completes "… did not come within": `its ready line`.
pub(crate) fn next_lines(
    roles: &mut [Role],
    interrupt: &Interrupt,
    awaited: &'static str,
    limit: Duration,
) -> Result<Vec<String>, RoleError> {
    let mut lines: Vec<Option<String>> = roles.iter_mut().map(Role::take_line).collect();
    let deadline = Instant::now() + limit;
    while lines.iter().any(Option::is_none) {
        let waiting: Vec<usize> = (0..roles.len()).filter(|i| lines[*i].is_none()).collect();
        wait_for(roles, &waiting, interrupt, awaited, limit, deadline)?;
        for index in waiting {
            let role = &mut roles[index];
            role.drain()?;
            lines[index] = role.take_line();
            if lines[index].is_none() && role.closed {
                return Err(role.ended(awaited));
            }
        }
    }
    Ok(lines.into_iter().flatten().collect())
}

/// As [`next_lines`], each line read as JSON.
pub(crate) fn next_values<T: DeserializeOwned>(
    roles: &mut [Role],
    interrupt: &Interrupt,
    awaited: &'static str,
    limit: Duration,
) -> Result<Vec<T>, RoleError> {
    let lines = next_lines(roles, interrupt, awaited, limit)?;
    lines.into_iter().zip(roles).map(|(line, role)| read(line, role.what(), awaited)).collect()
}

/// Reads one line of a role's output as JSON.
pub(crate) fn read<T: DeserializeOwned>(
    line: String,
    what: &str,
    awaited: &'static str,
) -> Result<T, RoleError> {
    serde_json::from_str(&line).map_err(|_| RoleError::Garbled { what: what.to_owned(), awaited, line })
}

/// Waits until every role has ended well; returns what each printed after the lines already taken.
pub(crate) fn finish(
    mut roles: Vec<Role>,
    interrupt: &Interrupt,
    awaited: &'static str,
    limit: Duration,
) -> Result<Vec<String>, RoleError> {
    let deadline = Instant::now() + limit;
    loop {
        let waiting: Vec<usize> = (0..roles.len()).filter(|i| !roles[*i].closed).collect();
        if waiting.is_empty() {
            break;
        }
        wait_for(&roles, &waiting, interrupt, awaited, limit, deadline)?;
        for index in waiting {
            roles[index].drain()?;
        }
    }
    roles.iter_mut().map(|role| collect(role, awaited)).collect()
}

/// Reaps roles whose output has ended, or whose end does not matter any more: it comes at once.
pub(crate) fn reap_all(mut roles: Vec<Role>, awaited: &'static str) -> Result<(), RoleError> {
    roles.iter_mut().try_for_each(|role| collect(role, awaited).map(drop))
}

/// The end of a role whose output is complete.
fn collect(role: &mut Role, awaited: &'static str) -> Result<String, RoleError> {
    let status = role.reap()?;
    if !status.success() {
        return Err(RoleError::Ended { what: role.what.clone(), status, awaited, log: role.log.clone() });
    }
    Ok(String::from_utf8_lossy(&role.output).into_owned())
}

fn wait_for(
    roles: &[Role],
    waiting: &[usize],
    interrupt: &Interrupt,
    awaited: &'static str,
    limit: Duration,
    deadline: Instant,
) -> Result<(), RoleError> {
    let fds: Vec<BorrowedFd<'_>> = waiting.iter().map(|i| roles[*i].stdout.as_fd()).collect();
    match interrupt.wait(&fds, Some(deadline)) {
        Woken::Readable => Ok(()),
        Woken::Interrupted => Err(RoleError::Interrupted { awaited }),
        Woken::Deadline => {
            let role = &roles[waiting[0]];
            Err(RoleError::TimedOut { what: role.what.clone(), awaited, limit, log: role.log.clone() })
        }
    }
}

/// The last lines of a role's log, ready to follow a sentence; nothing when it is empty.
fn tail(log: &Path) -> String {
    /// More than this is not read in an error message; the file stays for the rest.
    const LINES: usize = 5;
    let mut text = String::new();
    let read = File::open(log).and_then(|mut file| file.read_to_string(&mut text));
    // A role is this program: its own words for people begin as every failure does.
    let words = |line| str::trim(str::strip_prefix(line, "error: ").unwrap_or(line));
    let lines: Vec<&str> = text.lines().map(words).filter(|line| !line.is_empty()).collect();
    if read.is_err() || lines.is_empty() {
        return String::new();
    }
    format!(": {}", lines[lines.len().saturating_sub(LINES)..].join("; "))
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::kill;
    use nix::unistd::Pid;

    use super::*;

    fn shell(script: &str, log: &Path) -> Role {
        let child = Command::new("sh")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(log).unwrap())
            .spawn()
            .unwrap();
        Role::new("capture on worker".to_owned(), child, log.to_owned()).unwrap()
    }

    fn interrupt() -> Interrupt {
        Interrupt::detached().unwrap()
    }

    #[test]
    fn lines_come_in_the_order_of_the_roles() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        // The first one speaks only after its stdin is closed, so the second one is always earlier.
        let mut roles = vec![shell("cat; echo one; echo rest", &log), shell("echo two", &log)];
        roles[0].close_stdin();
        let limit = Duration::from_secs(10);
        assert_eq!(next_lines(&mut roles, &interrupt(), "its line", limit).unwrap(), ["one", "two"]);
        assert_eq!(finish(roles, &interrupt(), "its end", limit).unwrap(), ["rest\n", ""]);
    }

    #[test]
    fn a_role_that_ends_early_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let mut roles = [shell("echo error: no such interface >&2; exit 5", &dir.path().join("log"))];
        let error =
            next_lines(&mut roles, &interrupt(), "its ready line", Duration::from_secs(10)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "capture on worker ended with exit status: 5 before its ready line: no such interface"
        );
    }

    #[test]
    fn a_silent_role_runs_into_the_deadline_and_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let mut roles = [shell("cat", &dir.path().join("log"))];
        let pid = roles[0].child.as_ref().unwrap().id() as i32;
        let error =
            next_lines(&mut roles, &interrupt(), "its ready line", Duration::from_millis(20)).unwrap_err();
        assert_eq!(error.to_string(), "capture on worker: its ready line did not come within 20 ms");
        drop(roles);
        assert_eq!(kill(Pid::from_raw(pid), None), Err(nix::errno::Errno::ESRCH));
    }
}
