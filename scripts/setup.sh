#!/usr/bin/env bash
# Sets up what is missing to build labctl, and to test it: scripts/setup.sh [build|test]
#
#   build   compiler, eBPF toolchain, bpf-linker: enough for `make demo`
#   test    build, and the tools that tests compare with (tshark, tcpdump, nft, ...); the default. Where a Docker
#           engine answers, also kind; Docker itself is its owner's matter, without it the kind tests are skipped
#
# Idempotent; when nothing is missing it changes nothing, says nothing and takes a fraction of a second.
# Exit codes: 0 all there, 2 usage, 3 something is missing that it cannot install (the message says what).
#
# The eBPF object needs one of three things, tried in this order, the same as datapath/agent/build.rs:
#   1. LABCTL_BPF_OBJECT: the path of a finished object; nothing else is needed then
#   2. a rustc whose sysroot has bpfel-unknown-none: Debian's rustc-web with libstd-rust-web-dev-bpf
#   3. rustup's nightly with rust-src
# 2 and 3 also need bpf-linker, built with an LLVM not older than the compiler's.
set -euo pipefail

# shellcheck source=scripts/rust.sh
source "$(dirname "${BASH_SOURCE[0]}")/rust.sh"

BPF_LINKER_VERSION=0.13.0
# Fetched where no kind is installed; labctl takes 0.20 and newer.
KIND_VERSION=0.30.0
# LLVM versions that this bpf-linker can be built with (its cargo features llvm-N).
BPF_LINKER_LLVM="21 22 23"

# Static linking needs libc.a (libc6-dev); cargo over https needs the certificates.
APT_BUILD=(gcc libc6-dev make pkg-config ca-certificates)
APT_TEST=(iproute2 nftables tcpdump tshark ethtool curl procps)
APT_BPF=(rustc-web cargo-web libstd-rust-web-dev-bpf)

tools="${XDG_CACHE_HOME:-$HOME/.cache}/labctl/tools"
apt_lists_fresh=no

say() { printf 'setup: %s\n' "$*" >&2; }

# unfit MESSAGE-LINE...: the machine lacks something that only its owner can add.
unfit() {
    printf 'setup: %s\n' "$@" >&2
    exit 3
}

# Runs a command as root. Without the right to, it says which command is missing and gives up:
# going on would only repeat the refusal.
as_root() {
    if [[ "$(id -u)" == 0 ]]; then
        "$@"
    elif command -v sudo >/dev/null && { sudo -n true 2>/dev/null || { [[ -t 0 ]] && sudo -v; }; }; then
        sudo "$@"
    else
        unfit "root is needed. Run this as root, then start again:" "    $*"
    fi
}

# --- packages of Debian and Ubuntu ---------------------------------------------------------------

has_apt() { command -v apt-get >/dev/null && command -v dpkg-query >/dev/null; }

apt_update() {
    say "updating the package lists"
    as_root apt-get update -qq
    apt_lists_fresh=yes
}

