//! The only place that prints. Results go to stdout, talk goes to stderr, so that
//! `labctl verify --format json | jq` works while a person watches.
//!
//! Owns: colours, progress, tables, JSON output, how failures look. Does not own: what is said.

use std::io::{self, ErrorKind, IsTerminal, Write};

use serde::Serialize;

use crate::cli::ColorChoice;
use crate::exit::Exit;
use crate::failure::Failure;

pub(crate) mod github;
mod paint;
mod progress;
mod table;

pub(crate) use paint::{Paint, Tone};
pub(crate) use progress::{Progress, Step, milliseconds};
pub(crate) use table::table;

/// Where output goes and how it looks; made once, lent to every command.
#[derive(Debug)]
pub(crate) struct Ui {
    out: Paint,
    err: Paint,
    out_is_terminal: bool,
    err_is_terminal: bool,
}

impl Ui {
    /// Looks at both streams and the environment once.
    pub(crate) fn new(choice: ColorChoice) -> Self {
        let (out_is_terminal, err_is_terminal) = (io::stdout().is_terminal(), io::stderr().is_terminal());
        Self {
            out: Paint::new(choice, out_is_terminal),
            err: Paint::new(choice, err_is_terminal),
            out_is_terminal,
            err_is_terminal,
        }
    }

    /// Colours for text that goes to stdout.
    pub(crate) fn paint(&self) -> Paint {
        self.out
    }

    /// Whether a person reads stdout.
    pub(crate) fn out_is_terminal(&self) -> bool {
        self.out_is_terminal
    }

    /// Writes bytes to stdout.
    ///
    /// # Errors
    /// A failure when stdout cannot take them (full disk). A reader that went away (`labctl list |
    /// head -1`) is no failure: it has what it wanted.
    pub(crate) fn raw(&self, bytes: &[u8]) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        match out.write_all(bytes).and_then(|()| out.flush()) {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => {
                Err(Failure::because(Exit::SetupFailed, "write the result to stdout", &error))
            }
            _ => Ok(()),
        }
    }

    /// Stdout itself, for results that come bit by bit.
    pub(crate) fn stdout(&self) -> io::StdoutLock<'static> {
        io::stdout().lock()
    }

    /// One line of a result that comes bit by bit.
    ///
    /// # Errors
    /// Every write error, a closed pipe too: whoever produces the lines may stop.
    pub(crate) fn line(&self, line: &str) -> io::Result<()> {
        let mut out = self.stdout();
        writeln!(out, "{line}")?;
        out.flush()
    }

    /// Writes lines of text to stdout.
    ///
    /// # Errors
    /// As [`Self::raw`].
    pub(crate) fn text(&self, text: &str) -> Result<(), Failure> {
        self.raw(text.as_bytes())?;
        if text.ends_with('\n') || text.is_empty() { Ok(()) } else { self.raw(b"\n") }
    }

    /// Writes a value to stdout as indented JSON.
    ///
    /// # Errors
    /// As [`Self::raw`].
    pub(crate) fn json(&self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(value)
            .map_err(|error| Failure::because(Exit::SetupFailed, "write the result as JSON", &error))?;
        self.text(&text)
    }

    /// One line of talk.
    pub(crate) fn say(&self, line: &str) {
        talk(&format!("{line}\n"));
    }

    /// Something that the user should know although the command goes on.
    pub(crate) fn warn(&self, line: &str) {
        self.say(&format!("{}: {line}", self.err.tone(Tone::Warn, "warning")));
    }

    /// Why the command ends without its result, and what to do next.
    pub(crate) fn failure(&self, failure: &Failure) {
        self.say(&format!("{}: {}", self.err.tone(Tone::Bad, "error"), failure.message()));
        for line in failure.next_step().into_iter().flat_map(str::lines) {
            self.say(&format!("  {} {line}", self.err.tone(Tone::Name, "→")));
        }
    }

    /// Progress of a command with several steps.
    pub(crate) fn progress(&self) -> Progress {
        Progress::new(self.err, self.err_is_terminal)
    }
}

/// Shows what clap says: help and version are results, a refusal is talk.
pub(crate) fn show_usage(refusal: &clap::Error) -> Exit {
    // A closed stdout or stderr leaves nobody to tell.
    let _ = refusal.print();
    if refusal.use_stderr() { Exit::Usage } else { Exit::Ok }
}

/// Writes to stderr; when that fails there is nobody left to tell.
fn talk(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}
