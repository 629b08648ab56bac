//! SIGKILL at any moment of `up` and `down`, then `gc`.

use std::env;
use std::io::{BufRead, BufReader, Write, stdout};
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use labctl_provider::{Cancel, StepEvent};

use crate::isolation::{again, isolated, report};
use crate::lab::{down, machine, plan, provider, up};

/// Set in the process that will be killed.
const VICTIM: &str = "LABCTL_TEST_VICTIM";
/// One line of the victim's an event.
const EVENT: &str = "event";

/// Not a test by itself: what [`sigkill_then_gc`] kills.
#[test]
fn victim() {
    if env::var_os(VICTIM).is_none() {
        return;
    }
    let provider = provider();
    let mut say = |_: StepEvent| {
        writeln!(stdout(), "{EVENT}").expect("somebody listens");
    };
    let lock = provider.lock("dsr").expect("free");
    provider.up(&lock, &plan("dsr"), &Cancel::new(), &mut say).expect("it comes up");
    provider.down(lock, &mut say).expect("it goes away");
}

/// Lets the victim tell so many events, then kills it a little later. Whether it was alive until then.
fn kill_after(events: usize, later: Duration) -> bool {
    let mut child = again("crash::victim")
        .env(VICTIM, "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the victim starts");
    let lines = BufReader::new(child.stdout.take().expect("it was piped")).lines();
    // The test runner's own words may stand before the first event, on the same line.
    let told = lines.map_while(Result::ok).filter(|l| l.ends_with(EVENT)).take(events).count();
    // The delay is the random part, not a wait for anything.
    let until = Instant::now() + later;
    while Instant::now() < until {
        std::hint::spin_loop();
    }
    let _ = child.kill();
    child.wait().expect("the victim can be reaped");
    told == events
}

#[test]
fn sigkill_then_gc() {
    isolated("crash::sigkill_then_gc", || {
        let provider = provider();
        let before = machine();
        let mut kills = 0;
        let seed = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| d.as_nanos() as u64 | 1);
        report(&format!("seed {seed}"));
        let mut random = seed;
        for round in 0u64.. {
            // Each event, and a random moment after it (xorshift64, Marsaglia 2003).
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let later = Duration::from_micros(random % 2000);
            if !kill_after(round as usize + 1, later) {
                break;
            }
            kills += 1;
            let report = provider.gc().expect("the machine can be searched");
            for sweep in &report.swept {
                assert!(sweep.outcome.is_ok(), "round {round} of seed {seed}: {sweep:?}");
            }
            if report.kept == ["dsr"] {
                assert_eq!(provider.find("dsr").expect("it is whole").map(|l| l.check()), Some(vec![]));
                down(&provider, "dsr");
            }
            assert_eq!(machine(), before, "round {round} of seed {seed}");
        }
        report(&format!("{kills} kills"));
        assert!(kills > 40, "only {kills} kills");
    });
}

#[test]
fn up_after_a_kill_begins_anew() {
    isolated("crash::up_after_a_kill_begins_anew", || {
        let provider = provider();
        let before = machine();
        for events in [3, 12, 20, 28] {
            assert!(kill_after(events, Duration::ZERO));
            if provider.find("dsr").is_ok_and(|found| found.is_none()) || provider.find("dsr").is_err() {
                assert_eq!(up(&provider, &plan("dsr")).check(), []);
            }
            down(&provider, "dsr");
            assert_eq!(machine(), before, "killed after event {events}");
        }
    });
}
