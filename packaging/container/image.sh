#!/usr/bin/env bash
# The OCI image, without a registry and without a container engine: static programs
# and the public certificate authorities of this machine. Writes
# target/container/flywheel.tar, an OCI archive for `podman load`, `docker load` or
# `skopeo copy`; its path is the last line printed.
# Usage: packaging/container/image.sh --binaries DIR     static flywheeld and flywheelctl
#
# Needs umoci and ca-certificates. packaging/release.sh makes static programs.
set -euo pipefail
cd "$(dirname "$0")/../.."
umask 022

[ "${1:-}" = --binaries ] && [ $# = 2 ] || { sed -n '2,6s/^# //p' "$0" >&2; exit 2; }
binaries=$2
command -v umoci >/dev/null || { echo "missing: umoci (apt-get install umoci)" >&2; exit 1; }
authorities=/etc/ssl/certs/ca-certificates.crt
[ -r "$authorities" ] || { echo "missing: $authorities (apt-get install ca-certificates)" >&2; exit 1; }
for program in flywheeld flywheelctl; do
    if readelf --program-headers "$binaries/$program" | grep -q INTERP; then
        echo "$binaries/$program needs libraries, which the image does not have: build it for a target such as x86_64-unknown-linux-musl" >&2
        exit 1
    fi
done

version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
target=${CARGO_TARGET_DIR:-target}/container
mkdir -p "$target"
work=$(mktemp -d "$(cd "$target" && pwd)/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
image=$work/image:$version
as_user=()
[ "$(id -u)" = 0 ] || as_user=(--rootless)

umoci init --layout "$work/image"
umoci new --image "$image"
umoci unpack "${as_user[@]}" --image "$image" "$work/bundle"
root=$work/bundle/rootfs
for program in flywheeld flywheelctl; do
    install -D -m 0755 "$binaries/$program" "$root/bin/$program"
    strip --strip-unneeded "$root/bin/$program"
done
install -D -m 0644 "$authorities" "$root$authorities"
install -D -m 0644 LICENSE-APACHE LICENSE-MIT -t "$root/usr/share/licenses/flywheel"
mkdir -p "$root/etc/flywheel" "$root/nix" "$root/run/flywheel" "$root/var/lib/flywheel" "$root/proc" "$root/sys" "$root/dev"
mkdir -m 1777 "$root/tmp"
printf 'root:x:0:0:root:/:/sbin/nologin\nflywheel:x:970:970:flywheel daemon:/var/lib/flywheel:/sbin/nologin\n' >"$root/etc/passwd"
printf 'root:x:0:\nflywheel:x:970:\n' >"$root/etc/group"
umoci repack --image "$image" "$work/bundle"
umoci config --image "$image" --config.entrypoint /bin/flywheeld --config.workingdir / \
    --config.env PATH=/bin --config.env STATE_DIRECTORY=/var/lib/flywheel --config.env RUNTIME_DIRECTORY=/run/flywheel \
    --config.user 0:970 --config.stopsignal SIGTERM \
    --config.label org.opencontainers.image.title=flywheel --config.label "org.opencontainers.image.version=$version" \
    --config.label "org.opencontainers.image.licenses=Apache-2.0 OR MIT"
umoci gc --layout "$work/image"
tar -C "$work/image" --sort=name --owner=0 --group=0 --mtime="@${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}" \
    -cf "$target/flywheel.tar" .
echo "$target/flywheel.tar"
