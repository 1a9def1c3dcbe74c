#!/bin/sh
# compare.sh ATTIC ATTICD: measures the real attic client and flywheel beside each other, against the
# real atticd, and prints a table. ATTIC and ATTICD are the paths of the two programs. Needs Nix, and
# some ten minutes. FLYWHEEL_BIN_DIR may name a directory with flywheeld and flywheelctl.
set -eu
usage() {
    echo "usage: $0 ATTIC ATTICD (the paths of the attic client and of atticd)" >&2
    exit 2
}
[ $# -eq 2 ] || usage
for program; do
    if [ ! -f "$program" ] || [ ! -x "$program" ]; then
        echo "$0: $program is no program" >&2
        usage
    fi
done
command -v nix-store >/dev/null || { echo "$0: nix-store is missing; install Nix (nix-bin)" >&2; exit 2; }
ATTIC=$(realpath "$1")
ATTICD=$(realpath "$2")
export ATTIC ATTICD
cd "$(dirname "$0")/.."
exec cargo bench --quiet --bench figures -- compare
