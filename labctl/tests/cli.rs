//! The command line without root and without a lab: help, usage errors, exit codes, files.
//!
//! Commands that make labs are tested end to end in `tests/`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

/// A finished command.
struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl Ran {
    fn new(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("labctl prints UTF-8");
        let code = output.status.code().expect("labctl ends by itself");
        Self { code, out: text(output.stdout), err: text(output.stderr) }
    }

    #[track_caller]
    fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "\nstdout:\n{}\nstderr:\n{}", self.out, self.err);
        self
    }
}

/// `labctl` in an empty folder, with nothing of the caller's terminal.
fn labctl(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_labctl"));
    command.current_dir(dir).env_remove("NO_COLOR").stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Ran {
    let dir = tempfile::tempdir().unwrap();
    run_in(dir.path(), args)
}

fn run_in(dir: &Path, args: &[&str]) -> Ran {
    Ran::new(labctl(dir).args(args).output().unwrap())
}

/// As a user without any privilege, also when the tests run as root.
fn run_unprivileged(args: &[&str]) -> Ran {
    /// `nobody` on every Linux.
    const NOBODY: u32 = 65534;
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(world_readable_binary());
    command.args(args).current_dir(dir.path()).stdin(Stdio::null());
    if nix::unistd::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    Ran::new(command.output().unwrap())
}

/// The build folder may lie below a home that nobody else may enter.
fn world_readable_binary() -> &'static Path {
    static BINARY: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = BINARY.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let path = dir.path().join("labctl");
        fs::copy(env!("CARGO_BIN_EXE_labctl"), &path).unwrap();
        (dir, path)
    });
    path
}

mod help {
    use super::*;

    #[test]
    fn root() {
        insta::assert_snapshot!(run(&["--help"]).expect(0).out);
    }

    /// One snapshot per command: the help text is a promise, so that a change of it is seen in review.
    #[test]
    fn commands() {
        for command in [
            "up",
            "down",
            "list",
            "status",
            "verify",
            "judge",
            "export",
            "capture",
            "doctor",
            "validate",
            "schema",
            "gc",
            "completions",
            "man",
        ] {
            let ran = run(&[command, "--help"]).expect(0);
            assert_eq!(ran.err, "");
            insta::assert_snapshot!(format!("help_{command}"), ran.out);
        }
    }

    #[test]
    fn roles_are_hidden() {
        assert!(!run(&["--help"]).out.contains("\n  node"));
        run(&["node", "--help"]).expect(0);
    }

    #[test]
    fn version_is_a_result() {
        let ran = run(&["--version"]).expect(0);
        assert_eq!(ran.out, format!("labctl {}\n", env!("CARGO_PKG_VERSION")));
    }
}

mod usage {
    use super::*;

    #[test]
    fn no_command_shows_the_help_as_an_error() {
        let ran = run(&[]).expect(2);
        assert_eq!(ran.out, "");
        assert!(ran.err.contains("Usage: labctl"), "{}", ran.err);
    }

    #[test]
    fn a_misspelt_command_is_corrected() {
        let ran = run(&["verfy"]).expect(2);
        assert!(ran.err.contains("'verify'"), "{}", ran.err);
    }

    #[test]
    fn an_unknown_format_lists_the_known_ones() {
        let ran = run(&["verify", "--format", "xml"]).expect(2);
        assert!(ran.err.contains("text, json, junit, github"), "{}", ran.err);
    }

    #[test]
    fn a_capture_needs_a_host_or_all() {
        let ran = run(&["capture"]).expect(2);
        assert!(ran.err.contains("--node <HOST>"), "{}", ran.err);
        run(&["capture", "--all", "--node", "worker"]).expect(2);
        run(&["capture", "--all", "-i", "eth0"]).expect(2);
    }

    #[test]
    fn a_wrong_filter_is_a_usage_error_before_anything_begins() {
        let ran = run(&["capture", "--all", "-f", "tcp prot 80"]).expect(2);
        assert!(ran.err.starts_with("error: failed to read the filter: \"prot\""), "{}", ran.err);
    }

    #[test]
    fn a_time_without_a_known_unit_is_refused() {
        let ran = run(&["capture", "--all", "--for", "5d"]).expect(2);
        assert!(ran.err.contains("the unit is one of ms, s, m, h"), "{}", ran.err);
    }

    #[test]
    fn a_bad_lab_name_says_the_rule() {
        let ran = run(&["up", "dsr", "--name", "My_Lab"]).expect(2);
        assert!(ran.err.contains("1 to 20 of a-z, 0-9 and -"), "{}", ran.err);
    }

    #[test]
    fn an_unknown_lab_is_corrected() {
        let ran = run(&["up", "drs"]).expect(2);
        assert_eq!(ran.err, "error: there is no lab \"drs\"\n  → did you mean \"dsr\"?\n");
        assert_eq!(ran.out, "");
    }

