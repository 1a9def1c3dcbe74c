#!/bin/sh
# The compiler as tests/fuzz.sh calls it: COMPILER ARGUMENTS…, with coverage counters in
# the crates of this project.
case " $* " in
*" --crate-name flywheel "* | *"/fuzz_targets/"* | *" fuzz_targets/"*)
    exec "$@" --cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
        -Cllvm-args=-sanitizer-coverage-trace-compares
    ;;
esac
exec "$@"
