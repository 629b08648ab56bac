//! `evidence.json`: everything that the judge knew of a run but the packets, which lie beside it in `flow.pcapng`.
//!
//! Owns: its form, and reading a run's folder again. Does not own: where the folder is ([`super::run_dir`]), or judging.
//! A folder may be anybody's: what is read is bounded, and nothing outside the folder is opened.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use labctl_verdict::Evidence;
use labctl_wire::{CaptureError, CaptureFile};
use serde::{Deserialize, Serialize};

/// Name and version of the form.
const SCHEMA: &str = "labctl.evidence/v1";

/// The file with everything but the packets.
pub(crate) const FILE: &str = "evidence.json";

/// The file with the packets.
pub(crate) const PACKETS: &str = "flow.pcapng";

/// No run says more than this.
const LARGEST_RECORD: u64 = 256 << 20;

/// No capture that fits into memory with its index is larger.
const LARGEST_CAPTURE: u64 = 4 << 30;

/// A run as it is kept.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    schema: String,
    /// Version of labctl that wrote it.
    labctl: String,
    /// Release of the kernel.
    kernel: String,
    /// The command line.
    command: Vec<String>,
    /// Name of the run, `run-0007`.
    pub(crate) run: String,
    /// From the start of the run to the verdict.
    pub(crate) duration_ms: u64,
    /// What the judge knew.
    pub(crate) evidence: Evidence,
}

/// Why a run cannot be judged again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    /// A file is not there or cannot be read.
    #[error("open {}: {source}; a run's folder has {FILE} and {PACKETS}", path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no file, or larger than any run.
    #[error("open {}: it is {what}", path.display())]
    Unfit {
        /// Which.
        path: PathBuf,
        /// `larger than 256 MiB`, or no file at all.
        what: String,
    },
    /// It is no evidence.
    #[error("read {}: {source}", path.display())]
    Json {
        /// Which.
        path: PathBuf,
        /// Where and what.
        source: serde_json::Error,
    },
    /// It is evidence of another labctl.
    #[error("read {}: its schema is \"{found}\", and this labctl reads \"{SCHEMA}\"", path.display())]
    Schema {
        /// Which.
        path: PathBuf,
        /// What it says.
        found: String,
    },
    /// The packets are damaged.
    #[error("read {}: {source}", path.display())]
    Packets {
        /// Which.
        path: PathBuf,
        /// Where and what.
        source: CaptureError,
    },
}

impl Record {
    /// The record of a run that has just been judged.
    pub(crate) fn new(run: String, duration_ms: u64, evidence: Evidence) -> Self {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease");
        Self {
            schema: SCHEMA.to_owned(),
            labctl: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: kernel.unwrap_or_default().trim().to_owned(),
            command: std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect(),
            run,
            duration_ms,
            evidence,
        }
    }

    /// Writes everything but the packets.
    ///
    /// # Errors
    /// When the destination refuses the bytes.
    pub(crate) fn write(&self, out: &mut dyn io::Write) -> io::Result<()> {
        serde_json::to_writer_pretty(&mut *out, self).map_err(io::Error::other)?;
        out.write_all(b"\n")
    }

    /// Reads a run's folder.
    ///
    /// # Errors
    /// [`RecordError`].
    pub(crate) fn read(folder: &Path) -> Result<Self, RecordError> {
        let path = folder.join(FILE);
        let input = open(&path, LARGEST_RECORD)?;
        let json = |source| RecordError::Json { path: path.clone(), source };
        // The schema first: another version's fields would only confuse.
        let value: serde_json::Value = serde_json::from_reader(input).map_err(json)?;
        let found = value.get("schema").and_then(|schema| schema.as_str()).unwrap_or_default();
        if found != SCHEMA {
            return Err(RecordError::Schema { path, found: found.to_owned() });
        }
        let mut record: Self = serde_json::from_value(value).map_err(json)?;
        let path = folder.join(PACKETS);
        let input = open(&path, LARGEST_CAPTURE)?;
        record.evidence.capture =
            CaptureFile::read(input).map_err(|source| RecordError::Packets { path, source })?;
        record.evidence.prove_live();
        Ok(record)
    }
}

/// A plain file of at most `limit` bytes, and no more of it than that.
fn open(path: &Path, limit: u64) -> Result<impl Read + use<>, RecordError> {
    let failed = |source| RecordError::Open { path: path.to_owned(), source };
    let unfit = |what: String| RecordError::Unfit { path: path.to_owned(), what };
    // Before it is opened: opening a pipe would wait for its other end.
    let meta = std::fs::metadata(path).map_err(failed)?;
    if !meta.is_file() {
        return Err(unfit("no plain file".to_owned()));
    }
    if meta.len() > limit {
        return Err(unfit(format!("larger than {} MiB", limit >> 20)));
    }
    Ok(BufReader::with_capacity(256 * 1024, File::open(path).map_err(failed)?.take(limit)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_run_is_refused_with_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let refused = |folder: &Path| Record::read(folder).unwrap_err().to_string();
        let path = dir.path().join(FILE);
        assert!(refused(dir.path()).starts_with(&format!("open {}: No such file", path.display())));
        std::fs::write(&path, "{\"schema\": \"labctl.evidence/v9\"}").unwrap();
        assert!(
            refused(dir.path()).ends_with(
                "its schema is \"labctl.evidence/v9\", and this labctl reads \"labctl.evidence/v1\""
            )
        );
        std::fs::write(&path, "{\"schema\":\n \"labctl.evidence/v1\"}").unwrap();
        assert!(refused(dir.path()).contains("missing field"));
        std::fs::write(&path, "{\n nonsense").unwrap();
        assert!(refused(dir.path()).contains("line 2 column 2"));
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(refused(dir.path()).ends_with("it is no plain file"));
    }
}