    #[test]
    fn a_lab_that_is_like_no_other_lists_them_all() {
        let ran = run(&["up", "production"]).expect(2);
        assert!(ran.err.contains("labs here: dsr, hybrid, local, snat"), "{}", ran.err);
    }

    #[test]
    fn a_missing_file_is_named() {
        let ran = run(&["up", "./lab.yaml"]).expect(2);
        assert!(ran.err.contains("failed to read the lab file ./lab.yaml: No such file"), "{}", ran.err);
    }

    #[test]
    fn a_lab_file_with_mistakes_is_shown_with_its_lines() {
        let dir = tempfile::tempdir().unwrap();
        let text = labctl_model::builtin_lab("dsr").unwrap().replace("mode: dsr", "mode: drs");
        fs::write(dir.path().join("lab.yaml"), text).unwrap();
        let ran = run_in(dir.path(), &["up", "./lab.yaml"]).expect(2);
        assert!(ran.err.starts_with("error: failed to use lab file `./lab.yaml`: 1 error"), "{}", ran.err);
        assert!(ran.err.contains("mode: drs"), "{}", ran.err);
    }

    #[test]
    fn colours_come_only_when_asked_for() {
        let plain = run(&["up", "drs"]);
        assert!(!plain.err.contains('\x1b'));
        let coloured = run(&["up", "drs", "--color", "always"]);
        assert!(coloured.err.contains("\x1b[1;31merror"), "{}", coloured.err);
    }
}

mod validate {
    use super::*;

    #[test]
    fn the_built_in_labs_are_valid() {
        let ran = run(&["validate"]).expect(0);
        let labs: Vec<&str> = ran.out.lines().filter_map(|line| line.split(&[':', ' ']).nth(2)).collect();
        assert_eq!(labs.len(), 4, "{}", ran.out);
        assert_eq!(ran.err, "");
    }

    #[test]
    fn files_in_the_labs_folder_come_before_the_built_in_ones() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("labs")).unwrap();
        let text = labctl_model::builtin_lab("dsr").unwrap();
        fs::write(dir.path().join("labs/mine.yaml"), text).unwrap();
        let ran = run_in(dir.path(), &["validate"]).expect(0);
        assert!(ran.out.starts_with("ok labs/mine.yaml: lab dsr, mode dsr, 3 nodes"), "{}", ran.out);
        assert_eq!(ran.out.lines().count(), 1);
    }

    #[test]
    fn every_file_is_checked_and_one_mistake_decides() {
        let dir = tempfile::tempdir().unwrap();
        let good = labctl_model::builtin_lab("dsr").unwrap();
        fs::write(dir.path().join("good.yaml"), good).unwrap();
        fs::write(dir.path().join("bad.yaml"), good.replace("nodePort: 32000", "nodePort: 99")).unwrap();
        let args = ["validate", "bad.yaml", "good.yaml", "--format", "json"];
        let report: serde_json::Value =
            serde_json::from_str(&run_in(dir.path(), &args).expect(2).out).unwrap();
        assert_eq!(report["schema"], "labctl.validate/v1");
        assert_eq!(report["valid"], false);
        assert_eq!(report["files"][0]["valid"], false);
        assert!(report["files"][0]["errors"][0]["line"].as_u64().unwrap() > 1);
        assert_eq!(report["files"][1]["lab"], "dsr");

        let ran = run_in(dir.path(), &["validate", "bad.yaml", "--format", "github"]).expect(2);
        assert!(ran.out.starts_with("::error file=bad.yaml,line="), "{}", ran.out);
    }

    #[test]
    fn stdin_is_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lab.yaml");
        fs::write(&path, labctl_model::builtin_lab("snat").unwrap()).unwrap();
        let mut command = labctl(dir.path());
        let output = command.args(["validate", "-"]).stdin(fs::File::open(&path).unwrap()).output().unwrap();
        let ran = Ran::new(output).expect(0);
        assert!(ran.out.starts_with("ok <stdin>: lab snat"), "{}", ran.out);
    }
}

mod generated {
    use super::*;

    #[test]
    fn the_schema_is_json() {
        let schema: serde_json::Value = serde_json::from_str(&run(&["schema"]).expect(0).out).unwrap();
        assert!(schema["properties"]["nodes"].is_object());
    }

    #[test]
    fn completions_know_every_command() {
        for (shell, marker) in
            [("bash", "complete "), ("zsh", "#compdef labctl"), ("fish", "complete -c labctl")]
        {
            let script = run(&["completions", shell]).expect(0).out;
            assert!(script.contains(marker), "{shell}");
            assert!(script.contains("verify"), "{shell}");
        }
        run(&["completions", "tcsh"]).expect(2);
    }

