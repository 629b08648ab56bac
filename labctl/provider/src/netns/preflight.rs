//! Whether this machine can run a plan.
//!
//! Owns: privileges, kernel features and tools that `up` will need, and names that are taken. Does not own: the
//! checks of `labctl doctor`, which looks at the whole machine without a plan.

use std::env;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use labctl_model::{Fault, Plan};

use super::host_lock::names_in;
use super::mark::{self, Holding, Mark};
use super::namespace::{self, NETNS_DIR};
use super::state;
use super::topology::Topology;

/// Bits of the capability sets (linux/capability.h) with their names.
const NEEDED: [(u32, &str); 2] = [(12, "CAP_NET_ADMIN"), (21, "CAP_SYS_ADMIN")];
/// Where administrators' tools are, also when PATH does not say so.
const ADMIN_PATHS: &str = "/usr/local/sbin:/usr/sbin:/sbin";

/// Why this machine cannot run the plan.
#[derive(Debug, thiserror::Error)]
pub enum PreflightError {
    /// Not root, or root without its powers.
    #[error("make network namespaces: {missing} is missing; run as root, for example with sudo")]
    Privileges {
        /// The capability.
        missing: &'static str,
    },
    /// The kernel has no bpf file system.
    #[error("mount a bpf file system: the kernel has none; it needs CONFIG_BPF_SYSCALL")]
    NoBpfFs,
    /// A fault of the lab needs a program.
    #[error("set up fault {fault}: `{tool}` is not installed; try apt-get install {package}")]
    Tool {
        /// The fault's name in lab files.
        fault: &'static str,
        /// The program.
        tool: &'static str,
        /// Debian's package.
        package: &'static str,
    },
    /// Somebody else has a namespace of that name.
    #[error("name a namespace {namespace}: {owner} has it; {fix}")]
    NameTaken {
        /// The name in `/run/netns`.
        namespace: String,
        /// Who has it.
        owner: String,
        /// What to do.
        fix: String,
    },
    /// The plan gives two things one name.
    #[error("plan the lab: there are two of {what}; rename one in the lab file")]
    Clash {
        /// The thing.
        what: String,
    },
    /// A path or name is too long for the kernel.
    #[error("mark the namespaces: lab, host and {} together are too long; choose a shorter run directory", run_dir.display())]
    TooLong {
        /// The run directory.
        run_dir: PathBuf,
    },
    /// Something could not be read.
    #[error("read {}: {source}", path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
}

pub(super) fn run(run_dir: &Path, plan: &Plan) -> Result<(), PreflightError> {
    privileges()?;
    bpf_fs()?;
    tools(plan)?;
    let topology = Topology::of(plan);
    lengths(run_dir, &topology)?;
    names(run_dir, plan, &topology)
}

fn read(path: &str) -> Result<String, PreflightError> {
    fs::read_to_string(path).map_err(|source| PreflightError::Io { path: path.into(), source })
}

fn privileges() -> Result<(), PreflightError> {
    let status = read("/proc/self/status")?;
    let effective = status.lines().find_map(|l| l.strip_prefix("CapEff:")).map(str::trim);
    let bits = effective.and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or(0);
    match NEEDED.iter().find(|(bit, _)| bits & (1 << bit) == 0) {
        Some((_, missing)) => Err(PreflightError::Privileges { missing }),
        None => Ok(()),
    }
}

fn bpf_fs() -> Result<(), PreflightError> {
    let known = read("/proc/filesystems")?;
    if known.lines().any(|line| line.split_whitespace().last() == Some("bpf")) {
        Ok(())
    } else {
        Err(PreflightError::NoBpfFs)
    }
}

fn tools(plan: &Plan) -> Result<(), PreflightError> {
    let nft = plan
        .faults
        .iter()
        .map(|f| f.fault)
        .find(|fault| matches!(fault, Fault::DropInvalid | Fault::ForwardDrop | Fault::DropOptions));
    match nft {
        Some(fault) if find_tool("nft").is_none() => {
            Err(PreflightError::Tool { fault: fault.name(), tool: "nft", package: "nftables" })
        }
        _ => Ok(()),
    }
}

/// Full path of a program.
pub(super) fn find_tool(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(env::split_paths(ADMIN_PATHS))
        .map(|dir| dir.join(name))
        .find(|candidate| candidate.is_file())
}

fn lengths(run_dir: &Path, topology: &Topology) -> Result<(), PreflightError> {
    let fits = |host: &crate::Host| {
        Mark { lab: host.lab.clone(), host: host.name.clone(), run_dir: run_dir.to_owned() }.fits()
    };
    if topology.hosts.iter().all(fits) {
        Ok(())
    } else {
        Err(PreflightError::TooLong { run_dir: run_dir.to_owned() })
    }
}

/// Names that somebody else has, or that another lab is about to make. Leftovers of this very lab are no
/// obstacle: `up` removes them first.
pub(super) fn names(run_dir: &Path, plan: &Plan, topology: &Topology) -> Result<(), PreflightError> {
    if let Some(what) = topology.clash() {
        return Err(PreflightError::Clash { what });
    }
    let wanted = topology.namespaces();
    planned_by_others(run_dir, plan, &wanted)?;
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| PreflightError::Io { path, source }
    };
    let mut present = names_in(Path::new(NETNS_DIR)).map_err(io(Path::new(NETNS_DIR)))?;
    present.retain(|name| wanted.contains(name));
    for name in present {
        let path = namespace::path_of(&name);
        let file = File::open(&path).map_err(io(&path))?;
        let holding = mark::read_all([&file]).remove(0).map_err(io(&path))?;
        taken(run_dir, plan, name, holding)?;
    }
    Ok(())
}

fn planned_by_others(run_dir: &Path, plan: &Plan, wanted: &[String]) -> Result<(), PreflightError> {
    let io = |source| PreflightError::Io { path: run_dir.to_owned(), source };
    for lab in state::labs(run_dir).map_err(io)?.into_iter().filter(|l| *l != plan.lab) {
        let Some(theirs) = state::names(&run_dir.join(&lab)) else { continue };
        if let Some(namespace) = wanted.iter().find(|n| theirs.namespaces.contains(n)) {
            return Err(PreflightError::NameTaken {
                namespace: namespace.clone(),
                fix: format!("rename the lab or run `labctl down {lab}`"),
                owner: format!("lab {lab}"),
            });
        }
    }
    Ok(())
}

fn taken(run_dir: &Path, plan: &Plan, namespace: String, holding: Holding) -> Result<(), PreflightError> {
    let (owner, fix) = match holding {
        Holding::Marked(mark) if mark.is_of(run_dir, &plan.lab) => return Ok(()),
        // An empty file is what a kill between two calls leaves; the intent file then lists it.
        Holding::Nothing if is_listed(run_dir, plan, &namespace) => return Ok(()),
        Holding::Marked(mark) => {
            let owner = format!("lab {} of {}", mark.lab, mark.run_dir.display());
            (owner, "rename the lab or remove that one".to_owned())
        }
        Holding::Unmarked | Holding::Nothing => {
            ("somebody else".to_owned(), format!("rename the lab or run `ip netns del {namespace}`"))
        }
    };
    Err(PreflightError::NameTaken { namespace, owner, fix })
}

fn is_listed(run_dir: &Path, plan: &Plan, namespace: &str) -> bool {
    state::names(&run_dir.join(&plan.lab)).is_some_and(|n| n.namespaces.iter().any(|l| l == namespace))
}
