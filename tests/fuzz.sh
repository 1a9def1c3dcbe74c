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
host=$(rustc -vV | sed -n 's/^host: //p')
work=$PWD/${CARGO_TARGET_DIR:-target}/fuzz
mkdir -p "$work"

# What `cargo fuzz` passes, without a sanitizer: those need a nightly compiler, and
# the package has no unsafe code. --target keeps build scripts out of it.
flags="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions -Coverflow-checks"
if ! RUSTFLAGS=$flags CARGO_TARGET_DIR=$work/target cargo build --quiet --locked --release \
    --manifest-path fuzz/Cargo.toml --target "$host" --bins ${FUZZ_JOBS:+-j "$FUZZ_JOBS"} 2>"$work/build.log"; then
    if grep -qE "sancov-module|could not download|failed to (get|fetch|download)" "$work/build.log"; then
        echo "fuzzing skipped: this toolchain or network cannot build the targets ($work/build.log)"
        exit 0
    fi
    cat "$work/build.log" >&2
    exit 1
fi
for target in "${targets[@]}"; do
    corpus=$work/corpus/$target
    mkdir -p "$corpus" "$work/artifacts"
    if ! "$work/target/$host/release/$target" "$corpus" "fuzz/seeds/$target" -max_total_time="$seconds" \
        -timeout=10 -rss_limit_mb=2048 -max_len=65536 -artifact_prefix="$work/artifacts/$target-" \
        -print_final_stats=1 >"$work/$target.log" 2>&1; then
        tail -n 40 "$work/$target.log" >&2
        echo "fuzzing: $target found an input that ends it, in $work/artifacts" >&2
        exit 1
    fi
    sed -n 's/^stat::number_of_executed_units: */fuzzing '"$target"', inputs: /p' "$work/$target.log"
done
