//! From `up` to `down` and every way that is cut short: kills, signals, other commands, other people's hands.
//! Whatever happens, the machine ends as it began. Does not own: what labs do while they are up.

use std::fs::{self, File};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;

use crate::root::need_root;
use crate::verdict::text;
use crate::world::{Moments, Ran, Victim, World, eventually};

/// Cycles of the endurance test.
const CYCLES: u32 = 100;
/// SIGKILLs at moments that differ from run to run.
const KILLS: u32 = 10;
/// Roles that live only as long as the command that started them.
const SHORT_LIVED: [&str; 3] = ["node capture", "node fetch", "node agent"];

/// How long a whole command takes here, so that moments fall into all of it.
fn time_of(world: &World, args: &[&str]) -> Duration {
    let began = Instant::now();
    world.labctl(args).expect(0);
    began.elapsed()
}

/// The states of all labs by name.
fn states(world: &World) -> Vec<(String, String)> {
    let list = world.labctl(&["list", "--format", "json"]).expect(0).json();
    assert_eq!(list["schema"], "labctl.list/v1");
    let labs = list["labs"].as_array().expect("labs");
    let word = |lab: &serde_json::Value, key: &str| lab[key].as_str().expect("a word").to_owned();
    labs.iter().map(|lab| (word(lab, "name"), word(lab, "state"))).collect()
}

/// `gc`, again while a child of the killed command that has not reached its exec yet holds the lab's lock.
#[track_caller]
fn collect(world: &World) -> Ran {
    let ran = eventually(|| {
        let ran = world.labctl(&["gc"]).expect(0);
        if ran.err.contains("is left alone") { Err(ran.to_string()) } else { Ok(ran) }
    });
    ran.unwrap_or_else(|ran| panic!("gc finds a lab in use for ever:\n{ran}"))
}

#[track_caller]
fn expect_whole(world: &World, lab: &str) {
    world.labctl(&["verify", lab]).expect(0);
    let problems = &world.labctl(&["status", lab, "--format", "json"]).expect(0).json()["problems"];
    assert_eq!(problems.as_array().map(Vec::len), Some(0), "{problems}");
}

/// Waits until the roles of a command that is gone are gone too.
#[track_caller]
fn expect_no_short_lived_role(world: &World, lab: &str) {
    let roles = || -> Vec<_> {
        SHORT_LIVED.iter().flat_map(|role| world.processes_like(&[role, &format!("--lab {lab}")])).collect()
    };
    let gone = eventually(|| match roles() {
        left if left.is_empty() => Ok(()),
        left => Err(format!("{left:?}")),
    });
    gone.unwrap_or_else(|left| panic!("roles outlive their command: {left}"));
}

#[test]
fn a_lab_that_is_up_does_not_escape_a_snapshot() {
    need_root!();
    let world = World::new();
    let before = world.snapshot();
    world.labctl(&["up", "dsr", "--name", "seen"]).expect(0);
    let traces = world.snapshot().beyond(&before);
    for kind in [
        "+ ip netns list: labctl-seen-worker",
        "+ file /run/netns/labctl-seen-worker",
        "+ mount /run/netns/labctl-seen-worker",
        "+ file /run/labctl/seen/lab.json",
        "+ mount /run/labctl/seen/bpf",
        "+ process ",
    ] {
        assert!(traces.iter().any(|trace| trace.starts_with(kind)), "nothing of {kind:?} in {traces:#?}");
    }
    assert!(!world.new_programs().is_empty(), "no program was seen");
    // The rest of this file leans on it: nothing of a lab is in the network namespace of whoever made it.
    assert!(!traces.iter().any(|trace| trace.contains("ip -br link")), "{traces:#?}");
    world.labctl(&["down", "seen"]).expect(0);
    world.expect_as(&before, "a lab that was seen");
}

#[test]
fn a_hundred_cycles_leave_the_machine_as_it_was() {
    need_root!();
    let world = World::new();
    let before = world.snapshot();
    for cycle in 1..=CYCLES {
        world.labctl(&["up", "dsr", "--name", "cycle"]).expect(0);
        assert_eq!(world.processes_like(&["node serve", "--lab cycle"]).len(), 1, "cycle {cycle}");
        let down = world.labctl(&["down", "cycle"]).expect(0).says(&["cycle is down"]);
        // The backend is the one process that stays, and `down` says that it ended it.
        down.says(&["6 namespaces, 1 processes removed"]);
    }
    world.expect_as(&before, "a hundred cycles");
}

