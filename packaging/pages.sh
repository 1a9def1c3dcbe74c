#!/bin/sh
# Copies the documentation into a directory of a package: README.md, SECURITY.md,
# CHANGELOG.md and the pages of docs/, in which the files that mdBook would
# include are included. What these pages name below packaging/ is copied too.
# Usage: packaging/pages.sh DIRECTORY
set -eu
to=${1:?the directory is missing}
cd "$(dirname "$0")/.."

mkdir -p "$to/docs/examples" "$to/packaging"
cp README.md SECURITY.md CHANGELOG.md "$to"
cp docs/*.svg docs/*.png docs/*.json "$to/docs"
cp docs/examples/* "$to/docs/examples"
cp -R packaging/ci packaging/monitoring packaging/kubernetes packaging/ansible packaging/quickstart.sh packaging/flywheel.toml "$to/packaging"
for page in docs/*.md; do
    # A page that is another file, and no more.
    whole=$(sed -n '1s/^{{#include \(.*\)}}$/\1/p' "$page")
    if [ -n "$whole" ] && [ "$(wc -l <"$page")" = 1 ]; then
        ln -s "$whole" "$to/$page"
        continue
    fi
    # {{#include FILE}} stands alone on its line.
    awk '
        /^\{\{#include .*\}\}$/ {
            file = "docs/" substr($0, 12, length($0) - 13)
            while ((status = (getline line < file)) > 0) print line
            if (status < 0) { print file ": cannot be read" > "/dev/stderr"; exit 1 }
            close(file)
            next
        }
        { print }
    ' "$page" >"$to/$page"
done
rm "$to/docs/SUMMARY.md"
