//! Which lab a command means: a lab file for `up` and `validate`, a lab that is up for the others.
//!
//! Owns: finding the file (path, `./labs/<name>.yaml`, built-in copy) and choosing among the labs that
//! are up. Does not own: the file's grammar, or how labs that are up are found.

use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use labctl_model::{LabFileError, Plan, ProviderKind, builtin_lab, builtin_names};
use labctl_provider::{Lab, Labs};

use crate::exit::Exit;
use crate::failure::{Failure, did_you_mean};
use crate::host::require_privileges;
use crate::run::complete;

/// The folder that holds a project's labs, under the current directory.
const LABS_DIR: &str = "labs";

/// A lab file and where it came from.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct LabFile {
    /// Its path, or `<built-in dsr.yaml>`: what messages call it.
    pub(crate) origin: String,
    bytes: Vec<u8>,
}

impl LabFile {
    /// Finds the lab file that `lab` names.
    ///
    /// # Errors
    /// [`Exit::Usage`] for a lab that does not exist or a file that cannot be read.
    pub(crate) fn find(lab: &str) -> Result<Self, Failure> {
        if is_path(lab) {
            return Self::read(Path::new(lab));
        }
        let in_project = |extension| Path::new(LABS_DIR).join(format!("{lab}.{extension}"));
        match ["yaml", "yml"].map(in_project).into_iter().find(|path| path.exists()) {
            Some(path) => Self::read(&path),
            None => Self::built_in(lab).ok_or_else(|| unknown_lab(lab)),
        }
    }

    /// Reads a lab file; `-` is stdin.
    ///
    /// # Errors
    /// [`Exit::Usage`] for a file that is not there or not readable.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let (origin, bytes) = if path == Path::new("-") {
            let mut bytes = Vec::new();
            ("<stdin>".to_owned(), std::io::stdin().read_to_end(&mut bytes).map(|_| bytes))
        } else {
            (path.display().to_string(), fs::read(path))
        };
        match bytes {
            Ok(bytes) => Ok(Self { origin, bytes }),
            Err(error) => {
                let doing = format!("read the lab file {origin}");
                let failure = Failure::because(Exit::Usage, doing, &error);
                Err(if error.kind() == ErrorKind::NotFound { failure.hint(available()) } else { failure })
            }
        }
    }

    /// The built-in lab of this name.
    pub(crate) fn built_in(name: &str) -> Option<Self> {
        let text = builtin_lab(name)?;
        Some(Self { origin: format!("<built-in {name}.yaml>"), bytes: text.as_bytes().to_vec() })
    }

    /// Checks the file and turns it into what will be done.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub(crate) fn plan(&self) -> Result<Plan, LabFileError> {
        labctl_model::parse_bytes(&self.origin, &self.bytes)
    }
}

/// The lab files in `./labs`, sorted; empty when there is no such folder.
pub(crate) fn project_files() -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(LABS_DIR)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "yaml" || e == "yml"))
        .collect();
    files.sort();
    files
}

/// The lab that a command means among those that are up: the one that is named, or the only one.
///
/// # Errors
/// [`Exit::LabNotUp`] if it is not up, [`Exit::Usage`] if the name was left out and several are up.
pub(crate) fn lab_up<'a>(name: Option<&str>, up: &'a [String], command: &str) -> Result<&'a str, Failure> {
    match (name, up) {
        (Some(name), _) => {
            up.iter().find(|lab| *lab == name).map(String::as_str).ok_or_else(|| not_up(name, up))
        }
        (None, [only]) => Ok(only),
        (None, []) => Err(Failure::new(Exit::LabNotUp, "no lab is up").hint("labctl up dsr")),
        (None, many) => Err(Failure::new(Exit::Usage, format!("several labs are up: {}", many.join(", ")))
            .hint(format!("name one: labctl {command} {}", many[0]))),
    }
}

