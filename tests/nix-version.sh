#!/bin/bash
# Makes the Nix of another Debian release usable on this machine, once, in the
# tests' cache: the programs with the libraries of that release, and no chroot.
# Prints the directory to put first in PATH. Needs root, a Debian mirror,
# debootstrap and patchelf; about two minutes.
# Usage: tests/nix-version.sh SUITE             such as trixie or sid
#        tests/nix-version.sh --possible        or one line that says why not
set -euo pipefail

if [ "$1" = --possible ]; then
    [ "$(id -u)" = 0 ] || { echo "unpacking another Debian release needs root"; exit 1; }
    for command in debootstrap patchelf dpkg-deb; do
        command -v "$command" >/dev/null || { echo "$command is not installed"; exit 1; }
    done
    exit 0
fi

suite=$1
mirror=${FLYWHEEL_TEST_MIRROR:-http://deb.debian.org/debian}
cache=${FLYWHEEL_TEST_CACHE:-$HOME/.cache/flywheel-tests}
made=$cache/nix-$suite
mkdir -p "$cache"
# A second caller waits and finds it made.
exec 9>"$made.lock"
flock 9
if [ ! -d "$made" ]; then
    part=$made.part
    rm -rf "$part" "$part.bootstrap"
    # Only the downloads are used: the first stage unpacks no more than the base.
    debootstrap --foreign --variant=minbase --include=nix-bin "$suite" "$part.bootstrap" "$mirror" >&2
    mkdir -p "$part/root" "$part/bin"
    # Where /bin, /lib and /lib64 are links, as in all releases of today.
    mkdir -p "$part/root/usr/bin" "$part/root/usr/lib" "$part/root/usr/lib64" "$part/root/usr/sbin"
    for dir in bin lib lib64 sbin; do ln -s "usr/$dir" "$part/root/$dir"; done
    for package in "$part.bootstrap"/var/cache/apt/archives/*.deb; do
        dpkg-deb --fsys-tarfile "$package" | tar -x -C "$part/root" --keep-directory-symlink
    done
    rm -rf "$part.bootstrap"
    mv "$part/root" "$part/lib-root"
    root=$made/lib-root
    loader=$(basename "$(echo "$part"/lib-root/lib64/ld-linux-*.so.*)")
    triplet=$(basename "$(dirname "$(echo "$part"/lib-root/usr/lib/*-linux-gnu/libc.so.6)")")
    cp -a "$part"/lib-root/usr/bin/nix* "$part/bin/"
    # DT_RPATH counts for the libraries of libraries as well.
    for program in "$part"/bin/nix*; do
        [ ! -L "$program" ] || continue
        patchelf --set-interpreter "$root/lib64/$loader" --force-rpath \
            --set-rpath "$root/usr/lib/$triplet" "$program"
    done
    mv "$part" "$made"
fi
"$made/bin/nix" --version >&2
echo "$made/bin"
