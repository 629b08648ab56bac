//! The judge, tested with damaged evidence of the lab on paper: nothing passes that should not.

#[expect(dead_code, reason = "this binary needs only part of the lab")]
mod lab;

use lab::{Paper, plan};
use labctl_model::Mode;
use labctl_verdict::{Verdict, damage};

#[test]
fn no_damage_goes_unnoticed() {
    for mode in [Mode::Dsr, Mode::Snat, Mode::Hybrid, Mode::Local] {
        let mut evidence = Paper::new(plan(mode)).run();
        let addresses = evidence.capture.link_addresses();
        evidence.capture.points.iter_mut().zip(addresses).for_each(|(info, mac)| info.mac = mac);
        let score = damage::test(&evidence, 400, 7).unwrap();
        let missed: Vec<_> = score.kinds.iter().filter(|(_, row)| row.missed > 0).collect();
        assert_eq!(score.missed(), 0, "{mode}: {missed:#?}");
        assert!(score.kinds.len() > 20, "{mode}: {:?}", score.kinds.keys());
    }
}

#[test]
fn a_run_that_does_not_pass_is_not_damaged() {
    let mut evidence = Paper::new(plan(Mode::Dsr)).run();
    evidence.capture.points[0].dropped = Some(1);
    assert_eq!(damage::test(&evidence, 1, 1), Err(damage::NotPassed(Verdict::Inconclusive)));
}
