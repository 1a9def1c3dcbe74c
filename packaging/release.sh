#!/usr/bin/env bash
# The files of a release for this machine's processor, into target/dist:
#
#   flywheel_VERSION_ARCH.deb                Debian and Ubuntu
#   flywheel-VERSION-1.ARCH.rpm              Fedora, Enterprise Linux
#   flywheel-VERSION-ARCH-linux.tar.gz       static programs, units and documentation for any Linux
#   flywheel-VERSION-ARCH-oci.tar            an OCI image with the static programs
#   SHA256SUMS-ARCH
#
# The packages need a glibc at least as new as here, so build them on the oldest
# release that is to have them. .github/workflows/release.yml does that, and
# docs/release.md has the checklist.
# Usage: packaging/release.sh
#   Needs cargo, a C compiler, dpkg-dev, rpmbuild, umoci, and for the static programs
#   `rustup target add ARCH-unknown-linux-musl` and musl-gcc (musl-tools).
set -euo pipefail
cd "$(dirname "$0")/.."
umask 022

version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
arch=$(uname -m)
static=$arch-unknown-linux-musl
target=${CARGO_TARGET_DIR:-target}
for command in cargo musl-gcc dpkg-deb rpmbuild umoci; do
    command -v "$command" >/dev/null || { echo "missing: $command (see the head of this script)" >&2; exit 1; }
done
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH

cargo build --locked --release --bins >&2
env "CC_${static//-/_}=musl-gcc" cargo build --locked --release --bins --target "$static" >&2

dist=$target/dist
rm -rf "$dist"
mkdir -p "$dist"
cp "$(packaging/deb.sh --binaries "$target/release" | tail -n 1)" "$dist/"
cp "$(packaging/rpm.sh --binaries "$target/release" | tail -n 1)" "$dist/"
packaging/tarball.sh --binaries "$target/$static/release" >/dev/null
cp "$target/tarball/flywheel-$version-$arch-linux.tar.gz" "$dist/"
cp "$(packaging/container/image.sh --binaries "$target/$static/release" | tail -n 1)" "$dist/flywheel-$version-$arch-oci.tar"
(cd "$dist" && sha256sum flywheel* >"SHA256SUMS-$arch")
ls -l "$dist" >&2
echo "$dist"
