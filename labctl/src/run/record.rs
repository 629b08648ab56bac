//! `evidence.json`: everything that the judge knew of a run but the packets, which lie beside it in `flow.pcapng`.
//!
//! Owns: its form, and reading a run's folder again. Does not own: where the folder is ([`super::run_dir`]), or judging.
//! A folder may be anybody's: what is read is bounded, and nothing outside the folder is opened.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use labctl_model::Plan;
use labctl_verdict::{Evidence, Verdict};
use labctl_wire::{CaptureError, CaptureFile};
use serde::{Deserialize, Serialize};

/// Name and version of the form.
const SCHEMA: &str = "labctl.evidence/v1";

/// The file with everything but the packets.
pub(crate) const FILE: &str = "evidence.json";

/// The file with the packets.
pub(crate) const PACKETS: &str = "flow.pcapng";

/// The verdict; written last, so that a run which has it is complete.
pub(crate) const RESULTS: &str = "results.json";

/// The verdict for CI systems.
pub(crate) const JUNIT: &str = "junit.xml";

/// All that a run's folder holds.
pub(crate) const FILES: [&str; 4] = [FILE, PACKETS, JUNIT, RESULTS];

/// No run says more than this.
const LARGEST_RECORD: u64 = 256 << 20;

/// Of a comment in the packets' file (draft-ietf-opsawg-pcapng section 3.5: 16 bits of length).
const LARGEST_COMMENT: usize = 60_000;

/// Of all comments in a header: more would keep Wireshark busy with what nobody reads there.
const LARGEST_HEADER: usize = 1 << 20;

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
    /// It is an archive without the one or the other.
    #[error("read {}: it has no {missing}", path.display())]
    Missing {
        /// Which archive.
        path: PathBuf,
        /// What it lacks.
        missing: &'static str,
    },
    /// It is no archive.
    #[error("unpack {}: {source}", path.display())]
    Unpack {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
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

    /// What the header of the packets' file says of the run, for whoever has that file alone: first for people, then this
    /// record as JSON, in as many pieces as a comment's length makes of it.
    pub(crate) fn about(&self, verdict: Verdict) -> Vec<String> {
        let Self { labctl, kernel, run, evidence, .. } = self;
        let Plan { lab, mode, provider, .. } = &evidence.plan;
        let mut about = vec![format!(
            "{verdict}: lab {lab}, mode {mode}, provider {provider}, {run}, labctl {labctl}, Linux {kernel}"
        )];
        let json = serde_json::to_string(self).unwrap_or_default();
        if json.len() > LARGEST_HEADER {
            about.push(format!("the rest is in {FILE}: it is too long for a header"));
            return about;
        }
        let mut rest = json.as_str();
        while !rest.is_empty() {
            let (piece, more) = rest.split_at(rest.floor_char_boundary(LARGEST_COMMENT));
            about.push(piece.to_owned());
            rest = more;
        }
        about
    }

    /// Reads a run: its folder, or the archive that `labctl export` made of it.
    ///
    /// # Errors
    /// [`RecordError`].
    pub(crate) fn read(path: &Path) -> Result<Self, RecordError> {
        let meta = std::fs::metadata(path);
        if meta.is_ok_and(|meta| meta.is_file()) {
            return Self::unpack(path);
        }
        let record = path.join(FILE);
        let record = Self::of_json(&record, open(&record, LARGEST_RECORD)?)?;
        let packets = path.join(PACKETS);
        let input = open(&packets, LARGEST_CAPTURE)?;
        record.with_packets(&packets, input)
    }

    /// Reads an archive, whatever its files' folder is called and in whatever order they are.
    fn unpack(path: &Path) -> Result<Self, RecordError> {
        let failed = |source| RecordError::Unpack { path: path.to_owned(), source };
        let input = open(path, LARGEST_CAPTURE)?;
        let input = ruzstd::decoding::StreamingDecoder::new(input)
            .map_err(|error| failed(io::Error::other(format!("it is no zstd archive: {error}"))))?;
        let mut archive = tar::Archive::new(input.take(LARGEST_CAPTURE));
        let (mut record, mut capture) = (None, None);
        for entry in archive.entries().map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.path().map_err(failed)?.file_name().map(ToOwned::to_owned);
            match name.as_deref().and_then(|name| name.to_str()) {
                Some(FILE) => record = Some(Self::of_json(path, entry.take(LARGEST_RECORD))?),
                Some(PACKETS) => {
                    let read = CaptureFile::read(BufReader::new(entry));
                    let read =
                        read.map_err(|source| RecordError::Packets { path: path.to_owned(), source })?;
                    capture = Some(read);
                }
                _ => {}
            }
        }
        let missing = |missing| RecordError::Missing { path: path.to_owned(), missing };
        let mut record: Self = record.ok_or_else(|| missing(FILE))?;
        record.evidence.capture = capture.ok_or_else(|| missing(PACKETS))?;
        record.evidence.prove_live();
        Ok(record)
    }

    fn of_json(path: &Path, input: impl Read) -> Result<Self, RecordError> {
        let json = |source| RecordError::Json { path: path.to_owned(), source };
        // The schema first: another version's fields would only confuse.
        let value: serde_json::Value = serde_json::from_reader(input).map_err(json)?;
        let found = value.get("schema").and_then(|schema| schema.as_str()).unwrap_or_default();
        if found != SCHEMA {
            return Err(RecordError::Schema { path: path.to_owned(), found: found.to_owned() });
        }
        serde_json::from_value(value).map_err(json)
    }

    fn with_packets(mut self, path: &Path, input: impl Read) -> Result<Self, RecordError> {
        let read = CaptureFile::read(input);
        self.evidence.capture =
            read.map_err(|source| RecordError::Packets { path: path.to_owned(), source })?;
        self.evidence.prove_live();
        Ok(self)
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
