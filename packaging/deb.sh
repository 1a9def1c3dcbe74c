#!/usr/bin/env bash
# The Debian package, by one command: builds flywheel and writes
# target/debian/flywheel_VERSION_ARCH.deb, whose path is the last line printed.
# Usage: packaging/deb.sh [--profile NAME]     default: release
#        packaging/deb.sh --binaries DIR       what was built already, not built again
#
# Needs cargo, a C compiler and dpkg-dev. The package runs where glibc is at
# least as new as here: built on Debian 12, it also runs on 13.
# Its maintainer is $DEBFULLNAME <$DEBEMAIL>.
set -euo pipefail
cd "$(dirname "$0")/.."
umask 022

. packaging/options.sh
read_options "$@"
for command in dpkg-deb dpkg-shlibdeps strip; do
    command -v "$command" >/dev/null || { echo "missing: $command (apt-get install dpkg-dev binutils)" >&2; exit 1; }
done

build_programs
arch=$(dpkg --print-architecture)
maintainer="${DEBFULLNAME:-flywheel packagers} <${DEBEMAIL:-packagers@flywheel.invalid}>"
mkdir -p "$target/debian"
work=$(mktemp -d "$target/debian/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
root=$work/root
doc=$root/usr/share/doc/flywheel

packaging/files.sh "$root" "$binaries" --zsh /usr/share/zsh/vendor-completions
# Debian's nix-daemon listens to this group only; nix-setup-systemd may come later.
printf 'g nix-users -\nm flywheel nix-users\n' >>"$root/usr/lib/sysusers.d/flywheel.conf"
install -D -m 0644 packaging/debian/copyright "$doc/copyright"
printf 'flywheel (%s) unstable; urgency=medium\n\n  * Version %s. What is new: /usr/share/doc/flywheel/CHANGELOG.md\n\n -- %s  %s\n' \
    "$version" "$version" "$maintainer" "$(date -u -R -d "@$when")" | gzip -9n >"$doc/changelog.gz"

# --- control ----------------------------------------------------------------------
mkdir -p "$root/DEBIAN" "$work/debian"
printf 'Source: flywheel\n\nPackage: flywheel\nArchitecture: any\n' >"$work/debian/control"
libraries=$(cd "$work" && dpkg-shlibdeps -O --ignore-missing-info root/usr/bin/* 2>/dev/null | sed -n 's/^shlibs:Depends=//p')
[ -n "$libraries" ] || { echo "dpkg-shlibdeps says nothing about the programs' libraries" >&2; exit 1; }
cat >"$root/DEBIAN/control" <<END
Package: flywheel
Version: $version
Architecture: $arch
Maintainer: $maintainer
Section: devel
Priority: optional
Depends: $libraries, systemd (>= 249), ca-certificates, init-system-helpers (>= 1.54~)
Recommends: nix-bin, nix-setup-systemd, polkitd | policykit-1
Installed-Size: $(du -sk --apparent-size --exclude=DEBIAN "$root" | cut -f1)
Description: streams every path Nix builds to an Attic binary cache
 One service per CI host that pushes every path Nix builds to an Attic binary
 cache while the build is still running, keeps its queue on disk, holds the push
 token itself, and reports to each job what became of its paths.
 .
 Jobs of GitLab, GitHub, Gitea, Forgejo, Buildkite and Jenkins runners open and
 close a session with flywheelctl.
END
echo /etc/flywheel/flywheel.toml >"$root/DEBIAN/conffiles"
for script in postinst prerm postrm; do
    install -m 0755 "packaging/debian/$script" "$root/DEBIAN/$script"
done
(cd "$root" && find . -path ./DEBIAN -prune -o -type f -printf '%P\0' | sort -z | xargs -0 md5sum) >"$root/DEBIAN/md5sums"

deb=$target/debian/flywheel_${version}_$arch.deb
SOURCE_DATE_EPOCH=$when dpkg-deb --root-owner-group --build "$root" "$work/package.deb" >&2
mv "$work/package.deb" "$deb"
echo "$deb"
