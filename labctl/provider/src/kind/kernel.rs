//! Kernel settings that a kubelet changes for the whole machine, and their old values.
//!
//! Owns: one file that remembers the values from before the first kind lab, and which labs still need the kubelets'.
//! Whoever removes the last of them puts the old values back. In `/run`, so that it ends with the settings
//! themselves when the machine restarts; users who may not write there may not change the settings either.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

const FILE: &str = "/run/labctl-kernel.json";
/// Below `/proc/sys`: the tunables that a kubelet sets at its start (`setupKernelTunables` in pkg/kubelet/cm).
const SETTINGS: [&str; 6] = [
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
];

#[derive(Debug, Default, Serialize, Deserialize)]
struct Saved {
    values: BTreeMap<String, String>,
    /// State folder and name of every kind lab.
    labs: BTreeSet<String>,
}

/// Notes the values before the lab's kubelets start; the first lab's count, and none where kubelets of clusters that are no
/// labs run (`others`): they are not the machine's own any more. Without the right to write them back later there is
/// nothing to note.
pub(super) fn save(lab_dir: &Path, others: bool) -> io::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let mut file = open(true)?;
    let mut saved = read(&mut file);
    if saved.values.is_empty() && !others {
        saved.values = SETTINGS.iter().filter_map(|key| Some(((*key).to_owned(), value(key)?))).collect();
    }
    saved.labs.insert(lab_dir.display().to_string());
    write(&mut file, &saved)
}

/// What became of the old values.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Restored {
    /// `vm.overcommit_memory = 0` each.
    pub(super) settings: Vec<String>,
    /// The same, with what is in the way.
    pub(super) refused: Vec<String>,
}

/// Ends the lab's need; with the last lab's the old values return, unless `others` says that kubelets of clusters that are
/// no labs run. Doing it twice is the same as once.
pub(super) fn release(lab_dir: &Path, others: bool) -> io::Result<Restored> {
    let mut file = match open(false) {
        Ok(file) => file,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => {
            return Ok(Restored::default());
        }
        Err(e) => return Err(e),
    };
    let mut saved = read(&mut file);
    saved.labs.remove(&lab_dir.display().to_string());
    // A lab whose folder somebody removed by hand needs nothing any more.
    saved.labs.retain(|lab| Path::new(lab).exists());
    if !saved.labs.is_empty() || others {
        write(&mut file, &saved)?;
        return Ok(Restored::default());
    }
    let mut restored = Restored::default();
    for (key, old) in saved.values {
        if value(&key).as_ref() == Some(&old) {
            continue;
        }
        let line = format!("{} = {old}", key.replace('/', "."));
        match fs::write(Path::new("/proc/sys").join(&key), &old) {
            Ok(()) => restored.settings.push(line),
            Err(e) => restored.refused.push(format!("{line}: {e}")),
        }
    }
    fs::remove_file(FILE)?;
    Ok(restored)
}

fn value(key: &str) -> Option<String> {
    Some(fs::read_to_string(Path::new("/proc/sys").join(key)).ok()?.trim().to_owned())
}

fn open(create: bool) -> io::Result<Flock<File>> {
    loop {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(create)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(FILE)?;
        let file = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| io::Error::from(e))?;
        // The holder before us may have removed the file that we waited on.
        if fs::metadata(FILE).is_ok_and(|m| file.metadata().is_ok_and(|f| f.ino() == m.ino())) {
            return Ok(file);
        }
    }
}

/// An empty or damaged file says nothing.
fn read(file: &mut File) -> Saved {
    let mut text = String::new();
    let read = file.rewind().and_then(|()| file.read_to_string(&mut text));
    read.ok().and_then(|_| serde_json::from_str(&text).ok()).unwrap_or_default()
}

fn write(file: &mut File, saved: &Saved) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(&serde_json::to_vec(saved)?)
}