is_installed() { [[ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" == installed ]]; }

# Prints those of its arguments that are not installed, one per line; one call of dpkg-query.
not_installed() {
    local package installed
    # dpkg-query fails when it has never heard of one of them; the others are still printed.
    installed="$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' "$@" 2>/dev/null || true)"
    installed=" $(sed -n 's/^installed //p' <<<"$installed" | tr '\n' ' ')"
    for package in "$@"; do
        [[ "$installed" == *" $package "* ]] || printf '%s\n' "$package"
    done
}

# Prints the version that apt would install; fails if there is none.
candidate() {
    local version
    version="$(LC_ALL=C apt-cache policy "$1" 2>/dev/null | sed -n 's/^  Candidate: //p')"
    [[ -n "$version" && "$version" != "(none)" ]] && printf '%s\n' "$version"
}

# Like `candidate`, and looks again with fresh lists before it gives up: a new machine has none.
available() {
    candidate "$1" >/dev/null && return
    [[ "$apt_lists_fresh" == yes ]] && return 1
    apt_update && candidate "$1" >/dev/null
}

apt_install() {
    say "installing $*"
    local install=(env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends
        -o DPkg::Lock::Timeout=120 "$@")
    as_root "${install[@]}" >&2 && return
    # Old lists name packages that the archive no longer has.
    [[ "$apt_lists_fresh" == no ]] && apt_update && as_root "${install[@]}" >&2 && return
    unfit "apt-get could not install: $*" "Install them by hand (apt-get's own message is above), then start again."
}

apt_ensure() {
    local missing
    missing="$(not_installed "$@")"
    # shellcheck disable=SC2086 # one word a package
    [[ -z "$missing" ]] || apt_install $missing
}

# --- other distributions: check commands, say what to install ------------------------------------

distribution() { (. /etc/os-release 2>/dev/null && echo "${ID:-unknown} ${ID_LIKE:-}") || echo unknown; }

install_hint() {
    case " $(distribution) " in
        *" fedora "* | *" rhel "*)
            echo "    sudo dnf install gcc glibc-static make pkgconf-pkg-config iproute nftables tcpdump wireshark-cli ethtool curl procps-ng" ;;
        *" arch "*)
            echo "    sudo pacman -S --needed gcc make pkgconf iproute2 nftables tcpdump wireshark-cli ethtool curl procps-ng" ;;
        *" suse "* | *" opensuse "*)
            echo "    sudo zypper install gcc glibc-devel-static make pkgconf iproute2 nftables tcpdump wireshark ethtool curl procps" ;;
        *)
            echo "    gcc, libc with its static library (libc.a), make, pkg-config," \
                "iproute2, nftables, tcpdump, tshark, ethtool, curl, procps" ;;
    esac
}

