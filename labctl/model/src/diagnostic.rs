//! What is wrong with a lab file and where: one [`Diagnostic`] per mistake, shown with the line itself, a
//! caret under the place and what to write instead. Every stage that reads a lab file reports here; nothing
//! else in the crate formats text for people.

use std::fmt::{self, Write as _};

use serde::Serialize;

/// Rendering stops after this many diagnostics; the rest is counted.
const SHOWN: usize = 50;
/// Characters of a source line that an excerpt shows at most.
const EXCERPT_WIDTH: usize = 100;

/// A place in the lab file. Lines and columns count from 1, columns and length in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Place {
    /// Line; 0 where the whole file is meant.
    pub line: usize,
    /// Column of the first character; 0 where the whole file is meant.
    pub column: usize,
    /// Characters that belong to it, at least 1.
    pub length: usize,
}

impl Place {
    /// The whole file: shown without an excerpt.
    pub const FILE: Self = Self { line: 0, column: 0, length: 0 };
}

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// What is wrong, a lower-case fragment.
    pub message: String,
    /// Where.
    #[serde(flatten)]
    pub place: Place,
    /// Another place that the mistake depends on: what it is and where.
    pub related: Option<Related>,
    /// What to write instead, or why this cannot work.
    pub help: Option<String>,
}

/// A second place that explains a [`Diagnostic`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Related {
    /// What is there.
    pub message: String,
    /// Where.
    #[serde(flatten)]
    pub place: Place,
}

impl Diagnostic {
    /// A mistake at a place.
    pub(crate) fn new(place: Place, message: impl Into<String>) -> Self {
        Self { message: message.into(), place, related: None, help: None }
    }

    /// Adds what to do about it.
    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Adds the place that it clashes with.
    pub(crate) fn related(mut self, place: Place, message: impl Into<String>) -> Self {
        self.related = Some(Related { message: message.into(), place });
        self
    }
}

/// A lab file that cannot be used, with everything that is wrong with it.
///
/// Its display form is complete: a summary line that reads well after "failed to ", an empty line, then
/// each mistake with file, line, column, excerpt and hint. It does not end in a newline.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.render())]
pub struct LabFileError {
    source_name: String,
    source_text: String,
    diagnostics: Vec<Diagnostic>,
}

impl LabFileError {
    /// `diagnostics` holds at least one; they are put in the order of the file.
    pub(crate) fn new(source_name: &str, source_text: &str, mut diagnostics: Vec<Diagnostic>) -> Self {
        diagnostics.sort_by_key(|found| found.place);
        Self { source_name: source_name.to_owned(), source_text: source_text.to_owned(), diagnostics }
    }

    /// The file's name as it was given to [`crate::parse`].
    pub fn source_name(&self) -> &str {
        &self.source_name
    }

    /// Every mistake, at least one, in the order of the file.
    pub fn diagnostics(&self) -> &[Diagnostic] {
        &self.diagnostics
    }

    /// One line without the mistakes: ``use lab file `dsr.yaml`: 2 errors``.
    pub fn summary(&self) -> String {
        let count = self.diagnostics.len();
        let errors = if count == 1 { "error" } else { "errors" };
        format!("use lab file `{}`: {count} {errors}", printable(&self.source_name))
    }

    fn render(&self) -> String {
        let mut out = self.summary();
        for found in self.diagnostics.iter().take(SHOWN) {
            out.push_str("\n\n");
            // Writing to a String cannot fail.
            let _ = self.write_one(&mut out, found);
        }
        if let Some(more) = self.diagnostics.len().checked_sub(SHOWN).filter(|more| *more > 0) {
            let _ = write!(out, "\n\n... and {more} more");
        }
        out
    }

    fn write_one(&self, out: &mut String, found: &Diagnostic) -> fmt::Result {
        let related_line = found.related.as_ref().map_or(0, |related| related.place.line);
        let gutter = found.place.line.max(related_line).to_string().len();
        write!(out, "error: {}", printable(&found.message))?;
        self.write_excerpt(out, found.place, gutter)?;
        if let Some(related) = &found.related {
            write!(out, "\nnote: {}", printable(&related.message))?;
            self.write_excerpt(out, related.place, gutter)?;
        }
        match &found.help {
            Some(help) => write!(out, "\n{:gutter$} = help: {}", "", printable(help)),
            None => Ok(()),
        }
    }

    fn write_excerpt(&self, out: &mut String, place: Place, gutter: usize) -> fmt::Result {
        let name = printable(&self.source_name);
        if place == Place::FILE {
            return write!(out, "\n{:gutter$}--> {name}", "");
        }
        let Place { line, column, .. } = place;
        write!(out, "\n{:gutter$}--> {name}:{line}:{column}", "")?;
        let text = self.source_text.lines().nth(line - 1).unwrap_or_default();
        let excerpt = Excerpt::of(text, place);
        write!(out, "\n{:gutter$} |\n{line:>gutter$} | {}", "", excerpt.text)?;
        let carets = "^".repeat(excerpt.carets);
        write!(out, "\n{:gutter$} | {:indent$}{carets}", "", "", indent = excerpt.indent)
    }
}

