//! Workflow commands of GitHub Actions: one line on stdout becomes an annotation beside the code.
//! <https://docs.github.com/en/actions/reference/workflow-commands-for-github-actions>

/// An error at a place in a file; line and column count from 1, 0 means the whole file.
pub(crate) fn error(file: &str, line: usize, column: usize, message: &str) -> String {
    let place = if line == 0 { String::new() } else { format!(",line={line},col={column}") };
    format!("::error file={}{place}::{}\n", property(file), data(message))
}

/// `%`, CR and LF would end the command.
fn data(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// In a property, `:` and `,` would end the value too.
fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_the_text_ends_the_command_early() {
        assert_eq!(
            error("a,b.yaml", 3, 7, "100%\nof nodes"),
            "::error file=a%2Cb.yaml,line=3,col=7::100%25%0Aof nodes\n"
        );
        assert_eq!(error("dsr.yaml", 0, 0, "empty"), "::error file=dsr.yaml::empty\n");
    }
}
