#!/usr/bin/env bash
# Everything that can go wrong, at once and for long: mixed builds in sessions,
# faults between daemon and cache, collections, kills and stops. Not in CI.
# Usage: tests/soak.sh MINUTES [DIRECTORY]     (default: target/soak)
# Leaves soak.tsv and, with gnuplot (Debian: gnuplot-nox), soak.png there.
# FLYWHEEL_TEST_SEED=N draws the same lots again. SOAK_PROFILE=dev builds faster.
set -euo pipefail
cd "$(dirname "$0")/.."
minutes=${1:?usage: tests/soak.sh MINUTES [DIRECTORY]}
dir=${2:-target/soak}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
status=0
cargo test --locked --profile "${SOAK_PROFILE:-release}" --test soak -- "$minutes" "$dir/soak.tsv" || status=$?
if [ -s "$dir/soak.tsv" ] && command -v gnuplot >/dev/null; then
    gnuplot <<PLOT
set terminal pngcairo size 1200,700
set output "$dir/soak.png"
set title "flywheeld over $minutes minutes; the colour changes with the process"
set multiplot layout 2,1
set ylabel "MiB resident"
set yrange [0:*]
plot "$dir/soak.tsv" using 1:2:5 with lines linecolor variable notitle
unset title
set xlabel "seconds"
set ylabel "number"
plot "$dir/soak.tsv" using 1:3 with lines title "descriptors", "" using 1:4 with lines title "threads"
PLOT
    echo "the picture: $dir/soak.png"
elif [ -s "$dir/soak.tsv" ]; then
    echo "no picture: gnuplot is not installed (apt-get install gnuplot-nox)"
fi
exit "$status"