/// One source line, cut to a window around the place, with nothing in it that moves a terminal's cursor.
struct Excerpt {
    text: String,
    indent: usize,
    carets: usize,
}

impl Excerpt {
    fn of(line: &str, place: Place) -> Self {
        let line: Vec<char> = line.trim_start_matches('\u{feff}').chars().map(visible).collect();
        let start = (place.column - 1).min(line.len());
        // Keep some of what stands before the place when the line is too long to be shown whole.
        let from = if line.len() <= EXCERPT_WIDTH { 0 } else { start.saturating_sub(EXCERPT_WIDTH / 3) };
        let to = line.len().min(from + EXCERPT_WIDTH);
        let text: String = line[from..to].iter().collect();
        let carets = place.length.min(to.saturating_sub(start)).max(1);
        Self { text: text.trim_end().to_owned(), indent: start - from, carets }
    }
}

/// Tabs become one space, so that carets stay aligned; other control characters a visible mark.
fn visible(c: char) -> char {
    match c {
        '\t' => ' ',
        c if hostile(c) => '\u{fffd}',
        c => c,
    }
}

/// A copy without characters that move a terminal's cursor or reorder its text.
fn printable(text: &str) -> String {
    text.chars().map(|c| if hostile(c) { '\u{fffd}' } else { c }).collect()
}

/// Control characters, and the marks that turn the direction of what follows.
fn hostile(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Of `known`, the name that `written` probably means.
pub(crate) fn closest<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let folded = written.to_lowercase();
    known
        .into_iter()
        .map(|name| (strsim::osa_distance(&folded, &name.to_lowercase()), name))
        .filter(|(distance, name)| *distance <= name.chars().count().max(3) / 3)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// `a`, `b` or `c`, each in backquotes.
pub(crate) fn one_of<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let quoted: Vec<String> = names.into_iter().map(|name| format!("`{name}`")).collect();
    match quoted.split_last() {
        None => "nothing".to_owned(),
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
    }
}

/// Help for a name that is none of `known`: the probable one, else all of them.
pub(crate) fn did_you_mean<'a>(written: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> String {
    match closest(written, known.clone()) {
        Some(name) => format!("did you mean `{name}`?"),
        None => format!("use {}", one_of(known)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str, place: Place) -> String {
        LabFileError::new("lab.yaml", text, vec![Diagnostic::new(place, "wrong")]).to_string()
    }

    #[test]
    fn carets_stand_under_the_place() {
        let shown = one("a: 1\nkey: value # why\n", Place { line: 2, column: 6, length: 5 });
        let expected = "use lab file `lab.yaml`: 1 error\n\nerror: wrong\n --> lab.yaml:2:6\n  |\n\
                        2 | key: value # why\n  |      ^^^^^";
        assert_eq!(shown, expected);
    }

    #[test]
    fn terminal_control_characters_are_not_passed_on() {
        let shown = one("a: \u{1b}[2J\u{202e}x\n", Place { line: 1, column: 4, length: 9 });
        assert!(!shown.contains(['\u{1b}', '\u{202e}']), "{shown:?}");
    }

    #[test]
    fn a_long_line_is_cut_around_the_place() {
        let text = format!("{}HERE{}", "x".repeat(500), "y".repeat(500));
        let shown = one(&text, Place { line: 1, column: 501, length: 4 });
        let [.., line, carets] = shown.lines().collect::<Vec<_>>()[..] else { panic!("{shown}") };
        let at = carets.find('^').expect("a caret");
        assert_eq!(&line[at..at + 4], "HERE");
        assert!(line.len() < 120, "{line}");
    }

    #[test]
    fn places_beyond_the_text_do_not_panic() {
        for place in [Place { line: 9, column: 9, length: 9 }, Place::FILE] {
            assert!(one("", place).contains("lab.yaml"));
        }
    }

    #[test]
    fn many_mistakes_are_counted_instead_of_shown() {
        let found = vec![Diagnostic::new(Place::FILE, "wrong"); SHOWN + 7];
        assert!(LabFileError::new("lab.yaml", "", found).to_string().ends_with("... and 7 more"));
    }

    #[test]
    fn names_are_guessed_only_when_near() {
        assert_eq!(closest("nodeport", ["nodePort", "port"]), Some("nodePort"));
        assert_eq!(closest("hybird", ["dsr", "snat", "hybrid", "local"]), Some("hybrid"));
        assert_eq!(closest("banana", ["dsr", "snat", "hybrid", "local"]), None);
        assert_eq!(one_of(["a", "b", "c"]), "`a`, `b` or `c`");
    }
}
