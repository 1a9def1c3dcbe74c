#!/usr/bin/env bash
# The files of a package in an archive for any Linux: unpack it at / with
# `tar -C / -xzf`, or take the two programs out of usr/bin. Writes
# target/tarball/flywheel-VERSION-ARCH-linux.tar.gz; its path is the last line printed.
# Usage: packaging/tarball.sh --binaries DIR     static flywheeld and flywheelctl
set -euo pipefail
cd "$(dirname "$0")/.."
umask 022

[ "${1:-}" = --binaries ] && [ $# = 2 ] || { sed -n '2,5s/^# //p' "$0" >&2; exit 2; }
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
target=${CARGO_TARGET_DIR:-target}/tarball
mkdir -p "$target"
work=$(mktemp -d "$target/build.XXXXXX")
trap 'rm -rf "$work"' EXIT

packaging/files.sh "$work" "$2"
install -D -m 0644 LICENSE-APACHE LICENSE-MIT -t "$work/usr/share/licenses/flywheel"
made=$target/flywheel-$version-$(uname -m)-linux.tar.gz
tar -C "$work" --sort=name --owner=0 --group=0 --numeric-owner \
    --mtime="@${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}" -c etc usr | gzip -9n >"$made"
echo "$made"