    #[test]
    fn the_manual_has_the_exit_codes() {
        let page = run(&["man"]).expect(0).out;
        assert!(page.contains(".SH \"EXIT STATUS\""));
        assert!(page.contains("\\fB130\\fR\ninterrupted, and cleaned up"), "{page}");
    }

    #[test]
    fn there_is_a_page_per_command() {
        let dir = tempfile::tempdir().unwrap();
        let ran = run_in(dir.path(), &["man", "--dir", "pages"]).expect(0);
        assert_eq!(ran.out, "");
        let mut pages: Vec<String> = fs::read_dir(dir.path().join("pages"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        pages.sort();
        assert!(pages.contains(&"labctl-verify.1".to_owned()), "{pages:?}");
        assert!(!pages.contains(&"labctl-node.1".to_owned()), "{pages:?}");
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_a_set_up_failure() {
        let ran = run(&["man", "--dir", "/proc/pages"]).expect(5);
        assert!(ran.err.contains("failed to write manual pages to /proc/pages"), "{}", ran.err);
    }

    #[test]
    fn a_reader_that_goes_away_is_no_failure() {
        let dir = tempfile::tempdir().unwrap();
        let mut child =
            labctl(dir.path()).arg("schema").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    }
}

mod unprivileged {
    use super::*;

    #[test]
    fn doctor_says_that_root_is_missing() {
        let ran = run_unprivileged(&["doctor", "--format", "json"]).expect(3);
        let report: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
        assert_eq!(report["schema"], "labctl.doctor/v1");
        assert_eq!(report["ready"], false);
        let root = &report["findings"][0];
        assert_eq!((root["name"].as_str(), root["status"].as_str()), (Some("root"), Some("missing")));
        assert_eq!(root["fix"], "sudo labctl doctor");
        let findings = report["findings"].as_array().unwrap();
        let untried = findings.iter().find(|f| f["name"] == "tc-program").unwrap();
        assert_eq!(untried["status"], "unknown", "what needs root was not tried: {untried}");
    }

    #[test]
    fn doctor_reads_as_text() {
        let ran = run_unprivileged(&["doctor"]).expect(3);
        assert!(ran.out.contains("✗ root"), "{}", ran.out);
        assert!(ran.out.contains("not ready: root"), "{}", ran.out);
    }

    #[test]
    fn up_says_that_namespaces_need_root_before_anything_else() {
        let ran = run_unprivileged(&["up", "dsr", "--name", "never-made"]).expect(3);
        assert!(ran.err.contains("need root"), "{}", ran.err);
        assert!(ran.err.contains("sudo labctl"), "{}", ran.err);
        assert_eq!(ran.out, "");
    }

    #[test]
    fn a_lab_that_is_not_up_is_known_without_root() {
        for command in ["down", "verify", "status", "capture"] {
            let host: &[&str] = if command == "capture" { &["--all"] } else { &[] };
            let ran = run_unprivileged(&[&[command, "never-made"], host].concat()).expect(4);
            assert!(ran.err.contains("\"never-made\" is not up"), "{command}: {}", ran.err);
            assert_eq!(ran.out, "", "{command}");
        }
    }

    #[test]
    fn a_mistake_in_the_command_line_comes_before_privileges() {
        run_unprivileged(&["up", "drs"]).expect(2);
    }

    #[test]
    fn list_needs_no_root() {
        run_unprivileged(&["list"]).expect(0);
    }
}

mod judge {
    use super::*;

    /// Plain captures of real Cilium, taken on the client, on the node that was asked and on the backend's node.
    fn cilium(name: &str) -> String {
        format!("{}/tests/captures/cilium-1.13-dsr/{name}.pcap", env!("CARGO_MANIFEST_DIR"))
    }

    fn all() -> [String; 3] {
        ["client", "worker", "worker2"].map(cilium)
    }

    fn judged(files: &[String], more: &[&str]) -> Ran {
        let mut args = vec!["judge"];
        args.extend(files.iter().map(String::as_str));
        args.extend(more);
        run(&args)
    }

    #[test]
    fn three_plain_files_tell_their_story_and_no_more() {
        let ran = judged(&all(), &[]).expect(6);
        let text = ran.out.lines().map(|line| match line.rsplit_once(", ") {
            // The last line ends in how long it took.
            Some((tally, _)) if line.starts_with("inconclusive") => tally,
            _ => line,
        });
        insta::assert_snapshot!(text.collect::<Vec<_>>().join("\n"));
    }

    #[test]
    fn programs_get_what_was_worked_out_and_for_what_somebody_vouches() {
        let ran = judged(&all(), &["--format", "json", "--complete", "worker"]).expect(6);
        let report: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
        assert_eq!((&report["schema"], &report["mode"]), (&"labctl.verify/v1".into(), &"dsr".into()));
        assert_eq!(report["vouched_for"], serde_json::json!(["worker"]));
        assert_eq!(report["provider"], serde_json::Value::Null);
        let inferred = report["inferred"].as_array().unwrap();
        assert!(inferred.contains(&"1 request from client 172.18.0.6 to frontend 172.18.0.4:32000".into()));
        let checks = report["checks"].as_array().unwrap();
        let of = |name: &str| checks.iter().find(|check| check["name"] == name).unwrap();
        for seen in ["handshake", "client-ip", "reply-source", "carrier", "ttl", "l2-source", "unaltered"] {
            assert_eq!(of(seen)["status"], "pass", "{seen}");
        }
        let doubts = of("return-path")["evidence"]["doubts"].to_string();
        assert!(doubts.contains("on worker2 is whole"), "{doubts}");
        assert!(!doubts.contains("on worker is whole"), "{doubts}");
    }

    #[test]
    fn the_order_and_the_names_of_files_change_nothing() {
        let files = [
            format!("c={}", cilium("worker2")),
            format!("a={}", cilium("client")),
            format!("b={}", cilium("worker")),
        ];
        let ran = judged(&files, &["--format", "json"]).expect(6);
        let report: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
        let inferred = report["inferred"].to_string();
        for note in ["a is the client's link", "b is the node that was asked", "c is the backend's node"] {
            assert!(inferred.contains(note), "{inferred}");
        }
    }

    #[test]
    fn one_file_alone_is_no_pass() {
        for name in ["client", "worker", "worker2"] {
            let ran = judged(&[cilium(name)], &[]);
            assert_eq!(ran.code, 6, "{name}\n{}\n{}", ran.out, ran.err);
        }
        for pair in [["client", "worker"], ["client", "worker2"], ["worker", "worker2"]] {
            let ran = judged(&pair.map(cilium), &[]);
            assert_eq!(ran.code, 6, "{pair:?}\n{}\n{}", ran.out, ran.err);
        }
    }

    #[test]
    fn the_wrong_mode_is_a_failure() {
        let ran = judged(&all(), &["--mode", "snat"]).expect(1);
        assert!(ran.out.contains("judged as snat, as was said; the packets look like dsr"), "{}", ran.out);
        assert!(ran.out.contains("FAIL return-path"), "{}", ran.out);
    }

    #[test]
    fn all_packets_are_written_with_the_verdict() {
        let dir = tempfile::tempdir().unwrap();
        let args = ["judge", &cilium("client"), &cilium("worker"), &cilium("worker2"), "-w", "all.pcapng"];
        run_in(dir.path(), &args).expect(6);
        let written = fs::File::open(dir.path().join("all.pcapng")).unwrap();
        let capture = labctl_wire::CaptureFile::read(written).unwrap();
        assert_eq!(capture.packets().len(), 26 + 12 + 10);
        let again = run_in(dir.path(), &["judge", "all.pcapng"]).expect(6);
        assert!(again.out.contains("PASS carrier"), "{}", again.out);
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("notes.txt"), "no packets").unwrap();
        fs::write(dir.path().join("empty.pcap"), "").unwrap();
        for (args, code, expected) in [
            (&["missing.pcap"][..], 2, "failed to read missing.pcap: No such file or directory"),
            (
                &["notes.txt"],
                2,
                "neither pcap nor pcapng, plain or compressed by gzip or zstd (it begins with 6e6f2070)",
            ),
            (&["empty.pcap"], 2, "the file is empty"),
            (
                &["."],
                2,
                ". is a folder\n  → name the captures in it; labctl verify --from judges the folder of a run",
            ),
            (&["a=notes.txt", "--role", "a=router"], 2, "\"router\" is no role: client, node or pod"),
            (&["a=notes.txt", "--node", "a"], 2, "it has no \"=\""),
            (&[], 2, "<FILE>"),
        ] {
            let ran = run_in(dir.path(), &[&["judge"], args].concat());
            assert_eq!(ran.code, code, "{args:?}: {}", ran.err);
            assert!(ran.err.contains(expected), "{args:?}: {}", ran.err);
        }
        let ran = judged(&[cilium("client"), cilium("client")], &[]).expect(2);
        assert!(ran.err.contains("two files are of host client"), "{}", ran.err);
        let ran = judged(&[cilium("client"), format!("again={}", cilium("client"))], &[]).expect(6);
        assert!(ran.err.contains("they hold the same packets at the same times"), "{}", ran.err);
        let ran = judged(&all(), &["--complete", "worker3"]).expect(2);
        assert!(
            ran.err.contains("failed to find host worker3 in these files: hosts are client, worker, worker2"),
            "{}",
            ran.err
        );
    }
}
