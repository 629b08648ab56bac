//! Exit codes: a stable promise to scripts and CI. A code is never given a second meaning.

use std::process::ExitCode;

/// How a command ended, as its exit code says it.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done; for `verify`: every check passed.
    Ok = 0,
    /// A check failed.
    CheckFailed = 1,
    /// The command line or the lab file is wrong.
    Usage = 2,
    /// This machine cannot run the lab: privileges, kernel features.
    HostUnfit = 3,
    /// The command needs a lab that is up, and it is not.
    LabNotUp = 4,
    /// Setting something up failed or took too long.
    SetupFailed = 5,
    /// The evidence does not suffice for a verdict.
    Inconclusive = 6,
    /// SIGINT, SIGTERM or SIGHUP; everything that was begun has been undone.
    Interrupted = 130,
}

impl Exit {
    /// Every code with its meaning, as the manual prints them.
    pub const MEANINGS: &'static [(Self, &'static str)] = &[
        (Self::Ok, "done, or every check passed"),
        (Self::CheckFailed, "a check failed"),
        (Self::Usage, "the command line or the lab file is wrong"),
        (Self::HostUnfit, "this machine cannot run the lab (see labctl doctor)"),
        (Self::LabNotUp, "the lab is not up"),
        (Self::SetupFailed, "setting up failed or timed out"),
        (Self::Inconclusive, "the evidence does not suffice for a verdict"),
        (Self::Interrupted, "interrupted, and cleaned up"),
    ];
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
