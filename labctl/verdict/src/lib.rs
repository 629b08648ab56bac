//! From captured packets and replies to a verdict and its reports.
//!
//! Owns: the checks, what each expects per mode and protocol, the verdict, and the reports. Does not own:
//! capturing, sending, or printing. Last stage of the flow: it reads [`Evidence`] and returns values and text.
//!
//! evidence → scene (what should be) and story (what was) → checks, which return findings with what they rest on → judge
//! → views.
//!
//! Three rules make a pass a proof. Each statement says what it rests on: packets seen, or absence at named places, and
//! the judge, not the check, turns a place that is not proven live and whole into inconclusive. Each packet is
//! explained: it differs from its last sighting only by what mode, carrier and hop demand, and a packet that nobody
//! can account for and that shows an address of the lab is an offence. Evidence can be damaged to test the judge:
//! what survives as a pass is a hole.

#[cfg(test)]
extern crate self as labctl_verdict;

mod check;
pub mod damage;
mod evidence;
pub mod foreign;
mod judge;
#[cfg(test)]
#[expect(dead_code, reason = "unit tests use their own part of the lab on paper")]
#[path = "../tests/lab/mod.rs"]
mod lab;
mod parallel;
mod proof;
mod result;
mod scene;
mod story;
pub mod view;
mod words;

pub use evidence::{Canaries, Evidence, KernelDrops, Observed, Origin, OwnProgram, Vouched};
pub use judge::{Explained, judge, judge_and_explain};
pub use result::{CheckResult, Judgement, Offence, SHOWN, Shown, Status, Verdict};
pub use view::{Report, SetupFailure};
