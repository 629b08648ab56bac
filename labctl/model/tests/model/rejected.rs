//! Every mistake that a lab file can hold, and the exact text that its author gets. Each case is a pair in
//! `tests/rejected/`: `<case>.yaml` and `<case>.txt`. `UPDATE_EXPECT=1 cargo test -p labctl-model` writes the
//! texts anew; read the difference before you commit it.

use std::fs;
use std::path::{Path, PathBuf};

use labctl_model::{parse, parse_bytes};

fn cases() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rejected");
    let mut cases: Vec<PathBuf> = fs::read_dir(&dir)
        .unwrap_or_else(|error| panic!("failed to list {}: {error}", dir.display()))
        .map(|entry| entry.expect("a directory entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    cases.sort();
    cases
}

/// The whole message for a case.
fn message(case: &Path) -> String {
    let bytes = fs::read(case).unwrap_or_else(|error| panic!("failed to read {}: {error}", case.display()));
    match parse_bytes("lab.yaml", &bytes) {
        Ok(_) => panic!("{} was accepted", case.display()),
        Err(error) => format!("{error}\n"),
    }
}

#[test]
fn messages_are_exact() {
    let update = std::env::var_os("UPDATE_EXPECT").is_some();
    let mut wrong = Vec::new();
    for case in cases() {
        let got = message(&case);
        let path = case.with_extension("txt");
        if update {
            fs::write(&path, &got)
                .unwrap_or_else(|error| panic!("failed to write {}: {error}", path.display()));
        } else if fs::read_to_string(&path).ok().as_deref() != Some(&got) {
            wrong.push(format!("~~~ {} ~~~\n{got}", case.display()));
        }
    }
    assert!(wrong.is_empty(), "not as in the .txt beside it:\n{}", wrong.join("\n"));
}

#[test]
fn no_expected_text_is_without_its_case() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rejected");
    for entry in fs::read_dir(dir).expect("tests/rejected") {
        let path = entry.expect("a directory entry").path();
        assert!(path.with_extension("yaml").exists(), "{} has no case", path.display());
    }
}

#[test]
fn mistakes_are_there_for_programs_too() {
    let error = parse("lab.yaml", "apiVersion: labctl/v1\nnmae: x\n").expect_err("incomplete");
    assert_eq!(error.source_name(), "lab.yaml");
    assert_eq!(error.summary(), "use lab file `lab.yaml`: 2 errors");
    let unknown = error.diagnostics().iter().find(|found| found.message == "unknown field `nmae`");
    let json = serde_json::to_value(unknown.expect("reported")).expect("plain JSON");
    assert_eq!(
        json,
        serde_json::json!({
            "message": "unknown field `nmae`", "line": 2, "column": 1, "length": 4,
            "related": null, "help": "did you mean `name`?",
        })
    );
}

#[test]
fn bytes_that_are_not_utf8_are_pointed_at() {
    let error = parse_bytes("lab.yaml", b"name: dsr\n# \xc3\xa9 \xff\n").expect_err("not UTF-8");
    let expected = "use lab file `lab.yaml`: 1 error\n\nerror: byte 0xff is not UTF-8\n --> lab.yaml:2:5\n  |\n\
                    2 | # é \u{fffd}\n  |     ^\n  = help: save the file as UTF-8";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn a_huge_file_is_refused_before_it_is_read() {
    let error = parse("lab.yaml", &"#\n".repeat(1 << 20)).expect_err("too large");
    assert_eq!(
        error.to_string(),
        "use lab file `lab.yaml`: 1 error\n\nerror: the file has 2097152 bytes, a lab file has at most 1048576\n --> lab.yaml"
    );
}