require_commands() {
    local command missing=()
    for command in "$@"; do
        # sbin is not on every user's PATH; the tests look there too.
        PATH="$PATH:/usr/sbin:/sbin" command -v "$command" >/dev/null || missing+=("$command")
    done
    # gcc prints the bare name back if it does not find the file.
    if command -v cc >/dev/null && [[ "$(cc -print-file-name=libc.a)" == libc.a ]]; then
        missing+=("libc.a (static C library)")
    fi
    ((${#missing[@]} == 0)) || unfit "missing: $(printf '%s, ' "${missing[@]}" | sed 's/, $//')" \
        "This script installs packages on Debian and Ubuntu only. Here, install:" "$(install_hint)" \
        "then start again."
}

# --- Rust for user space -------------------------------------------------------------------------

ensure_rust() {
    find_rust >/dev/null && return
    local rustup
    rustup="$(command -v rustup || echo "${CARGO_HOME:-$HOME/.cargo}/bin/rustup")"
    if [[ -x "$rustup" ]]; then
        say "installing the toolchain that rust-toolchain.toml names"
        # Without arguments rustup before 1.28 prints help, so the channel is named.
        local channel
        channel="$(sed -n 's/^channel *= *"\(.*\)"/\1/p' "$repo/rust-toolchain.toml")"
        "$rustup" toolchain install "$channel" --profile minimal --component clippy --component rustfmt >&2 || true
        find_rust >/dev/null && return
        say "rustup could not install Rust $channel"
    fi
    if has_apt && debian_rust_is_usable; then
        install_debian_rust
        find_rust >/dev/null && return
    fi
    unfit "Rust $MIN_RUST or newer is needed, and there is no package of it here." \
        "Install it from https://rustup.rs (no root needed), then start again."
}

# Whether apt offers a rustc-web that is new enough, and installing it takes nobody's rustup away.
debian_rust_is_usable() {
    is_installed rustup && return 1 # Debian's package of rustup; the two conflict.
    available rustc-web && available libstd-rust-web-dev-bpf &&
        at_least "$(candidate rustc-web)" "$MIN_RUST"
}

install_debian_rust() {
    local package
    for package in cargo rustc; do
        ! is_installed "$package" ||
            say "$package-web replaces $package: the same commands, new enough for this project"
    done
    apt_ensure "${APT_BPF[@]}"
}

# --- Rust for the eBPF object --------------------------------------------------------------------

has_bpf_std() {
    local sysroot
    sysroot="$("$1" --print sysroot 2>/dev/null)" && [[ -d "$sysroot/lib/rustlib/bpfel-unknown-none/lib" ]]
}

has_nightly_src() {
    local sysroot
    command -v rustup >/dev/null && sysroot="$(rustup run nightly rustc --print sysroot 2>/dev/null)" &&
        [[ -d "$sysroot/lib/rustlib/src/rust/library/core" ]]
}

# Prints the command that compiles the eBPF crate; fails if there is none.
find_bpf_rustc() {
    local rustc
    for rustc in "${LABCTL_BPF_RUSTC:-}" /usr/bin/rustc; do
        [[ -n "$rustc" ]] && has_bpf_std "$rustc" && at_least "$(version_of "$rustc" || echo 0.0)" "$MIN_RUST" &&
            printf '%s\n' "$rustc" && return
    done
    has_nightly_src && echo "rustup run nightly rustc"
}

no_bpf_toolchain() {
    unfit "no compiler for the eBPF object, and none can be installed here. Any one of these will do:" \
        "  1. LABCTL_BPF_OBJECT=/path/to/datapath.o make ...   an object from a release" \
        "  2. LABCTL_BPF_RUSTC=/path/to/rustc make ...         a rustc $MIN_RUST or newer with the target bpfel-unknown-none" \
        "     (Debian: apt-get install ${APT_BPF[*]})" \
        "  3. rustup toolchain install nightly --component rust-src" \
        "2 and 3 also need bpf-linker $BPF_LINKER_VERSION: https://github.com/aya-rs/bpf-linker#installation"
}

ensure_bpf_rustc() {
    find_bpf_rustc >/dev/null && return
    if has_apt && debian_rust_is_usable; then
        install_debian_rust
    elif command -v rustup >/dev/null; then
        say "installing Rust nightly with rust-src for the eBPF object"
        rustup toolchain install nightly --profile minimal --component rust-src >&2 || true
    fi
    find_bpf_rustc >/dev/null || no_bpf_toolchain
}

# --- bpf-linker ----------------------------------------------------------------------------------

linker_fits() { [[ "$("$1" --version 2>/dev/null)" == "bpf-linker $BPF_LINKER_VERSION" ]]; }

find_linker() {
    local linker
    for linker in "${LABCTL_BPF_LINKER:-}" "$tools/bin/bpf-linker" "$(command -v bpf-linker || true)" \
        "${CARGO_HOME:-$HOME/.cargo}/bin/bpf-linker"; do
        [[ -n "$linker" ]] && linker_fits "$linker" && printf '%s\n' "$linker" && return
    done
    return 1
}

# Builds it with the system's LLVM of the compiler's major version.
build_linker() {
    local llvm="$1"
    [[ " $BPF_LINKER_LLVM " == *" $llvm "* ]] || return 1
    if has_apt && available "llvm-$llvm-dev"; then
        # LLVM's CMake files name libpolly, and bpf-linker's C++ parts need a libstdc++ to link.
        apt_ensure "llvm-$llvm-dev" "libpolly-$llvm-dev"
    fi
    local prefix="/usr/lib/llvm-$llvm"
    [[ -d "$prefix/include/llvm" ]] || return 1
    say "building bpf-linker $BPF_LINKER_VERSION with LLVM $llvm into $tools (once, about two minutes)"
    # Its own target folder: a CARGO_TARGET_DIR of the caller is for this workspace.
    env -u CARGO_TARGET_DIR -u RUSTFLAGS LLVM_PREFIX="$prefix" "$(find_rust)/cargo" install bpf-linker \
        --version "$BPF_LINKER_VERSION" --no-default-features --features "llvm-$llvm" \
        --root "$tools" --locked --force --quiet >&2
}

# Upstream's own static binary, for machines whose distribution has no such LLVM.
fetch_linker() {
    command -v cargo-binstall >/dev/null || return 1
    say "fetching bpf-linker $BPF_LINKER_VERSION with cargo-binstall into $tools"
    cargo-binstall --no-confirm --root "$tools" "bpf-linker@$BPF_LINKER_VERSION" >&2
}

ensure_linker() {
    find_linker >/dev/null && return
    local rustc llvm
    # Unquoted below: it may be `rustup run nightly rustc`.
    rustc="$(find_bpf_rustc)"
    # shellcheck disable=SC2086
    llvm="$($rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')"
    build_linker "$llvm" || fetch_linker || true
    find_linker >/dev/null && return
    unfit "bpf-linker $BPF_LINKER_VERSION is missing and could not be built: it needs LLVM $llvm or newer with its headers." \
        "Either install LLVM $llvm (https://apt.llvm.org) and run" \
        "    LLVM_PREFIX=/usr/lib/llvm-$llvm cargo install bpf-linker --version $BPF_LINKER_VERSION --no-default-features --features llvm-$llvm" \
        "or a finished binary: cargo binstall bpf-linker@$BPF_LINKER_VERSION" \
        "or set LABCTL_BPF_OBJECT to an object from a release."
}

# --- kind ----------------------------------------------------------------------------------------

# Whether the caller, or root for whom the tests run, reaches a Docker engine.
docker_answers() {
    command -v docker >/dev/null && { timeout 10 docker version >/dev/null 2>&1 ||
        timeout 10 sudo -n docker version >/dev/null 2>&1; }
}

# Upstream's own binary, compared with the checksum that is released with it.
fetch_kind() {
    local machine url
    case "$(uname -m)" in
        x86_64) machine=amd64 ;;
        aarch64) machine=arm64 ;;
        *) return 1 ;;
    esac
    url="https://github.com/kubernetes-sigs/kind/releases/download/v$KIND_VERSION/kind-linux-$machine"
    say "fetching kind $KIND_VERSION into $tools"
    local folder
    folder="$(mktemp -d)"
    if curl --fail --silent --show-error --location --max-time 300 --output "$folder/kind-linux-$machine" "$url" &&
        curl --fail --silent --show-error --location --max-time 60 --output "$folder/sum" "$url.sha256sum" &&
        (cd "$folder" && sha256sum --check --quiet sum); then
        install -D -m 755 "$folder/kind-linux-$machine" "$tools/bin/kind"
    fi
    rm -rf "$folder"
    [[ -x "$tools/bin/kind" ]]
}

