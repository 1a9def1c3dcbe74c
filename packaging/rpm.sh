#!/usr/bin/env bash
# The RPM package, by one command: builds flywheel and writes
# target/rpm/flywheel-VERSION-1.ARCH.rpm, whose path is the last line printed.
# Usage: packaging/rpm.sh [--profile NAME]     default: release
#        packaging/rpm.sh --binaries DIR       what was built already, not built again
#
# Needs cargo, a C compiler and rpmbuild (on Fedora rpm-build, on Debian rpm). The
# package runs where glibc is at least as new as here; with static programs
# (packaging/release.sh makes them) it runs on every distribution.
set -euo pipefail
cd "$(dirname "$0")/.."
umask 022

. packaging/options.sh
read_options "$@"
for command in rpmbuild strip; do
    command -v "$command" >/dev/null ||
        { echo "missing: $command (dnf install rpm-build binutils, or apt-get install rpm binutils)" >&2; exit 1; }
done

build_programs
mkdir -p "$target/rpm"
work=$(mktemp -d "$(cd "$target/rpm" && pwd)/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
root=$work/files

packaging/files.sh "$root" "$binaries"
for text in APACHE MIT; do
    install -D -m 0644 "LICENSE-$text" "$root/usr/share/licenses/flywheel/LICENSE-$text"
done

# What belongs to this package: its files, and the directories that no other package has.
(
    cd "$root"
    find . -mindepth 1 -type d '(' -path './etc/flywheel*' -o -path './usr/lib/flywheel*' \
        -o -path './usr/share/doc/flywheel*' -o -path './usr/share/licenses/flywheel*' ')' -printf '%%dir "/%P"\n'
    find . '(' -type f -o -type l ')' -printf '"/%P"\n' | sed \
        -e 's|^"/etc/|%config(noreplace) &|' -e 's|^"/usr/share/doc/|%doc &|' -e 's|^"/usr/share/licenses/|%license &|'
) >"$work/list"

export SOURCE_DATE_EPOCH=$when
rpmbuild --quiet -bb --define "_topdir $work/top" --define "_rpmdir $work/made" \
    --define "flywheel_version ${version//-/\~}" --define "flywheel_root $root" --define "flywheel_files $work/list" \
    --define "_binary_payload ${FLYWHEEL_RPM_PAYLOAD:-w6.gzdio}" \
    --define "clamp_mtime_to_source_date_epoch 1" --define "use_source_date_epoch_as_buildtime 1" \
    --define "_buildhost localhost" packaging/rpm/flywheel.spec >&2
made=$(echo "$work"/made/*/flywheel-*.rpm)
mv "$made" "$target/rpm/"
echo "$target/rpm/${made##*/}"
