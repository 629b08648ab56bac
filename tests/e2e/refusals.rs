//! Machines and wishes that labctl must refuse: each with a message that names the cause and the way out, its exit
//! code, and nothing left behind. Does not own: refusals that need neither root nor a lab; those are in
//! `labctl/tests/cli.rs`.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::mount::{MsFlags, mount};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

use serde_json::{Value, json};

use crate::root::need_root;
use crate::world::{Ran, Victim, WORK, World};

/// `nobody` on every Linux.
const NOBODY: u32 = 65534;
/// The number of CAP_SYS_ADMIN in `linux/capability.h`.
const CAP_SYS_ADMIN: libc::c_ulong = 21;

/// labctl as `nobody`, from a place that `nobody` can reach.
fn as_nobody(world: &World, args: &[&str]) -> Ran {
    let binary = world.enter(|| {
        let path = format!("{WORK}/labctl");
        fs::copy(env!("CARGO_BIN_EXE_labctl"), &path).expect("copy the binary");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a mode");
        path
    });
    let mut command = world.program(&binary);
    command.args(args);
    // SAFETY: three system calls on constants, after those that enter the world, which need root.
    unsafe {
        command.pre_exec(|| {
            let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
            setgroups(&[])?;
            setresgid(group, group, group)?;
            Ok(setresuid(user, user, user)?)
        });
    }
    let ran = Ran::of(command);
    world.enter(|| fs::remove_file(&binary)).expect("remove the copy");
    ran
}

/// Puts a file into the working folder.
fn write(world: &World, name: &str, content: &str) {
    world.enter(|| fs::write(format!("{WORK}/{name}"), content)).expect("write a file");
}

/// The built-in lab of this name with one thing changed.
fn changed(base: &str, from: &str, to: &str) -> String {
    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("../labs/{base}.yaml"));
    let text = fs::read_to_string(source).expect("the lab file is there");
    assert!(text.contains(from), "{base}.yaml has no {from:?}");
    text.replacen(from, to, 1)
}

/// Everything in a folder of the world, by path.
fn files(world: &World, folder: &str) -> Vec<String> {
    world.enter(|| {
        let entries = fs::read_dir(folder).expect("the folder").flatten();
        entries.map(|entry| entry.path().display().to_string()).collect()
    })
}

#[test]
fn whoever_is_not_root_is_told_so() {
    need_root!();
    let world = World::with_lab("dsr", "roots");
    let up = world.snapshot();
    for args in [
        &["up", "dsr", "--name", "other"][..],
        &["verify", "roots"],
        &["capture", "roots", "--all", "--count", "1"],
        &["status", "roots"],
        &["down", "roots"],
        &["gc"],
    ] {
        let hint = format!("sudo labctl {}", args[0]);
        let ran = as_nobody(&world, args).expect(3).says(&["need root", "CAP_SYS_ADMIN", &hint]);
        assert_eq!(ran.out, "", "{args:?}");
    }
    // Looking is free.
    let list = as_nobody(&world, &["list", "--format", "json"]).expect(0).json();
    assert_eq!(list["labs"][0]["name"], "roots");
    world.expect_as_but(&up, "commands without root", &[]);
}

#[test]
fn root_without_its_powers_is_not_sent_to_sudo() {
    need_root!();
    let world = World::new();
    let before = world.snapshot();
    for args in [&["up", "dsr"][..], &["doctor"]] {
        let mut command = world.command(args);
        // SAFETY: one system call on integers. What is not in the bounding set is lost at exec.
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_CAPBSET_DROP, CAP_SYS_ADMIN, 0, 0, 0) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            });
        }
        let ran = Ran::of(command).expect(3);
        let all = format!("{}{}", ran.out, ran.err);
        assert!(all.contains("start this container or session with CAP_SYS_ADMIN"), "{ran}");
        assert!(!all.contains("sudo labctl"), "{ran}");
    }
    world.expect_as(&before, "root without CAP_SYS_ADMIN");
}

#[test]
fn names_that_nothing_has_are_corrected() {
    need_root!();
    let world = World::with_lab("dsr", "shop");
    let up = world.snapshot();
    world.labctl(&["up", "drs"]).expect(2).says(&["there is no lab \"drs\"", "did you mean \"dsr\"?"]);
    for command in ["verify", "status", "down"] {
        let ran = world.labctl(&[command, "shpo"]).expect(4);
        ran.says(&["lab \"shpo\" is not up", "did you mean \"shop\"?"]);
    }
    let capture = |args: &[&str]| world.labctl(&[&["capture", "shpo"], args].concat());
    capture(&["--all", "--count", "1"]).expect(4).says(&["did you mean \"shop\"?"]);
    let capture = |args: &[&str]| world.labctl(&[&["capture", "shop", "--count", "1"], args].concat());
    capture(&["--node", "wroker"])
        .expect(2)
        .says(&["lab shop has no host \"wroker\"", "did you mean \"worker\"?"]);
    capture(&["--node", "worker", "-i", "eth7"])
        .expect(2)
        .says(&["host worker has no interface \"eth7\"", "did you mean \"eth0\"?"]);
    capture(&["--node", "worker", "-f", "tcp prot 32000"]).expect(2).says(&["failed to read the filter"]);
    world
        .labctl(&["verify", "shop", "--via", "wroker"])
        .expect(2)
        .says(&["lab shop has no node \"wroker\"", "did you mean \"worker\"?"]);
    world.expect_as_but(&up, "names that nothing has", &[]);
}