# Never fails: without kind the tests that need it say that they are skipped.
ensure_kind() {
    docker_answers || return 0
    PATH="$tools/bin:$PATH" command -v kind >/dev/null && return
    fetch_kind ||
        say "kind is not installed and could not be fetched: the kind tests are skipped (https://kind.sigs.k8s.io)"
}

# -------------------------------------------------------------------------------------------------

main() {
    local scope="${1:-test}"
    [[ $# -le 1 && ("$scope" == build || "$scope" == test) ]] || {
        echo "usage: scripts/setup.sh [build|test]" >&2
        exit 2
    }
    [[ "$(uname -s)" == Linux ]] || unfit "labctl needs Linux: network namespaces, tc and eBPF."

    local packages=("${APT_BUILD[@]}") commands=(cc make)
    if [[ "$scope" == test ]]; then
        packages+=("${APT_TEST[@]}")
        commands+=(ip nft tcpdump tshark ethtool curl ps)
    fi
    if has_apt; then
        apt_ensure "${packages[@]}"
    else
        require_commands "${commands[@]}"
    fi

    ensure_rust
    if [[ -z "${LABCTL_BPF_OBJECT:-}" ]]; then
        ensure_bpf_rustc
        ensure_linker
    fi
    if [[ "$scope" == test ]]; then
        ensure_kind
    fi
}

main "$@"
