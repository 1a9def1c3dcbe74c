#!/usr/bin/env bash
# Every check of this project, on a fresh Debian with Rust, or any Linux that
# has the commands: format, lints, tests, documentation, dependencies.
# Usage: tests/run.sh     (no arguments, no questions; status 0: all is well)
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

NEXTEST=0.9.143
DENY=0.20.2
# A runner of others for .gitlab-ci.yml; newer ones want Node 22. tests/it/ci/gitlab.rs has the same number.
GITLAB_CI_LOCAL=4.61.0

export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-auto} GIT_TERMINAL_PROMPT=0
[ "${CI:-}" = true ] && export CARGO_TERM_PROGRESS_WHEN=never
export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH:/usr/sbin"
exec </dev/null

failed=() skipped=()
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# step HEADING COMMAND…: runs it, with a heading, its duration and how it ended.
step() {
    local heading=$1 began=$SECONDS before=${#skipped[@]} end=ok
    shift
    printf '\n=== %s\n' "$heading"
    if "$@"; then
        [ ${#skipped[@]} = "$before" ] || end=skipped
        printf '=== %s: %s, %d s\n' "$heading" "$end" $((SECONDS - began))
    else
        printf '=== %s: FAILED, %d s\n' "$heading" $((SECONDS - began))
        failed+=("$heading")
    fi
}

skip() {
    printf 'skipped: %s\n' "$1"
    skipped+=("$1")
}

has() { command -v "$1" >/dev/null 2>&1; }

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    else
        sudo -n "$@"
    fi
}

# What is needed: a command and the Debian package that brings it.
NEEDED="cc:build-essential git:git nix-build:nix-bin nix-store:nix-bin sqlite3:sqlite3 nginx:nginx-light dbus-daemon:dbus-daemon perl:perl-base"

system_packages() {
    local pair missing=() packages=()
    for pair in $NEEDED; do
        has "${pair%%:*}" || { missing+=("${pair%%:*}"); packages+=("${pair##*:}"); }
    done
    [ ${#missing[@]} = 0 ] && { echo "all there: $NEEDED"; return 0; }
    if ! has apt-get; then
        echo "missing: ${missing[*]}. This is no Debian: install them, then run this again."
        return 1
    fi
    if [ "$(id -u)" != 0 ] && ! { has sudo && sudo -n true 2>/dev/null; }; then
        echo "missing: ${missing[*]}, and neither root nor sudo without a password to install them:"
        echo "    apt-get install ${packages[*]}"
        return 1
    fi
    echo "installing: ${packages[*]}"
    as_root apt-get update -qq &&
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}"
}

# A cargo subcommand at a known version; one that is there already is taken.
cargo_tool() {
    if has "cargo-$1"; then
        cargo "$1" --version | head -n 1
    else
        cargo install --locked --quiet --version "$2" "cargo-$1"
    fi
}

rust_tools() {
    if ! has cargo; then
        echo "missing: cargo. Install Rust from https://rustup.rs, with rustfmt and clippy."
        return 1
    fi
    local part
    for part in fmt clippy; do
        cargo "$part" --version || { echo "missing: cargo $part (rustup component add rustfmt clippy)"; return 1; }
    done
    cargo_tool nextest "$NEXTEST" && cargo_tool deny "$DENY" && cargo fetch --locked
}

apt_install() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"
}

# What some tests are better with. They skip themselves without it, so that a
# machine without npm or its registry loses these tests only.
optional_tools() {
    local home="${FLYWHEEL_TEST_CACHE:-$HOME/.cache/flywheel-tests}/gitlab-ci-local-$GITLAB_CI_LOCAL" tool
    for tool in shellcheck lintian rsync npm; do
        has "$tool" || ! has apt-get || apt_install "$tool" >/dev/null 2>&1 ||
            { as_root apt-get update -qq && apt_install "$tool"; } >/dev/null 2>&1
    done
    [ -n "${NIXPKGS_LIB:-}" ] ||
        skip "the NixOS module's evaluation: NIXPKGS_LIB names no directory with nixpkgs' lib"
    has shellcheck || skip "shellcheck of the scripts: it is not here and cannot be installed"
    has lintian || skip "lintian of the Debian package: it is not here and cannot be installed"
    if ! has npm || ! has rsync; then
        skip "the GitLab pipeline: npm or rsync is not here and cannot be installed"
    elif [ ! -x "$home/node_modules/.bin/gitlab-ci-local" ]; then
        # Beside its place and then moved: what is there is whole.
        rm -rf "$home.part"
        if mkdir -p "$home.part" && timeout 300 npm install --prefix "$home.part" --no-audit --no-fund \
            --loglevel=error "gitlab-ci-local@$GITLAB_CI_LOCAL" >/dev/null 2>&1; then
            rm -rf "$home" && mv "$home.part" "$home"
        else
            rm -rf "$home.part"
            skip "the GitLab pipeline: gitlab-ci-local $GITLAB_CI_LOCAL cannot be had from npm"
        fi
    fi
    return 0
}

# A Debian with systemd inside this machine. The first time takes two to three
# minutes; afterwards it is there.
containers() {
    local why
    if [ "$(id -u)" = 0 ] && has apt-get && ! tests/container/boot.sh --possible >/dev/null; then
        apt_install systemd-container debootstrap dpkg-dev >/dev/null 2>&1
    fi
    if ! why=$(tests/container/boot.sh --possible); then
        skip "the tests in a container with systemd: $why"
    elif ! timeout 600 tests/container/image.sh >"$log" 2>&1; then
        tail -n 5 "$log"
        skip "the tests in a container with systemd: its image cannot be made from a Debian mirror"
    fi
    return 0
}

tests() {
    cargo nextest run --locked --no-fail-fast && cargo test --locked --doc --no-fail-fast
}

documentation() {
    RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps
}

# The advisory database is a git repository that not every machine can reach.
# An older copy is better than none; without any, that part alone is skipped.
advisories() {
    if timeout 180 cargo deny --locked fetch db >/dev/null 2>&1; then
        cargo deny --locked check advisories
    elif [ -n "$(ls -d "${CARGO_HOME:-$HOME/.cargo}"/advisory-dbs/*/ 2>/dev/null)" ]; then
        echo "the advisory database cannot be fetched; the copy of an earlier run is used"
        cargo deny --locked --offline check advisories
    else
        skip "advisories: the database (github.com/RustSec/advisory-db) cannot be fetched here"
    fi
}

dependencies() {
    cargo deny --locked check bans licenses sources
}

step "system packages" system_packages
step "Rust tools" rust_tools
step "tools that some tests want" optional_tools
step "a container that some tests want" containers
# Without them every step below would fail for that same reason.
if [ ${#failed[@]} = 0 ]; then
    step "format" cargo fmt --check
    step "lints" cargo clippy --locked --all-targets -- -D warnings
    step "tests" tests
    step "documentation" documentation
    step "dependencies: licences, bans, sources" dependencies
    step "dependencies: advisories" advisories
fi

printf '\n=== all steps, %d s\n' "$SECONDS"
[ ${#skipped[@]} = 0 ] || printf 'skipped: %s\n' "${skipped[@]}"
if [ ${#failed[@]} = 0 ]; then
    [ ${#skipped[@]} = 0 ] && echo "all checks passed" || echo "all checks that could run passed"
else
    printf 'FAILED: %s\n' "${failed[@]}"
    exit 1
fi
