#!/usr/bin/env bash
# Lays the files that every package has below a directory: programs, units, the
# example configuration, completions, manual, documentation. packaging/deb.sh,
# packaging/rpm.sh and packaging/release.sh use it.
# Usage: packaging/files.sh ROOT BINARIES [--zsh DIRECTORY]
#   BINARIES   the directory with flywheeld and flywheelctl, which must run here
#   --zsh      where zsh looks for completions; default: /usr/share/zsh/site-functions
set -euo pipefail
cd "$(dirname "$0")/.."
umask 022

root=${1:?the directory to write below is missing} binaries=${2:?the directory with the programs is missing}
zsh=/usr/share/zsh/site-functions
[ "${3:-}" != --zsh ] || zsh=${4:?--zsh wants a directory}
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
"$ctl" completions zsh | make "${zsh#/}/_flywheelctl"
"$ctl" completions fish | make usr/share/fish/vendor_completions.d/flywheelctl.fish
mkdir -p "$root/usr/share/man/man1" && "$ctl" man "$root/usr/share/man/man1"
"$binaries/flywheeld" --man | make usr/share/man/man8/flywheeld.8
packaging/debian/toml-man.sh packaging/flywheel.toml | make usr/share/man/man5/flywheel.toml.5
packaging/errors-man.sh docs/errors.md | make usr/share/man/man7/flywheel-errors.7
gzip -9n "$root"/usr/share/man/man?/*
# The README's links lead to the same places as in the sources, so nothing of it is compressed.
packaging/pages.sh "$doc"
for dropin in notify-reload refresh-credentials; do
    put 0644 "systemd/$dropin.conf" "usr/share/doc/flywheel/examples/$dropin.conf"
done
ln -s ../packaging/ci "$doc/examples/ci"
chmod -R u=rwX,go=rX "$doc"
