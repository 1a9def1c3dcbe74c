#!/usr/bin/env bash
# Shows the main job: real Nix builds stream into a cache while they run,
# survive a failure, and come back out of it.
#
#   pipeline 1   80 outputs, the 60th fails: 1 to 59 are in the cache when nix-build ends
#   pipeline 2   the store is deleted, the failure repaired: 59 come from the cache, 21 are built
#   pipeline 3   nothing is left to build
#
# Everything happens in a private store below a temporary directory, with the
# built-in cache on a loopback port; nothing of the host is touched, and all of
# it is removed at the end. The exit status is 0 only if everything happened as described.
# Usage: packaging/quickstart.sh [--binary FILE.tar.gz | --binary DIRECTORY]
#   --binary                uses released programs and compiles nothing: the archive of a
#                           release, or a directory with flywheeld and flywheelctl
#   KEEP=1                  keeps the temporary directory
#   REPORT=FILE.html        also writes the report of pipeline 1
#   FLYWHEEL_BIN=DIRECTORY  like --binary DIRECTORY
set -uo pipefail
from=$PWD
cd "$(dirname "$0")/.." || exit 1

OUTPUTS=80
FAILING=60
# How long each builder takes, so that the overlap can be seen.
MOMENT=0.12

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
[ -t 1 ] || say() { printf '\n%s\n' "$*"; }
die() { printf 'quickstart: %s\n' "$*" >&2; exit 1; }
has() { command -v "$1" >/dev/null 2>&1; }
now_ms() { date +%s%3N; }

# --- what is needed ---------------------------------------------------------

unpacked=
case ${1:-} in
    "") ;;
    --binary)
        given=${2:?--binary wants the archive of a release, or a directory}
        [ "${given#/}" != "$given" ] || given=$from/$given
        if [ -d "$given" ]; then
            FLYWHEEL_BIN=$given
        else
            [ -r "$given" ] || die "$given cannot be read"
            unpacked=$(mktemp -d) || exit 1
            tar -xzf "$given" -C "$unpacked" || { rm -rf "$unpacked"; die "$given cannot be unpacked: --binary wants the archive of a release, flywheel-VERSION-$(uname -m)-linux.tar.gz"; }
            FLYWHEEL_BIN=$unpacked/usr/bin
        fi
        [ -x "$FLYWHEEL_BIN/flywheeld" ] || die "$given has no flywheeld"
        ;;
    *) sed -n '/^# Usage/,/^set /{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2 ;;
esac

if ! has nix-build; then
    if has apt-get && { [ "$(id -u)" = 0 ] || { has sudo && sudo -n true 2>/dev/null; }; }; then
        say "Installing Nix (apt-get install nix-bin)"
        root=$([ "$(id -u)" = 0 ] || echo "sudo -n")
        $root apt-get update -qq && $root env DEBIAN_FRONTEND=noninteractive \
            apt-get install -y -qq --no-install-recommends nix-bin >/dev/null || die "nix-bin could not be installed"
    else
        die "nix-build is missing. On Debian or Ubuntu: sudo apt-get install nix-bin; on Fedora: sudo dnf install nix; elsewhere: https://nixos.org/download"
    fi
fi

# An installed copy of this script uses the installed programs.
[ -f Cargo.toml ] || FLYWHEEL_BIN=${FLYWHEEL_BIN:-$(dirname "$(command -v flywheeld)")}

# How to get a new enough Rust on this system. Debian 12 has none.
rust_help() {
    local id=
    [ ! -r /etc/os-release ] || id=$(. /etc/os-release 2>/dev/null && echo "$ID ${VERSION_ID:-}")
    case $id in
        fedora* | arch*) echo "    $([ "${id%% *}" = fedora ] && echo "dnf install" || echo "pacman -S") cargo gcc" ;;
        "debian 13"* | "ubuntu 24.04"* | "ubuntu 25"* | "ubuntu 26"*)
            echo "    apt-get install rustup build-essential && rustup default stable" ;;
        *) echo "    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh     (see https://rustup.rs)" ;;
    esac
    echo "With the programs of a release nothing is compiled: packaging/quickstart.sh --binary flywheel-VERSION-$(uname -m)-linux.tar.gz"
}

if [ -z "${FLYWHEEL_BIN:-}" ]; then
    needed=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
    { has cargo && has rustc; } || die "cargo is missing. flywheel needs Rust $needed or newer:
$(rust_help)"
    found=$(rustc --version | cut -d' ' -f2)
    [ "$(printf '%s\n' "$needed" "$found" | sort -V | head -n 1)" = "$needed" ] ||
        die "Rust $found is too old: flywheel needs Rust $needed or newer. With rustup: rustup update stable. Without it:
$(rust_help)"
    has cc || die "a C compiler is missing. On Debian or Ubuntu: apt-get install build-essential; on Fedora: dnf install gcc"
    # cargo shows its progress: some 330 packages.
    say "Compiling flywheel with Rust $found (3 to 10 minutes the first time)"
    cargo build --release --locked || die "the build failed: cargo's messages above give the reason"
    FLYWHEEL_BIN=$(cargo metadata --locked --no-deps --format-version 1 |
        sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/release
fi
export PATH="$FLYWHEEL_BIN:$PATH"
flywheeld --version || die "$FLYWHEEL_BIN/flywheeld does not run"
nix-build --version

# --- a private Nix ----------------------------------------------------------

began=$(now_ms)
top=$(mktemp -d "${TMPDIR:-/tmp}/flywheel.XXXXXX") || exit 1
daemon=
finish() {
    status=$?
    if [ -n "$daemon" ]; then
        kill "$daemon" 2>/dev/null
        wait "$daemon" 2>/dev/null
    fi
    if [ $status != 0 ] && [ -f "$top/flywheeld.log" ]; then
        printf '\nThe last lines of the daemon:\n' >&2
        tail -n 20 "$top/flywheeld.log" >&2
    fi
    chmod -R u+w "$top" 2>/dev/null
    [ -z "$unpacked" ] || rm -rf "$unpacked"
    [ "${KEEP:-}" = 1 ] && echo "kept: $top" || rm -rf "$top"
    exit $status
}
trap finish EXIT
trap 'exit 130' INT TERM

mkdir -p "$top/conf" "$top/work"
# Nix remembers for an hour that a cache lacks a path; pipeline 3 comes sooner.
cat >"$top/conf/nix.conf" <<CONF
narinfo-cache-negative-ttl = 0
build-users-group =
sandbox = false
substitute = false
max-jobs = 2
CONF
unset NIX_PATH NIX_CONFIG NIX_REMOTE NIX_SSL_CERT_FILE
export NIX_STORE_DIR=$top/store NIX_STATE_DIR=$top/var/nix NIX_LOG_DIR=$top/var/log/nix \
    NIX_CONF_DIR=$top/conf NIX_REMOTE=local NIX_USER_CONF_FILES=/dev/null HOME=$top XDG_CACHE_HOME=$top/xdg

# A chain of outputs: as in a real build, what comes later needs what came
# before. fails: which builder fails. The tools are where this script's are.
cat >"$top/work/tree.nix" <<NIX
{ fails ? 0 }:
let
  output = n: needs: derivation {
    name = "output-\${toString n}";
    system = builtins.currentSystem;
    builder = "/bin/sh";
    PATH = "$(dirname "$(command -v sleep)"):/usr/bin:/bin";
    inherit needs;
    args = [ "-c" (
      if n == fails
      then "echo 'output \${toString n} fails on purpose' >&2; exit 1"
      else "sleep $MOMENT; echo '\${toString n}' \$needs > \$out; head -c 20000 /dev/urandom >> \$out"
    ) ];
  };
  all = builtins.foldl'
    (made: n: made ++ [ (output n (if made == [ ] then [ ] else [ (builtins.elemAt made (n - 2)) ])) ])
    [ ] (builtins.genList (n: n + 1) $OUTPUTS);
in all
NIX

fresh_store() {
    chmod -R u+w "$top/store" "$top/var" 2>/dev/null
    # The daemon may make a GC root meanwhile.
    rm -rf "${top:?}/store" "${top:?}/var" 2>/dev/null || rm -rf "${top:?}/store" "${top:?}/var"
    mkdir -p "$top/store" "$top/var/nix"
    nix-store --init
}
fresh_store || die "the private store cannot be made"

# --- the daemon -------------------------------------------------------------

cat >"$top/flywheel.toml" <<TOML
socket = "$top/control.sock"
state_dir = "$top/state"

[nix]
store_dir = "$top/store"
state_dir = "$top/var/nix"

[caches.main]
endpoints = ["embedded"]

[embedded]
listen = "127.0.0.1:0"
TOML
export FLYWHEEL_SOCKET=$top/control.sock

start_daemon() {
    flywheeld --config "$top/flywheel.toml" >>"$top/flywheeld.log" 2>&1 &
    daemon=$!
    for _ in $(seq 200); do
        flywheelctl status --json 2>/dev/null | grep -q '"version"' && return 0
        kill -0 "$daemon" 2>/dev/null || die "flywheeld ended at once: see its log below"
        sleep 0.05
    done
    die "flywheeld did not answer within 10 s"
}

# How many of the 80 outputs the cache has: asked as Nix asks.
cached() {
    local n=0 path
    while read -r path; do
        path=${path##*/}
        has_narinfo "${path%%-*}" && n=$((n + 1))
    done <"$1"
    echo "$n"
}
has_narinfo() {
    exec 3<>"/dev/tcp/127.0.0.1/$port" || return 1
    printf 'GET /main/%s.narinfo HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' "$1" >&3
    local status
    read -r status <&3
    exec 3<&- 3>&-
    [[ $status == *" 200 "* ]]
}
field() { sed -n "s/.*\"$1\":\([0-9]*\).*/\1/p" <<<"$2"; }
built() { grep -c '^building ' "$1"; }
copied() { grep -c '^copying path ' "$1"; }

start_daemon
key=$(grep -o 'public_key="[^"]*"' "$top/flywheeld.log" | head -n 1 | cut -d'"' -f2)
port=$(grep -o 'address=127.0.0.1:[0-9]*' "$top/flywheeld.log" | head -n 1 | cut -d: -f2)
[ -n "$key" ] && [ -n "$port" ] || die "the log of flywheeld lacks the address or the public key of the built-in cache"

# The output paths, without building: what the cache is asked for.
nix-instantiate "$top/work/tree.nix" --add-root "$top/work/drv" --indirect >/dev/null 2>&1 ||
    die "the tree cannot be evaluated"
for n in $(seq $OUTPUTS); do
    nix-store -q --outputs "$top/work/drv$([ "$n" = 1 ] || echo "-$n")"
done >"$top/work/good"

# --- pipeline 1 -------------------------------------------------------------

say "Pipeline 1: $OUTPUTS outputs, output $FAILING fails"
session=$(flywheelctl session start --label "pipeline 1") || die "no session"
start=$(now_ms)
nix-build "$top/work/tree.nix" --arg fails $FAILING --keep-going --no-out-link >"$top/work/out1" 2>"$top/work/log1"
status=$?
took=$(($(now_ms) - start))
ready=$(cached "$top/work/good")
[ $status != 0 ] || die "nix-build succeeded, although one of its outputs fails on purpose"
summary=$(flywheelctl --json session end "$session") || die "session end failed"
flush=$(field flush_ms "$summary")
pushed=$(field pushed "$summary")
in_cache=$(cached "$top/work/good")
echo "nix-build failed as it should, after $took ms; built: $(($(built "$top/work/log1") - 1))"
echo "in the cache when it ended: $ready of $OUTPUTS; after the flush: $in_cache"
flywheelctl session end "$session"
echo "the last of $pushed uploads ended $flush ms after the build: $((took * 100 / (took + flush))) % of the time was building"
[ -z "${REPORT:-}" ] || flywheelctl session report "$session" --output "$REPORT" || die "no report"
[ "$pushed" = $((FAILING - 1)) ] || die "pushed $pushed, not $((FAILING - 1))"
[ "$in_cache" = $((FAILING - 1)) ] || die "the cache has $in_cache outputs, not $((FAILING - 1))"
[ "$ready" -ge $((FAILING - 2)) ] || die "only $ready outputs were in the cache when nix-build ended"

# --- pipeline 2 -------------------------------------------------------------

say "Pipeline 2: the store is deleted, output $FAILING repaired"
fresh_store || die "the private store cannot be made"
substitute=(--option substitute true --option substituters "http://127.0.0.1:$port/main"
    --option trusted-public-keys "$key")
session=$(flywheelctl session start --label "pipeline 2") || die "no session"
start=$(now_ms)
(cd "$top/work" && nix-build tree.nix "${substitute[@]}" >out2 2>log2) || die "nix-build failed: $(tail -n 3 "$top/work/log2")"
took=$(($(now_ms) - start))
summary=$(cd "$top/work" && flywheelctl --json session end "$session" --push 'result*') || die "session end failed"
flush=$(field flush_ms "$summary")
pushed=$(field pushed "$summary")
copied=$(copied "$top/work/log2")
built=$(built "$top/work/log2")
in_cache=$(cached "$top/work/good")
echo "nix-build succeeded after $took ms; from the cache: $copied, built: $built"
flywheelctl session end "$session"
echo "the last of $pushed uploads ended $flush ms after the build: $((took * 100 / (took + flush))) % of the time was building"
[ "$copied" = $((FAILING - 1)) ] || die "$copied were substituted, not $((FAILING - 1))"
[ "$built" = $((OUTPUTS - FAILING + 1)) ] || die "$built were built, not $((OUTPUTS - FAILING + 1))"
[ "$pushed" = $((OUTPUTS - FAILING + 1)) ] || die "pushed $pushed, not $((OUTPUTS - FAILING + 1))"
[ "$in_cache" = "$OUTPUTS" ] || die "the cache has $in_cache of $OUTPUTS outputs"

# --- pipeline 3 -------------------------------------------------------------

say "Pipeline 3: the store is deleted once more"
fresh_store || die "the private store cannot be made"
start=$(now_ms)
(cd "$top/work" && nix-build tree.nix "${substitute[@]}" --no-out-link >out3 2>log3) || die "nix-build failed"
took=$(($(now_ms) - start))
echo "nix-build succeeded after $took ms; from the cache: $(copied "$top/work/log3"), built: $(built "$top/work/log3")"
[ "$(built "$top/work/log3")" = 0 ] || die "something was built"
nix-store --verify --check-contents >"$top/work/verify" 2>&1 || die "nix-store --verify: $(tail -n 3 "$top/work/verify")"
echo "nix-store --verify --check-contents finds every path as it was built"

say "Everything happened as described, in $((($(now_ms) - began) / 1000)) s."
