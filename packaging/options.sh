# shellcheck shell=bash
# Sourced by packaging/deb.sh, packaging/rpm.sh and packaging/tarball.sh in the directory
# of the sources: their options, and what all of them need to know.
#
# After it: version is flywheel's; target is cargo's directory; when is the time of the
# package's files, in seconds since 1970.

# shellcheck disable=SC2034
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
target=${CARGO_TARGET_DIR:-target}
# shellcheck disable=SC2034
when=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
profile=release binaries=

# Prints the lines of the calling script's head that begin with its usage, and ends.
usage() {
    sed -n '/^# Usage:/,/^#$\|^[^#]/{s/^# //p}' "$0" >&2
    exit 2
}

# Reads --profile NAME or --binaries DIR.
read_options() {
    while [ $# -gt 0 ]; do
        case $1 in
            --profile) profile=${2:?--profile wants a name} && shift 2 ;;
            --binaries) binaries=${2:?--binaries wants a directory} && shift 2 ;;
            *) usage ;;
        esac
    done
}

# Builds the programs, unless --binaries names them. After it, binaries has them.
build_programs() {
    [ -z "$binaries" ] || return 0
    cargo build --locked --profile "$profile" --bins >&2
    # The profile called dev has its files in a directory called debug.
    binaries=$target/${profile/#dev/debug}
}