#[test]
fn the_real_machine_sees_nothing_of_a_lab_that_is_gone() {
    need_root!();
    let lab = crate::lab::Lab::up("dsr");
    let named = |program: &mut Command| {
        let output = program.output().expect("it runs");
        String::from_utf8_lossy(&output.stdout).contains(&lab.name)
    };
    let seen = || {
        [
            ("a namespace", named(Command::new("ip").args(["netns", "list"]))),
            ("a link", named(Command::new("ip").args(["-d", "link"]))),
            (
                "a mount",
                fs::read_to_string("/proc/self/mountinfo").is_ok_and(|text| text.contains(&lab.name)),
            ),
            ("a folder", fs::exists(format!("/run/labctl/{}", lab.name)).unwrap_or(true)),
            ("a process", named(Command::new("ps").args(["-eo", "args"]))),
        ]
    };
    let up = seen().map(|(what, is)| (what, is && what != "a link"));
    assert_eq!(up.iter().filter(|(_, is)| *is).count(), 4, "this test cannot see a lab: {up:?}");
    let down = lab.labctl(&["down", &lab.name]);
    assert!(down.status.success(), "{}", text(&down));
    for (what, is) in seen() {
        assert!(!is, "{what} stayed");
    }
}

#[test]
fn an_up_that_is_killed_at_any_moment_is_collected() {
    need_root!();
    let world = World::new();
    let before = world.snapshot();
    let whole = time_of(&world, &["up", "dsr", "--name", "killed"]);
    world.labctl(&["down", "killed"]).expect(0);
    let mut moments = Moments::new();
    for _ in 0..KILLS {
        let moment = moments.before(whole);
        let up = Victim::start(world.command(&["up", "dsr", "--name", "killed"]));
        let struck = up.strike_after(moment, Signal::SIGKILL);
        up.end();
        let gc = collect(&world);
        if !struck {
            // It was quicker than the moment: a lab that is up is nothing to collect.
            world.labctl(&["down", "killed"]).expect(0);
        }
        world.expect_as(&before, &format!("up, SIGKILL after {moment:?}, then gc, which said\n{gc}\n"));
    }
}

#[test]
fn a_down_that_is_killed_at_any_moment_is_collected() {
    need_root!();
    let world = World::new();
    let before = world.snapshot();
    world.labctl(&["up", "dsr", "--name", "killed"]).expect(0);
    let whole = time_of(&world, &["down", "killed"]);
    let mut moments = Moments::new();
    for _ in 0..KILLS / 2 {
        world.labctl(&["up", "dsr", "--name", "killed"]).expect(0);
        let moment = moments.before(whole);
        let down = Victim::start(world.command(&["down", "killed"]));
        down.strike_after(moment, Signal::SIGKILL);
        down.end();
        let gc = collect(&world);
        if states(&world) == [("killed".to_owned(), "up".to_owned())] {
            // It came before the first step. What is listed as up must be up.
            expect_whole(&world, "killed");
            world.labctl(&["down", "killed"]).expect(0);
            fs_remove_evidence(&world);
        }
        world.expect_as(&before, &format!("down, SIGKILL after {moment:?}, then gc, which said\n{gc}\n"));
    }
}

/// Evidence is the user's: labctl never removes that of a run that came to a verdict.
fn fs_remove_evidence(world: &World) {
    world.enter(|| fs::remove_dir_all(format!("{}/.labctl", crate::world::WORK))).expect("evidence was kept");
}

#[test]
fn a_verify_that_is_killed_leaves_the_lab_whole() {
    need_root!();
    let world = World::new();
    let before = world.snapshot();
    world.labctl(&["up", "dsr", "--name", "killed"]).expect(0);
    let whole = time_of(&world, &["verify", "killed"]);
    let mut moments = Moments::new();
    for _ in 0..KILLS / 3 {
        let verify = Victim::start(world.command(&["verify", "killed"]));
        verify.strike_after(moments.before(whole), Signal::SIGKILL);
        verify.end();
        expect_no_short_lived_role(&world, "killed");
        expect_whole(&world, "killed");
    }
    world.labctl(&["down", "killed"]).expect(0);
    fs_remove_evidence(&world);
    world.expect_as(&before, "verify with SIGKILL");
}

#[test]
fn an_up_that_gets_a_signal_undoes_itself() {
    need_root!();
    let world = World::new();
    let before = world.snapshot();
    let whole = time_of(&world, &["up", "dsr", "--name", "stopped"]);
    world.labctl(&["down", "stopped"]).expect(0);
    let mut moments = Moments::new();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().cycle().take(9) {
        let moment = moments.before(whole);
        let up = Victim::start(world.command(&["up", "dsr", "--name", "stopped"]));
        up.strike_after(moment, signal);
        let ran = up.end();
        match ran.code {
            Some(130) => assert!(ran.err.contains("interrupted"), "{ran}"),
            // The signal was later than the last step.
            Some(0) => drop(world.labctl(&["down", "stopped"]).expect(0)),
            // Before the first instruction of the program nobody can watch for signals.
            None if ran.err.is_empty() => {}
            _ => panic!("{signal} after {moment:?}: {ran}"),
        }
        world.expect_as(&before, &format!("{signal} {moment:?} into up"));
    }
}

