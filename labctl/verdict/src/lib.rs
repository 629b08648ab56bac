//! From captured packets and replies to a verdict and its reports.
//!
//! Owns: the checks, what each expects per mode and protocol, the verdict, and the reports. Does not own:
//! capturing, sending, or printing. Last stage of the flow: it reads [`Evidence`] and returns values and text.
//!
//! Two rules hold everywhere. What was *seen* may prove a violation at any time. That something was *not*
//! seen proves something only at a capture point that was proven live and lost no packet; otherwise the
//! check is inconclusive, never passed.

pub mod annotate;
mod case;
mod check;
mod context;
mod evidence;
mod findings;
mod judge;
pub mod report;

pub use evidence::{Canaries, Evidence};
pub use judge::{CheckResult, Judgement, Offence, Status, Verdict, judge};
pub use report::{Report, SetupFailure};
