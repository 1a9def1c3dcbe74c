#!/bin/bash
# The root file system that the container tests start from: Debian 13 with
# systemd, D-Bus and a multi-user Nix, made once and kept. Needs root and a
# Debian mirror; two to three minutes.
# Usage: tests/container/image.sh             makes it if need be, prints where it is
#        tests/container/image.sh --find      prints where it is, if it is there
set -euo pipefail

# What is in it. Another list is another image, so that an old one is not used.
suite=trixie
mirror=${FLYWHEEL_TEST_MIRROR:-http://deb.debian.org/debian}
include=systemd,systemd-sysv,dbus,procps,ca-certificates
packages="nix-bin nix-setup-systemd polkitd"
recipe=$(printf '%s\n' "$suite" "$include" "$packages" | sha256sum | cut -c1-8)

cache=${FLYWHEEL_TEST_CACHE:-$HOME/.cache/flywheel-tests}
image=$cache/$suite-$recipe
if [ "${1:-}" = --find ]; then
    [ -d "$image" ] && echo "$image"
    exit
fi
mkdir -p "$cache"
# Two at once: the second one waits and finds it made.
exec 9>"$cache/$suite.lock"
flock 9
if [ -d "$image" ]; then
    echo "$image"
    exit 0
fi
[ "$(id -u)" = 0 ] || { echo "making the container image needs root" >&2; exit 1; }

# Beside its place and then moved: what is there is whole.
part=$image.part
mounted() { umount -l "$part/proc" 2>/dev/null || true; }
trap mounted EXIT
mounted
rm -rf "$part"

debootstrap --variant=minbase --include="$include" "$suite" "$part" "$mirror" >&2
mount -t proc proc "$part/proc"
# Nothing is started while the image is made.
printf '#!/bin/sh\nexit 101\n' >"$part/usr/sbin/policy-rc.d"
chmod 755 "$part/usr/sbin/policy-rc.d"
inside() { chroot "$part" env DEBIAN_FRONTEND=noninteractive LC_ALL=C "$@" >&2; }
inside apt-get update -qq
# shellcheck disable=SC2086 # a list
inside apt-get install -y -qq --no-install-recommends $packages
inside apt-get clean
rm -rf "$part/usr/sbin/policy-rc.d" "$part/var/lib/apt/lists"
mounted
mv "$part" "$image"
echo "$image"
