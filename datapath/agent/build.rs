//! Builds the eBPF objects and hands their paths to the crate, which embeds them: the datapath, and the watch over what the
//! kernel drops.
//!
//! Three ways, tried in this order:
//! 1. `LABCTL_BPF_OBJECT` names a datapath object that somebody else built (a release artifact, a CI job), with `drops.o` beside it.
//! 2. A rustc whose sysroot has the target `bpfel-unknown-none` (Debian: `libstd-rust-web-dev-bpf`), with
//!    `RUSTC_BOOTSTRAP=1` and no build-std. `LABCTL_BPF_RUSTC` names one; else `/usr/bin/rustc` is asked.
//! 3. rustup's nightly with the component `rust-src`, with build-std.
//!
//! The last two need bpf-linker, from `LABCTL_BPF_LINKER`, `PATH`, labctl's tool folder or cargo's.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

const TARGET: &str = "bpfel-unknown-none";

const WAYS_OUT: &str = "
no toolchain can build the eBPF object. Three ways out:
  1. LABCTL_BPF_OBJECT=/path/to/datapath.o   an object that a release or another machine built, with drops.o beside it
  2. a rustc with the target bpfel-unknown-none, and bpf-linker. On Debian `make setup` installs both:
       apt-get install rustc-web cargo-web libstd-rust-web-dev-bpf llvm-22-dev libpolly-22-dev
       LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker --version 0.13.0 \\
           --no-default-features --features llvm-22
     (LABCTL_BPF_RUSTC and LABCTL_BPF_LINKER name them if they are not in the usual places)
  3. rustup toolchain install nightly --component rust-src && cargo install bpf-linker";

fn main() -> Result<()> {
    for name in ["LABCTL_BPF_OBJECT", "LABCTL_BPF_RUSTC", "LABCTL_BPF_LINKER"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").context("cargo sets OUT_DIR")?);
    if let Some(object) = env::var_os("LABCTL_BPF_OBJECT") {
        return take_object(Path::new(&object), &out);
    }
    watch_sources()?;
    let linker = find_linker();
    let toolchain = match &linker {
        Some(_) => find_toolchain(),
        None => None,
    };
    let (Some(linker), Some(toolchain)) = (linker, toolchain) else { bail!("{WAYS_OUT}") };
    let folder = toolchain.build(&linker)?;
    for object in OBJECTS {
        let built = folder.join(object);
        fs::copy(&built, out.join(format!("{object}.o")))
            .with_context(|| format!("copy {}", built.display()))?;
    }
    Ok(())
}

/// Programs of the eBPF crate, an object each.
const OBJECTS: [&str; 2] = ["datapath", "drops"];

fn take_object(object: &Path, out: &Path) -> Result<()> {
    for (from, to) in [(object.to_path_buf(), "datapath.o"), (object.with_file_name("drops.o"), "drops.o")] {
        println!("cargo::rerun-if-changed={}", from.display());
        fs::copy(&from, out.join(to)).with_context(|| {
            format!("LABCTL_BPF_OBJECT={}: {} cannot be read", object.display(), from.display())
        })?;
    }
    Ok(())
}

/// The eBPF crate is no dependency of this one, so cargo must be told about its sources.
fn watch_sources() -> Result<()> {
    for path in ["../ebpf/src", "../ebpf/Cargo.toml", "../types/src", "../types/Cargo.toml"] {
        let path = manifest_dir()?.join(path);
        println!("cargo::rerun-if-changed={}", path.display());
    }
    Ok(())
}

fn manifest_dir() -> Result<PathBuf> {
    Ok(env::var_os("CARGO_MANIFEST_DIR").context("cargo sets CARGO_MANIFEST_DIR")?.into())
}

/// The first executable bpf-linker.
fn find_linker() -> Option<PathBuf> {
    if let Some(named) = env::var_os("LABCTL_BPF_LINKER") {
        return Some(named.into());
    }
    let home = env::var_os("HOME").map(PathBuf::from);
    let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or(home.as_ref().map(|h| h.join(".cache")));
    let cargo = env::var_os("CARGO_HOME").map(PathBuf::from).or(home.map(|h| h.join(".cargo")));
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(cache.map(|c| c.join("labctl/tools/bin")))
        .chain(cargo.map(|c| c.join("bin")))
        .map(|folder| folder.join("bpf-linker"))
        .find(|candidate| candidate.is_file())
}

/// A compiler for the BPF target.
enum Toolchain {
    /// rustc and cargo; core for the target is in the sysroot.
    Sysroot { rustc: PathBuf, cargo: PathBuf },
    /// rustup's nightly; core is built from rust-src.
    Nightly,
}

fn find_toolchain() -> Option<Toolchain> {
    let named = env::var_os("LABCTL_BPF_RUSTC").map(PathBuf::from);
    named
        .into_iter()
        .chain([PathBuf::from("/usr/bin/rustc")])
        .find(|rustc| sysroot_has(rustc, &format!("lib/rustlib/{TARGET}/lib")))
        .map(|rustc| {
            let beside = rustc.with_file_name("cargo");
            let cargo = if beside.is_file() { beside } else { PathBuf::from("cargo") };
            Toolchain::Sysroot { rustc, cargo }
        })
        .or_else(|| nightly_has_source().then_some(Toolchain::Nightly))
}

fn sysroot_has(rustc: &Path, inside: &str) -> bool {
    print_sysroot(Command::new(rustc)).is_some_and(|root| root.join(inside).is_dir())
}

fn nightly_has_source() -> bool {
    let mut command = Command::new("rustup");
    command.args(["run", "nightly", "rustc"]);
    print_sysroot(command).is_some_and(|root| root.join("lib/rustlib/src/rust/library/core").is_dir())
}

fn print_sysroot(mut command: Command) -> Option<PathBuf> {
    forget_outer_cargo(&mut command);
    let output = command.args(["--print", "sysroot"]).output().ok().filter(|o| o.status.success())?;
    Some(PathBuf::from(String::from_utf8(output.stdout).ok()?.trim()))
}

/// The inner build must not inherit what the outer cargo decided for the host.
fn forget_outer_cargo(command: &mut Command) {
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        let outer = name.starts_with("CARGO_FEATURE_")
            || name.starts_with("CARGO_CFG_")
            || name.starts_with("CARGO_ENCODED")
            || name.starts_with("CARGO_BUILD_")
            || name.starts_with("CARGO_TARGET_")
            || name.starts_with("CARGO_PROFILE_");
        let named =
            ["RUSTC", "RUSTFLAGS", "RUSTDOC", "RUSTUP_TOOLCHAIN", "TARGET", "CARGO", "CARGO_MAKEFLAGS"];
        if outer || name.starts_with("RUSTC_") || named.contains(&&*name) {
            command.env_remove(&*name);
        }
    }
}