#[test]
fn two_signals_undo_as_well_as_one() {
    need_root!();
    let world = World::new();
    let before = world.snapshot();
    let mut up = Victim::start(world.command(&["up", "dsr", "--name", "twice"]));
    up.heard("namespaces on");
    assert!(up.strike_after(Duration::ZERO, Signal::SIGINT), "up ended early");
    up.strike_after(Duration::from_millis(1), Signal::SIGINT);
    up.end().expect(130).says(&["interrupted; everything that was begun is undone"]);
    world.expect_as(&before, "two SIGINTs in the middle of up");
}

#[test]
fn a_verify_that_gets_a_signal_stops_its_captures() {
    need_root!();
    let world = World::with_lab("dsr", "stopped");
    let up = world.snapshot();
    let mut moments = Moments::new();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGINT] {
        // Enough traffic that it cannot be over before the signal.
        let long = ["verify", "stopped", "--requests", "20000", "--datagrams", "0"];
        let mut verify = Victim::start(world.command(&long));
        verify.heard("canaries sent");
        assert!(
            verify.strike_after(moments.before(Duration::from_millis(300)), signal),
            "too little traffic"
        );
        verify.end().expect(130).says(&["interrupted"]);
        expect_no_short_lived_role(&world, "stopped");
        // Neither a process nor half of the evidence; logs of the roles are the lab's.
        world.expect_as_but(&up, "verify with a signal", &["/run/labctl/stopped/log"]);
    }
    expect_whole(&world, "stopped");
}

#[test]
fn up_twice_is_no_work() {
    need_root!();
    let world = World::with_lab("dsr", "twice");
    let up = world.snapshot();
    world.labctl(&["up", "dsr", "--name", "twice"]).expect(0).says(&["nothing to do"]);
    world.expect_as_but(&up, "the second up", &[]);
}

#[test]
fn another_plan_under_the_same_name_is_refused() {
    need_root!();
    let world = World::with_lab("dsr", "mine");
    let up = world.snapshot();
    world
        .labctl(&["up", "snat", "--name", "mine"])
        .expect(2)
        .says(&["lab mine is up with another plan", "labctl down mine"]);
    world.expect_as_but(&up, "the refusal", &[]);
    expect_whole(&world, "mine");
}

#[test]
fn labs_with_the_same_addresses_live_side_by_side() {
    need_root!();
    let world = World::new();
    let before = world.snapshot();
    for (base, lab) in [("dsr", "left"), ("snat", "right")] {
        world.labctl(&["up", base, "--name", lab]).expect(0);
    }
    let both = ["left", "right"].map(|lab| Victim::start(world.command(&["verify", lab])));
    for verify in both {
        verify.end().expect(0);
    }
    world.labctl(&["verify"]).expect(2).says(&["several labs are up: left, right", "labctl verify left"]);
    world.labctl(&["down", "--all"]).expect(0).says(&["left is down", "right is down"]);
    world.labctl(&["down", "--all"]).expect(0).says(&["no lab is up"]);
    fs_remove_evidence(&world);
    world.expect_as(&before, "two labs");
}

#[test]
fn labs_of_another_mount_namespace_are_not_ours() {
    need_root!();
    let world = World::with_lab("dsr", "twin");
    let other = world.beside();
    other.labctl(&["list"]).expect(0).says(&["no lab is up"]);
    other.labctl(&["gc"]).expect(0).says(&["nothing to remove"]);
    other.labctl(&["down", "twin"]).expect(4);
    expect_whole(&world, "twin");
    other.labctl(&["up", "dsr", "--name", "twin"]).expect(0);
    expect_whole(&other, "twin");
    other.labctl(&["down", "twin"]).expect(0).says(&["1 processes removed"]);
    expect_whole(&world, "twin");
}

#[test]
fn two_commands_on_one_lab_do_not_meet() {
    need_root!();
    let world = World::with_lab("dsr", "shared");
    // The lock of a command that works on it, held by this very process.
    let folder = world.enter(|| File::open("/run/labctl/shared").expect("the lab's folder"));
    let lock = Flock::lock(folder, FlockArg::LockExclusiveNonblock).expect("nobody has it");
    let holder = format!("lab shared is in use by process {}", std::process::id());
    for args in [&["up", "dsr", "--name", "shared"][..], &["down", "shared"], &["verify", "shared"]] {
        world.labctl(args).expect(5).says(&[&holder, "wait for it or end it"]);
    }
    // Commands that only look need no lock.
    world.labctl(&["status", "shared"]).expect(0);
    assert_eq!(states(&world), [("shared".to_owned(), "up".to_owned())]);
    world.labctl(&["gc"]).expect(0).says(&["shared is left alone"]);
    drop(lock);
    expect_whole(&world, "shared");
}

