#!/usr/bin/env bash
# The files of a package in an archive for any Linux: unpack it at / with
# `tar -C / -xzf`, or take the two programs out of usr/bin. Writes
# target/tarball/flywheel-VERSION-ARCH-linux.tar.gz; its path is the last line printed.
# Usage: packaging/tarball.sh --binaries DIR     static flywheeld and flywheelctl
set -euo pipefail
cd "$(dirname "$0")/.."
umask 022

. packaging/options.sh
[ "${1:-}" = --binaries ] || usage
read_options "$@"
mkdir -p "$target/tarball"
work=$(mktemp -d "$target/tarball/build.XXXXXX")
trap 'rm -rf "$work"' EXIT

packaging/files.sh "$work" "$binaries"
install -D -m 0644 LICENSE-APACHE LICENSE-MIT -t "$work/usr/share/licenses/flywheel"
made=$target/tarball/flywheel-$version-$(uname -m)-linux.tar.gz
tar -C "$work" --sort=name --owner=0 --group=0 --numeric-owner \
    --mtime="@$when" -c etc usr | gzip -9n >"$made"
echo "$made"