impl Toolchain {
    /// Builds the objects and gives their folder.
    fn build(&self, linker: &Path) -> Result<PathBuf> {
        // A folder per feature set: two builds at once must not pick up each other's object.
        let mutations = env::var_os("CARGO_FEATURE_MUTATIONS").is_some();
        let folder = target_folder()?.join(if mutations { "bpf-mutations" } else { "bpf" });
        let mut command = match self {
            Self::Sysroot { cargo, .. } => Command::new(cargo),
            Self::Nightly => Command::new("rustup"),
        };
        forget_outer_cargo(&mut command);
        match self {
            Self::Sysroot { rustc, .. } => {
                command.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1").arg("build");
            }
            Self::Nightly => {
                command.args(["run", "nightly", "cargo", "build", "-Z", "build-std=core"]);
            }
        }
        command
            .current_dir(manifest_dir()?.join("../.."))
            .args(["--package", "datapath-ebpf", "--bins", "--release", "--target", TARGET])
            // A folder of its own: the outer cargo holds the lock of its target folder while this runs
            // (rust-lang/cargo#6412).
            .arg("--target-dir")
            .arg(&folder)
            // No debug information: the object shrinks from 1.5 MB to 0.1 MB, and loads sooner.
            .env("RUSTFLAGS", format!("-C linker={} -C debuginfo=0", linker.display()));
        if mutations {
            command.args(["--features", "mutations"]);
        }
        let output = command.output().with_context(|| format!("run {command:?}"))?;
        if !output.status.success() {
            bail!("the eBPF object does not build:\n{}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(folder.join(TARGET).join("release"))
    }
}

/// The outer target folder: cargo marks it. One inner build then serves every outer profile.
fn target_folder() -> Result<PathBuf> {
    let out = PathBuf::from(env::var_os("OUT_DIR").context("cargo sets OUT_DIR")?);
    let marked = out.ancestors().find(|folder| folder.join("CACHEDIR.TAG").is_file());
    Ok(marked.unwrap_or(&out).to_path_buf())
}