#[test]
fn a_lab_that_lost_a_namespace_still_goes() {
    need_root!();
    let world = World::new();
    let before = world.snapshot();
    world.labctl(&["up", "dsr", "--name", "torn"]).expect(0);
    let deleted = world.program("ip").args(["netns", "del", "labctl-torn-worker2"]).status();
    assert!(deleted.expect("ip runs").success());
    let status = world.labctl(&["status", "torn"]).expect(0);
    assert!(status.out.contains("host worker2 has lost its namespace"), "{status}");
    world.labctl(&["down", "torn"]).expect(0).says(&["torn is down", "5 namespaces"]);
    world.expect_as(&before, "a lab without one of its namespaces");
}

#[test]
fn a_users_shell_inside_a_lab_survives_and_is_reported() {
    need_root!();
    let world = World::new();
    let before = world.snapshot();
    world.labctl(&["up", "dsr", "--name", "visited"]).expect(0);
    let mut shell = world
        .program("ip")
        .args(["netns", "exec", "labctl-visited-worker", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("ip runs");
    let entered = eventually(|| match fs::read(format!("/proc/{}/cmdline", shell.id())) {
        Ok(words) if words == b"cat\0" => Ok(()),
        other => Err(format!("{other:?}")),
    });
    entered.expect("ip becomes cat");
    let warning = format!("process {} (cat) still runs in a namespace of the lab", shell.id());
    world
        .labctl(&["down", "visited"])
        .expect(0)
        .says(&["visited is down: 6 namespaces, 1 processes", &warning]);
    assert!(shell.try_wait().expect("a child").is_none(), "down ended somebody's shell");
    world.expect_as_but(&before, "a lab with a visitor", &[]);
    drop(shell.stdin.take());
    assert!(shell.wait().expect("a child").success());
    world.expect_as(&before, "a lab whose visitor went");
}

#[test]
fn down_of_what_is_not_there_says_so() {
    need_root!();
    let world = World::new();
    let before = world.snapshot();
    world.labctl(&["down"]).expect(4).says(&["no lab is up"]);
    world.labctl(&["down", "nothing"]).expect(4).says(&["lab \"nothing\" is not up"]);
    world.labctl(&["gc"]).expect(0).says(&["nothing to remove"]);
    world.expect_as(&before, "looking for labs");
}

#[test]
fn a_broken_piece_is_named_and_up_mends_it() {
    need_root!();
    let world = World::with_lab("dsr", "broken");
    let delete = ["-n", "labctl-broken-worker", "link", "del", "eth0"];
    assert!(world.program("ip").args(delete).status().expect("ip runs").success());
    let status = world.labctl(&["status", "broken"]).expect(0);
    assert!(status.out.contains("worker:eth0 is gone"), "{status}");
    status.says(&["broken is not as up left it; its labctl up makes it anew, labctl down broken removes it"]);
    let json = world.labctl(&["status", "broken", "--format", "json"]).expect(0).json();
    let problems = json["problems"].as_array().expect("problems");
    assert!(problems.iter().any(|problem| problem == "worker:eth0 is gone"), "{problems:?}");
    world
        .labctl(&["up", "dsr", "--name", "broken"])
        .expect(0)
        .says(&["broken is up but damaged", "making it anew"]);
    expect_whole(&world, "broken");
}

#[test]
fn a_backend_that_was_ended_is_noticed() {
    need_root!();
    let world = World::with_lab("dsr", "silent");
    let serve = world.processes_like(&["node serve", "--lab silent"]);
    let [(pid, _)] = &serve[..] else { panic!("one backend: {serve:?}") };
    let killed = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid as i32), Signal::SIGKILL);
    killed.expect("it runs");
    let status = world.labctl(&["status", "silent"]).expect(0);
    assert!(status.out.contains("web-1 does not accept connections"), "{status}");
    world.labctl(&["up", "dsr", "--name", "silent"]).expect(0).says(&["silent is up but damaged"]);
    expect_whole(&world, "silent");
}

#[test]
fn an_up_that_fails_undoes_itself_unless_told_to_keep() {
    need_root!();
    let world = World::new();
    let before = world.snapshot();
    let up = ["up", "dsr", "--name", "failing"];
    Ran::of(world.without_bpf(&up)).expect(5).says(&["failed to start the datapath"]);
    world.expect_as(&before, "an up that failed");
    Ran::of(world.without_bpf(&[&up[..], &["--keep"]].concat())).expect(5).says(&["labctl down failing"]);
    assert_eq!(states(&world), [("failing".to_owned(), "incomplete".to_owned())]);
    world.labctl(&["verify", "failing"]).expect(4).says(&["lab \"failing\" is not complete"]);
    world.labctl(&["down", "failing"]).expect(0);
    world.expect_as(&before, "an up that failed and was kept");
}
