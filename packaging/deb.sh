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

profile=release binaries=
while [ $# -gt 0 ]; do
    case $1 in
        --profile) profile=${2:?--profile wants a name} && shift 2 ;;
        --binaries) binaries=${2:?--binaries wants a directory} && shift 2 ;;
        *) sed -n '2,5s/^# //p' "$0" >&2 && exit 2 ;;
    esac
done
for command in dpkg-deb dpkg-shlibdeps strip; do
    command -v "$command" >/dev/null || { echo "missing: $command (apt-get install dpkg-dev binutils)" >&2; exit 1; }
done

target=${CARGO_TARGET_DIR:-target}
if [ -z "$binaries" ]; then
    cargo build --locked --profile "$profile" --bins >&2
    # The profile called dev has its files in a directory called debug.
    binaries=$target/${profile/#dev/debug}
fi

version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
arch=$(dpkg --print-architecture)
when=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
maintainer="${DEBFULLNAME:-flywheel packagers} <${DEBEMAIL:-packagers@flywheel.invalid}>"
mkdir -p "$target/debian"
work=$(mktemp -d "$target/debian/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
root=$work/root
doc=$root/usr/share/doc/flywheel

put() { # MODE SOURCE DESTINATION
    install -D -m "$1" "$2" "$root/$3"
}
make() { # DESTINATION, from standard input
    mkdir -p "$(dirname "$root/$1")" && cat >"$root/$1"
}

# --- programs and units ----------------------------------------------------------
for program in flywheeld flywheelctl; do
    put 0755 "$binaries/$program" "usr/bin/$program"
    strip --strip-unneeded --remove-section=.comment --remove-section=.note "$root/usr/bin/$program"
done
# Nix runs its post-build hook without arguments: the name says what is meant.
mkdir -p "$root/usr/lib/flywheel" && ln -s ../../bin/flywheelctl "$root/usr/lib/flywheel/flywheel-hook"
for unit in systemd/*.service systemd/*.socket systemd/*.timer; do
    put 0644 "$unit" "usr/lib/systemd/system/${unit##*/}"
done
put 0644 systemd/flywheel.sysusers.conf usr/lib/sysusers.d/flywheel.conf
# Debian's nix-daemon listens to this group only; nix-setup-systemd may come later.
printf 'g nix-users -\nm flywheel nix-users\n' >>"$root/usr/lib/sysusers.d/flywheel.conf"
put 0644 systemd/flywheel.tmpfiles.conf usr/lib/tmpfiles.d/flywheel.conf
put 0644 systemd/90-flywheel.preset usr/lib/systemd/system-preset/90-flywheel.preset
put 0644 systemd/flywheel.catalog usr/lib/systemd/catalog/flywheel.catalog

# --- configuration, completions, manual, documentation ----------------------------
put 0644 packaging/flywheel.toml etc/flywheel/flywheel.toml
# Other post-build hooks, which flywheel's runs after itself.
mkdir -p "$root/etc/flywheel/hook.d"
# Settings go here, so that the file above stays as it is and upgrades ask nothing.
mkdir -p "$root/etc/flywheel/flywheel.toml.d"
ctl=$binaries/flywheelctl
"$ctl" completions bash | make usr/share/bash-completion/completions/flywheelctl
"$ctl" completions zsh | make usr/share/zsh/vendor-completions/_flywheelctl
"$ctl" completions fish | make usr/share/fish/vendor_completions.d/flywheelctl.fish
mkdir -p "$root/usr/share/man/man1" && "$ctl" man "$root/usr/share/man/man1"
"$binaries/flywheeld" --man | make usr/share/man/man8/flywheeld.8
packaging/debian/toml-man.sh packaging/flywheel.toml | make usr/share/man/man5/flywheel.toml.5
put 0644 packaging/debian/copyright usr/share/doc/flywheel/copyright
# The README's links lead to the same places as in the sources, so nothing of it is compressed.
packaging/pages.sh "$doc"
for dropin in notify-reload refresh-credentials; do
    put 0644 "systemd/$dropin.conf" "usr/share/doc/flywheel/examples/$dropin.conf"
done
ln -s ../packaging/ci "$doc/examples/ci"
chmod -R u=rwX,go=rX "$doc"
printf 'flywheel (%s) unstable; urgency=medium\n\n  * Version %s. What is new: /usr/share/doc/flywheel/CHANGELOG.md\n\n -- %s  %s\n' \
    "$version" "$version" "$maintainer" "$(date -u -R -d "@$when")" | make usr/share/doc/flywheel/changelog
gzip -9n "$doc/changelog" "$root"/usr/share/man/man?/*

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
Depends: $libraries, systemd (>= 252), ca-certificates, init-system-helpers (>= 1.54~)
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
