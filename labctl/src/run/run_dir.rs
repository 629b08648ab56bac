//! The folder of one run: `.labctl/<lab>/run-NNNN/` under the current directory.
//!
//! Owns: choosing the number, giving everything to the user behind sudo, and taking the folder away again
//! when the run came to no result. Does not own: what is written into it.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

/// The folder for evidence, under the current directory.
const ROOT: &str = ".labctl";

/// Evidence could not be kept.
#[derive(Debug, thiserror::Error)]
#[error("write evidence to {}: {source}", path.display())]
pub(crate) struct EvidenceError {
    path: PathBuf,
    source: io::Error,
}

impl EvidenceError {
    /// With the path that could not be written.
    pub(crate) fn at(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self { path, source }
    }
}

/// A run's folder. Dropped before [`RunDir::keep`], it is removed with everything in it.
#[derive(Debug)]
pub(crate) struct RunDir {
    path: PathBuf,
    kept: bool,
}

impl RunDir {
    /// Makes the next run's folder.
    ///
    /// # Errors
    /// When the current directory cannot be written.
    pub(crate) fn create(lab: &str) -> Result<Self, EvidenceError> {
        Self::create_in(Path::new(ROOT), lab)
    }

    fn create_in(root: &Path, lab: &str) -> Result<Self, EvidenceError> {
        let parent = root.join(lab);
        fs::create_dir_all(&parent).map_err(EvidenceError::at(&parent))?;
        give_away(root);
        give_away(&parent);
        let mut number = last_number(&parent) + 1;
        loop {
            let path = parent.join(format!("run-{number:04}"));
            match fs::create_dir(&path) {
                Ok(()) => {
                    give_away(&path);
                    return Ok(Self { path, kept: false });
                }
                // Another verify was quicker; making a folder is atomic, so each gets its own.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => number += 1,
                Err(error) => return Err(EvidenceError::at(path)(error)),
            }
        }
    }

    /// Its path, relative to the current directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Its own name: `run-0007`.
    pub(crate) fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Writes a file; a disk that is full shows here.
    ///
    /// # Errors
    /// When it cannot be written whole.
    pub(crate) fn write(
        &self,
        name: &str,
        content: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<PathBuf, EvidenceError> {
        let path = self.path.join(name);
        let written = || {
            let mut file = io::BufWriter::new(File::create(&path)?);
            content(&mut file)?;
            file.flush()
        };
        written().map_err(EvidenceError::at(&path))?;
        give_away(&path);
        Ok(path)
    }

    /// The run came to a result: the folder stays.
    pub(crate) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        // Nothing more can be done about a folder that does not want to go.
        let _ = fs::remove_dir_all(&self.path);
        // Parents that hold earlier runs are not empty and stay.
        for parent in self.path.ancestors().skip(1).take(2) {
            let _ = fs::remove_dir(parent);
        }
    }
}

/// The highest number of a run in this folder, 0 without any.
fn last_number(parent: &Path) -> u32 {
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.strip_prefix("run-")?.parse().ok();
    fs::read_dir(parent).into_iter().flatten().flatten().filter_map(number).max().unwrap_or(0)
}

/// Under sudo, evidence belongs to whoever typed the command, who will want to read and delete it.
fn give_away(path: &Path) {
    let id = |name: &str| std::env::var(name).ok().and_then(|id| id.parse::<u32>().ok());
    if let (Some(user), Some(group)) = (id("SUDO_UID"), id("SUDO_GID")) {
        // Without the right to give files away they stay root's, which is the usual state of things.
        let _ = chown(path, Some(user), Some(group));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_numbered_and_a_run_without_result_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join(".labctl");
        let first = RunDir::create_in(&root, "dsr").unwrap();
        assert_eq!(first.name(), "run-0001");
        first.write("results.json", |out| out.write_all(b"{}")).unwrap();
        first.keep();
        let second = RunDir::create_in(&root, "dsr").unwrap();
        assert_eq!(second.name(), "run-0002");
        drop(second);
        assert!(root.join("dsr/run-0001/results.json").exists());
        assert!(!root.join("dsr/run-0002").exists());
        fs::remove_dir_all(root.join("dsr/run-0001")).unwrap();
        drop(RunDir::create_in(&root, "dsr").unwrap());
        assert!(!root.exists(), "an empty evidence folder stayed");
    }

    #[test]
    fn a_path_that_cannot_be_made_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("file");
        fs::write(&root, "").unwrap();
        let error = RunDir::create_in(&root, "dsr").unwrap_err().to_string();
        assert!(error.starts_with(&format!("write evidence to {}/dsr: ", root.display())), "{error}");
    }
}