#[test]
fn a_name_that_somebody_has_is_left_to_him() {
    need_root!();
    let world = World::new();
    let add = ["netns", "add", "labctl-taken-worker"];
    assert!(world.program("ip").args(add).status().expect("ip runs").success());
    let before = world.snapshot();
    world.labctl(&["up", "dsr", "--name", "taken"]).expect(3).says(&[
        "labctl-taken-worker: somebody else has it",
        "rename the lab or run `ip netns del labctl-taken-worker`",
    ]);
    world.labctl(&["gc"]).expect(0);
    world.labctl(&["down", "taken"]).expect(4);
    world.expect_as(&before, "a name that was taken");
}

#[test]
fn evidence_needs_room_on_the_disk() {
    need_root!();
    let world = World::with_lab("dsr", "full");
    const DISK: &str = "/run/small";
    world.mount_tmpfs(DISK, "size=64k", MsFlags::empty());
    let up = world.snapshot();
    Ran::of(world.command_in(DISK, &["verify", "full", "--requests", "500", "--bytes", "4096"]))
        .expect(5)
        .says(&[".labctl/full/run-0001", "No space left on device"]);
    assert_eq!(files(&world, DISK), [""; 0], "a run without a result left files");
    let capture = ["capture", "full", "--all", "-w", "full.pcapng", "--for", "20s"];
    let mut capture = Victim::start(world.command_in(DISK, &capture));
    capture.heard("Ctrl-C ends it");
    world.labctl(&["verify", "full", "--requests", "200", "--bytes", "4096"]).expect(0);
    capture.end().expect(5).says(&["No space left on device"]);
    world.expect_as_but(
        &up,
        "a full disk",
        &["/run/small/full.pcapng", "/run/work/.labctl", "/run/labctl/full/log"],
    );
    world.labctl(&["verify", "full"]).expect(0);
}

#[test]
fn evidence_needs_a_folder_that_can_be_written() {
    need_root!();
    let world = World::with_lab("dsr", "sealed");
    const DISK: &str = "/run/sealed";
    world.mount_tmpfs(DISK, "size=64k", MsFlags::MS_RDONLY);
    world.enter(|| fs::write(format!("{WORK}/.labctl"), "")).expect("a file in the way");
    let up = world.snapshot();
    Ran::of(world.command_in(DISK, &["verify", "sealed"]))
        .expect(5)
        .says(&["write evidence to .labctl: ", "Read-only file system"]);
    world
        .labctl(&["verify", "sealed"])
        .expect(5)
        .says(&["write evidence to .labctl: ", "is a link or no folder"]);
    let place = ["verify", "sealed", "-o", "/run/sealed/verdict.json"];
    world.enter(|| fs::remove_file(format!("{WORK}/.labctl"))).expect("the file in the way");
    world.labctl(&place).expect(5).says(&["/run/sealed/verdict.json", "Read-only file system"]);
    world.expect_as_but(&up, "evidence without a place", &["/run/work/.labctl", "/run/labctl/sealed/log"]);
}

#[test]
fn state_needs_a_folder_that_can_be_written() {
    need_root!();
    let world = World::new();
    world.mount_tmpfs("/run/labctl", "size=64k", MsFlags::MS_RDONLY);
    let before = world.snapshot();
    let ran = world.labctl(&["up", "dsr"]).expect(5).says(&["/run/labctl/dsr", "Read-only file system"]);
    assert!(!ran.err.contains("need root"), "the cause is another one: {ran}");
    world.labctl(&["list"]).expect(0);
    world.expect_as(&before, "a run directory that cannot be written");
}

#[test]
fn a_full_disk_for_the_state_undoes_up() {
    need_root!();
    let world = World::new();
    // One block for the state file is not there.
    world.mount_tmpfs("/run/labctl", "size=4k,nr_inodes=4", MsFlags::empty());
    let before = world.snapshot();
    world.labctl(&["up", "dsr"]).expect(5).says(&["No space left on device"]);
    world.expect_as(&before, "an up without room for its state");
}

