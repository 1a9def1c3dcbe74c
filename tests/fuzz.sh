#!/usr/bin/env bash
# Runs each coverage-guided fuzz target of fuzz/ for some seconds, on the corpus that
# earlier runs left in target/fuzz/corpus and on the seeds.
# Usage: tests/fuzz.sh [SECONDS [TARGET…]]     default: 10 seconds, all targets
# Works with a stable compiler; needs a C++ compiler for libFuzzer. Prints a line and
# ends with 0 where the targets cannot be built.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-10}
[ $# -eq 0 ] || shift
targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
    for file in fuzz/fuzz_targets/*.rs; do
        name=${file##*/}
        targets+=("${name%.rs}")
    done
fi
command -v c++ >/dev/null || { echo "fuzzing skipped: no C++ compiler (apt-get install g++)"; exit 0; }
# Beside what the tests have compiled: fuzz/Cargo.toml sees to it that the dependencies
# are used again.
built=$PWD/${CARGO_TARGET_DIR:-target} work=$PWD/${CARGO_TARGET_DIR:-target}/fuzz
mkdir -p "$work"

# What `cargo fuzz` passes, without a sanitizer: those need a nightly compiler, and the
# package has no unsafe code. Only this project's crates get it, through this script as
# the compiler's wrapper: with it and with optimization, the dependencies take minutes.
if ! RUSTC_WRAPPER=$PWD/tests/fuzz-rustc.sh CARGO_TARGET_DIR=$built \
    cargo build --quiet --locked --manifest-path fuzz/Cargo.toml --bins ${FUZZ_JOBS:+-j "$FUZZ_JOBS"} 2>"$work/build.log"; then
    if grep -qE "sancov-module|could not download|failed to (get|fetch|download)" "$work/build.log"; then
        echo "fuzzing skipped: this toolchain or network cannot build the targets ($work/build.log)"
        exit 0
    fi
    cat "$work/build.log" >&2
    exit 1
fi
# fuzz TARGET: looks for inputs that end it.
fuzz() {
    local corpus=$work/corpus/$1
    mkdir -p "$corpus" "$work/artifacts"
    "$built/debug/$1" "$corpus" "fuzz/seeds/$1" -max_total_time="$seconds" \
        -timeout=10 -rss_limit_mb=2048 -max_len=65536 -artifact_prefix="$work/artifacts/$1-" \
        -print_final_stats=1 >"$work/$1.log" 2>&1
}
# As many at a time as there are processors.
at_once=$(nproc)
status=0
while [ ${#targets[@]} -gt 0 ]; do
    batch=("${targets[@]:0:at_once}") pids=()
    targets=("${targets[@]:at_once}")
    for target in "${batch[@]}"; do
        fuzz "$target" &
        pids+=($!)
    done
    for at in "${!batch[@]}"; do
        target=${batch[at]}
        if wait "${pids[at]}"; then
            sed -n 's/^stat::number_of_executed_units: */fuzzing '"$target"', inputs: /p' "$work/$target.log"
        else
            tail -n 40 "$work/$target.log" >&2
            echo "fuzzing: $target found an input that ends it, in $work/artifacts" >&2
            status=1
        fi
    done
done
exit "$status"
