//! Colours: four tones, and none at all when nobody would see them.

use crate::cli::ColorChoice;

/// What a piece of text means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    /// Passed, ready.
    Good,
    /// Failed, missing.
    Bad,
    /// Worth a look.
    Warn,
    /// A name or a command to type.
    Name,
    /// Detail that may recede.
    Quiet,
}

/// Colours of one stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Paint {
    on: bool,
}

impl Paint {
    /// NO_COLOR (<https://no-color.org>) counts when it is set and not empty.
    pub(crate) fn new(choice: ColorChoice, is_terminal: bool) -> Self {
        let wanted = || {
            std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
                && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
        };
        let on = match choice {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => is_terminal && wanted(),
        };
        Self { on }
    }

    /// The text in its tone.
    pub(crate) fn tone(self, tone: Tone, text: &str) -> String {
        if !self.on {
            return text.to_owned();
        }
        // SGR codes (ECMA-48 8.3.117) that terminals map to their own palette.
        let code = match tone {
            Tone::Good => "32",
            Tone::Bad => "1;31",
            Tone::Warn => "33",
            Tone::Name => "36",
            Tone::Quiet => "2",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    /// Whether colours are used, for renderers that bring their own.
    pub(crate) fn is_on(self) -> bool {
        self.on
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_gets_no_escape_codes_unless_asked() {
        assert_eq!(Paint::new(ColorChoice::Auto, false).tone(Tone::Good, "ok"), "ok");
        assert_eq!(Paint::new(ColorChoice::Never, true).tone(Tone::Good, "ok"), "ok");
        assert_eq!(Paint::new(ColorChoice::Always, false).tone(Tone::Good, "ok"), "\x1b[32mok\x1b[0m");
    }
}