#[test]
fn a_fault_without_its_tool_is_refused_before_anything_is_made() {
    need_root!();
    let world = World::new();
    write(
        &world,
        "faulty.yaml",
        &format!("{}\nfaults: [{{name: drop-invalid}}]\n", changed("dsr", "name: dsr", "name: faulty")),
    );
    // A device is no program: hidden wherever it may be installed, and in no folder of PATH.
    world.enter(|| {
        let mut places: Vec<PathBuf> = ["/usr/local/sbin/nft", "/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft"]
            .iter()
            .filter_map(|path| fs::canonicalize(path).ok())
            .collect();
        places.sort();
        places.dedup();
        for place in places {
            mount(Some("/dev/null"), &place, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("hide nft");
        }
    });
    let before = world.snapshot();
    let mut up = world.command(&["up", "faulty.yaml"]);
    up.env("PATH", "/nowhere");
    Ran::of(up).expect(3).says(&["fault drop-invalid", "`nft` is not installed", "apt-get install nftables"]);
    world.expect_as(&before, "a fault without its tool");
}

#[test]
fn no_folder_of_the_system_for_pins_is_needed() {
    need_root!();
    let world = World::new();
    // Hides /sys/fs/bpf, which is often not mounted, and the cgroups beside it.
    world.enter(|| {
        mount(Some("test"), "/sys/fs", Some("tmpfs"), MsFlags::MS_RDONLY, None::<&str>)
            .expect("hide /sys/fs");
    });
    let before = world.snapshot();
    let doctor = world.labctl(&["doctor", "--format", "json"]).expect(0).json();
    assert_eq!(doctor["ready"], true, "{doctor}");
    world.labctl(&["up", "dsr", "--name", "unpinned"]).expect(0);
    world.labctl(&["status", "unpinned"]).expect(0);
    world.labctl(&["down", "unpinned"]).expect(0);
    world.expect_as(&before, "a lab without /sys/fs/bpf");
}

/// Names of what a report of doctor calls in the way.
fn in_the_way(report: &Value) -> Vec<&str> {
    let findings = report["findings"].as_array().expect("findings").iter();
    let lacks = findings.filter(|f| f["required"] == true && f["status"] != "ok");
    lacks.map(|f| f["name"].as_str().expect("a name")).collect()
}

#[test]
fn doctor_judges_for_the_provider_in_question() {
    need_root!();
    let world = World::new();
    let without_docker = |provider: &str, code: i32| {
        let mut doctor = world.command(&["doctor", "--format", "json", "--provider", provider]);
        doctor.env("DOCKER_HOST", "unix:///nowhere/docker.sock");
        Ran::of(doctor).expect(code).json()
    };
    assert_eq!(in_the_way(&without_docker("netns", 0)), Vec::<&str>::new());
    for provider in ["kind", "cluster"] {
        let report = without_docker(provider, 3);
        assert_eq!((&report["provider"], &report["ready"]), (&json!(provider), &json!(false)));
        assert!(in_the_way(&report).contains(&"docker"), "{report}");
    }
    // Labs on kind clusters take a Docker that one may use, not root.
    let lacks = |provider| {
        let ran = as_nobody(&world, &["doctor", "--format", "json", "--provider", provider]);
        let report = ran.expect(3).json();
        ["root", "docker"].map(|name| in_the_way(&report).contains(&name))
    };
    assert_eq!(lacks("netns"), [true, false]);
    assert_eq!(lacks("kind"), [false, true]);
}

#[test]
fn a_kernel_that_refuses_bpf_is_unfit() {
    need_root!();
    let world = World::new();
    let before = world.snapshot();
    let doctor = Ran::of(world.without_bpf(&["doctor", "--format", "json"])).expect(3).json();
    let findings = doctor["findings"].as_array().expect("findings");
    let missing: Vec<_> = findings.iter().filter(|f| f["status"] != "ok" && f["required"] == true).collect();
    assert!(missing.iter().any(|finding| finding["name"] == "tc-program"), "{missing:?}");
    for finding in &missing {
        assert!(finding["fix"].is_string() || finding["status"] == "unknown", "no way out: {finding}");
    }
    let up = Ran::of(world.without_bpf(&["up", "dsr"])).expect(5);
    // Which node, what was tried, and the kernel's own words.
    up.says(&["failed to start the datapath", "agent on", "Operation not permitted"]);
    world.expect_as(&before, "a kernel without BPF");
}

#[test]
fn a_bad_lab_file_is_shown_with_its_lines() {
    need_root!();
    let world = World::new();
    let cases = [
        // What to change, the line's text, and words of the message.
        (("mode: dsr", "mode: drs"), "mode: drs", "dsr"),
        (("nodePort: 32000", "nodePort: 80"), "nodePort: 80", "30000"),
        (("nodePort: 32000", "nodeport: 32000"), "nodeport: 32000", "nodePort"),
        (("{node: worker2, address", "{node: worker9, address"), "worker9", "did you mean `worker`?"),
        (("worker, address: 172.18.0.3", "worker, address: 172.18.0.4"), "172.18.0.4", "control-plane"),
        (("via: worker,", "via: wroker,"), "via: wroker", "worker"),
    ];
    let before = world.snapshot();
    for ((from, to), excerpt, word) in cases {
        let text = changed("dsr", from, to);
        let line = text.lines().position(|line| line.contains(excerpt)).expect("the line") + 1;
        write(&world, "bad.yaml", &text);
        let ran = world.labctl(&["up", "bad.yaml"]).expect(2);
        ran.says(&[&format!("bad.yaml:{line}:"), excerpt, "^", word]);
        world.enter(|| fs::remove_file(format!("{WORK}/bad.yaml"))).expect("the file");
    }
    world.expect_as(&before, "bad lab files");
}

#[test]
fn results_are_alone_on_stdout() {
    need_root!();
    let world = World::with_lab("dsr", "data");
    for (args, schema) in [
        (&["list"][..], "labctl.list/v1"),
        (&["status", "data"], "labctl.status/v1"),
        (&["verify", "data"], "labctl.verify/v1"),
        (&["doctor"], "labctl.doctor/v1"),
        (&["validate"], "labctl.validate/v1"),
    ] {
        let ran = world.labctl(&[args, &["--format", "json"]].concat()).expect(0);
        assert_eq!(ran.json()["schema"], schema);
        let first = ran.out.lines().nth(1).unwrap_or_default();
        assert!(first.trim_start().starts_with("\"schema\""), "the schema comes first: {first}");
    }
    let verify = |format: &str| world.labctl(&["verify", "data", "--format", format]);
    let junit = verify("junit").expect(0);
    assert!(junit.out.starts_with("<?xml"), "{junit}");
    assert!(junit.out.trim_end().ends_with("</testsuites>"), "{junit}");
    let github = verify("github").expect(0);
    assert!(github.out.lines().all(|line| line.starts_with("::")), "{github}");
    verify("yaml").expect(2).says(&["text", "json", "junit", "github"]);
    for silent in [&["up", "dsr", "--name", "data"][..], &["down", "data"], &["gc"]] {
        assert_eq!(world.labctl(silent).expect(0).out, "", "{silent:?} has no result");
    }
}

#[test]
fn colours_stay_out_of_pipes() {
    need_root!();
    let world = World::with_lab("dsr", "grey");
    let commands: [&[&str]; 6] = [
        &["verify", "grey"],
        &["status", "grey"],
        &["list"],
        &["doctor"],
        &["up", "dsr", "--name", "grey"],
        &["verify", "nothing"],
    ];
    for args in commands {
        let ran = world.labctl(args);
        assert!(!ran.out.contains('\x1b') && !ran.err.contains('\x1b'), "{args:?}: {ran}");
    }
    let coloured = world.labctl(&["--color", "always", "doctor"]).expect(0);
    assert!(coloured.out.contains('\x1b'), "{coloured}");
    // `script` gives it a terminal.
    let on_terminal = |no_color: Option<&str>| {
        let line = format!("{} status grey", env!("CARGO_BIN_EXE_labctl"));
        let mut script = world.program("script");
        script.args(["-qec", &line, "/dev/null"]).env("TERM", "xterm");
        script.envs(no_color.map(|value| ("NO_COLOR", value)));
        script.output().ok().map(Ran::from)
    };
    match on_terminal(Some("1")) {
        Some(ran) => assert!(!ran.expect(0).out.contains("\x1b[3"), "NO_COLOR was not heeded"),
        None => {
            let _ = writeln!(io::stderr(), "SKIPPED NO_COLOR on a terminal: script(1) is not installed");
        }
    }
}

#[test]
fn a_reader_that_goes_away_ends_a_capture() {
    need_root!();
    let world = World::with_lab("dsr", "piped");
    let mut capture: Command = world.command(&["capture", "piped", "--all"]);
    capture.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = capture.spawn().expect("labctl starts");
    drop(child.stdout.take());
    // Its next packet has nobody to go to.
    world.labctl(&["verify", "piped"]).expect(0);
    let ran: Ran = child.wait_with_output().expect("it ends").into();
    ran.expect(0);
    assert_eq!(world.processes_like(&["node capture"]).len(), 0);
    for args in [&["status", "piped"][..], &["list"], &["doctor"]] {
        let mut command = world.command(args);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("labctl starts");
        drop(child.stdout.take());
        let ran: Ran = child.wait_with_output().expect("it ends").into();
        assert_eq!(ran.expect(0).err, "", "{args:?}");
    }
}