/// The lab that a command works with: complete, and up. What its provider needs is asked for on the way.
///
/// # Errors
/// As [`lab_up`], [`Exit::HostUnfit`] for a lab that needs root, and [`Exit::LabNotUp`] for one that is half-made or
/// whose state cannot be read.
pub(crate) fn find_up(labs: &Labs, name: Option<&str>, command: &str) -> Result<Lab, Failure> {
    let known = labs.list().map_err(|error| Failure::failed(Exit::SetupFailed, &error))?;
    let names: Vec<String> = known.iter().map(|entry| entry.name.clone()).collect();
    let name = lab_up(name, &names, command)?;
    let provider = known.iter().find(|entry| entry.name == name).map(|entry| entry.provider);
    let Some(provider) = provider else { return Err(not_up(name, &names)) };
    require_for(provider, &format!("labctl {command} {name}"))?;
    match labs.find(provider, name) {
        Ok(Some(lab)) if complete::is_marked(&lab) => Ok(lab),
        Ok(Some(_)) => Err(Failure::new(Exit::LabNotUp, format!("lab \"{name}\" is not complete"))
            .hint(format!("wait for its up to end, or: labctl down {name}"))),
        Ok(None) => Err(not_up(name, &names)),
        Err(error) => Err(Failure::failed(Exit::LabNotUp, &error)),
    }
}

/// What a provider needs of whoever types `command`: root for namespaces. Docker and clusters say themselves what they
/// need.
///
/// # Errors
/// [`Exit::HostUnfit`] with the remedy.
pub(crate) fn require_for(provider: ProviderKind, command: &str) -> Result<(), Failure> {
    match provider {
        ProviderKind::Netns => require_privileges(command),
        ProviderKind::Kind | ProviderKind::Cluster => Ok(()),
    }
}

fn not_up(name: &str, up: &[String]) -> Failure {
    let failure = Failure::new(Exit::LabNotUp, format!("lab \"{name}\" is not up"));
    match did_you_mean(name, up.iter().map(String::as_str)) {
        Some(guess) => failure.hint(guess),
        None if up.is_empty() => failure.hint(format!("labctl up {name}")),
        None => failure.hint(format!("up are: {}; start it with: labctl up {name}", up.join(", "))),
    }
}

fn unknown_lab(lab: &str) -> Failure {
    let failure = Failure::new(Exit::Usage, format!("there is no lab \"{lab}\""));
    let names = names();
    match did_you_mean(lab, names.iter().map(String::as_str)) {
        Some(guess) => failure.hint(guess),
        None => failure.hint(available()),
    }
}

/// Every lab that can be named here, each once.
fn names() -> Vec<String> {
    let stem = |path: PathBuf| path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let mut names: Vec<String> = project_files().into_iter().filter_map(stem).collect();
    names.extend(builtin_names().map(str::to_owned));
    names.sort();
    names.dedup();
    names
}

fn available() -> String {
    format!("labs here: {}; or give the path of a lab file", names().join(", "))
}

/// `labs/dsr.yaml`, `./dsr` and `dsr.yaml` are paths, `dsr` is a name.
fn is_path(lab: &str) -> bool {
    lab == "-" || lab.contains('/') || lab.ends_with(".yaml") || lab.ends_with(".yml")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labs(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn the_only_lab_need_not_be_named() {
        assert_eq!(lab_up(None, &labs(&["dsr"]), "verify").unwrap(), "dsr");
        assert_eq!(lab_up(Some("dsr"), &labs(&["dsr", "snat"]), "verify").unwrap(), "dsr");
    }

    #[test]
    fn several_labs_must_be_told_apart() {
        let failure = lab_up(None, &labs(&["dsr", "snat"]), "verify").unwrap_err();
        assert_eq!(failure.exit(), Exit::Usage);
        assert_eq!(failure.message(), "several labs are up: dsr, snat");
        assert_eq!(failure.next_step(), Some("name one: labctl verify dsr"));
    }

    #[test]
    fn a_lab_that_is_not_up_is_exit_code_four() {
        let none = lab_up(None, &[], "verify").unwrap_err();
        assert_eq!((none.exit(), none.next_step()), (Exit::LabNotUp, Some("labctl up dsr")));
        let typo = lab_up(Some("drs"), &labs(&["dsr"]), "verify").unwrap_err();
        assert_eq!((typo.exit(), typo.next_step()), (Exit::LabNotUp, Some("did you mean \"dsr\"?")));
    }

    #[test]
    fn names_and_paths_are_told_apart() {
        assert!(!is_path("dsr"));
        for path in ["./dsr", "labs/dsr.yaml", "dsr.yml", "-"] {
            assert!(is_path(path), "{path}");
        }
    }
}
