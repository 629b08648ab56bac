//! What a command hands back when it cannot do its work: an exit code, words, and the next step.
//!
//! Libraries have one error type per operation and know nothing of exit codes; commands wrap those
//! errors here, once, where it is known what the user wanted.

use std::error::Error;
use std::fmt;

use crate::exit::Exit;

/// A command's failure.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    message: String,
    hint: Option<String>,
}

/// Outcome of a command: most end with [`Exit::Ok`], `verify` with its verdict's code.
pub(crate) type Outcome = Result<Exit, Failure>;

impl Failure {
    /// A failure in the command's own words.
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), hint: None }
    }

    /// "failed to `doing`: `source`", with everything that the source names as its own source.
    pub(crate) fn because(exit: Exit, doing: impl fmt::Display, source: &(dyn Error + 'static)) -> Self {
        Self::new(exit, format!("failed to {doing}: {}", chain(source)))
    }

    /// "failed to `source`": for errors that name the operation themselves.
    pub(crate) fn failed(exit: Exit, source: &(dyn Error + 'static)) -> Self {
        Self::new(exit, format!("failed to {}", chain(source)))
    }

    /// The signal arrived and clean-up is done.
    pub(crate) fn interrupted() -> Self {
        Self::new(Exit::Interrupted, "interrupted; everything that was begun is undone")
    }

    /// Adds what to do next.
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The exit code.
    pub(crate) fn exit(&self) -> Exit {
        self.exit
    }

    /// What went wrong.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// What to do next.
    pub(crate) fn next_step(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Failure {}

/// An error and its sources in one line. A source whose words the outer error already repeats is
/// left out.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let words = source.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        next = source.source();
    }
    text
}

/// `; did you mean "dsr"?` when one of the candidates is close to what was typed, else nothing.
pub(crate) fn did_you_mean<'a>(typed: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    // Two typing errors, fewer in short words: beyond that a guess reads as noise.
    let tolerance = (typed.chars().count() / 2).clamp(1, 2);
    candidates
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(typed, name), name))
        .filter(|(distance, name)| *distance <= tolerance || (typed.len() >= 3 && name.starts_with(typed)))
        .min()
        .map(|(_, name)| format!("did you mean \"{name}\"?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_close_name_is_offered_and_a_far_one_is_not() {
        let labs = ["dsr", "snat", "hybrid"];
        assert_eq!(did_you_mean("drs", labs).as_deref(), Some("did you mean \"dsr\"?"));
        assert_eq!(did_you_mean("hyb", labs).as_deref(), Some("did you mean \"hybrid\"?"));
        assert_eq!(did_you_mean("production", labs), None);
    }

    #[test]
    fn sources_are_named_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("read the plan of lab dsr")]
        struct Outer(#[source] std::io::Error);
        let error = Outer(std::io::Error::from_raw_os_error(28));
        let failure = Failure::because(Exit::SetupFailed, "stop the lab", &error);
        assert_eq!(
            failure.message(),
            "failed to stop the lab: read the plan of lab dsr: No space left on device (os error 28)"
        );
    }
}
