//! `labctl export`: a run's evidence as one file, to be judged again elsewhere.
//!
//! Owns: the archive. Does not own: what a run holds ([`crate::run::FILES`]) or reading it again
//! ([`crate::run::Record::read`]).

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::exit::Exit;
use crate::failure::{Failure, Outcome};
use crate::run::{FILES, Record};
use crate::ui::Ui;

/// Pack a run's evidence into one file (tar, zstd).
///
/// labctl verify --from FILE gives the same verdict anywhere, without root and without a lab. The packets in it are those of
/// the lab; evidence.json names this machine's kernel and the command line of the run.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The run's folder: .labctl/dsr/run-0001.
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// The file to write; LAB-RUN.tar.zst without it. One that exists is not written over.
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl Args {
    pub(crate) fn exec(self, ui: &Ui) -> Outcome {
        // What cannot be judged again is not worth sending.
        let record = Record::read(&self.run)
            .map_err(|error| Failure::because(Exit::Usage, "export the run", &error))?;
        let name = format!("{}-{}", record.evidence.plan.lab, record.run);
        let path = self.output.clone().unwrap_or_else(|| PathBuf::from(format!("{name}.tar.zst")));
        let packed = pack(&self.run, &name, &path);
        packed.map_err(|error| {
            Failure::because(Exit::SetupFailed, format_args!("write {}", path.display()), &error)
        })?;
        ui.text(&format!("{}\n", path.display()))?;
        Ok(Exit::Ok)
    }
}

/// Packs what there is of a run's files into a folder of this name.
fn pack(run: &Path, name: &str, path: &Path) -> io::Result<()> {
    // The archive's length is not known before: it goes through a file that has no name.
    let mut archive = tar::Builder::new(tempfile::tempfile()?);
    archive.mode(tar::HeaderMode::Deterministic);
    for file in FILES {
        let inside = Path::new(name).join(file);
        match File::open(run.join(file)) {
            Ok(mut input) => archive.append_file(inside, &mut input)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    let mut archive = archive.into_inner()?;
    archive.rewind()?;
    // Evidence holds the traffic of whoever typed the command.
    let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let input = io::BufReader::with_capacity(256 * 1024, archive);
    ruzstd::encoding::compress(input, &mut out, ruzstd::encoding::CompressionLevel::Fastest);
    out.flush()
}
