#!/bin/sh
# The daemon in simulation (src/daemon/sim): many seeds, or one with its trace.
#
#   tests/simulate.sh [SEEDS]        seeds 0 to SEEDS - 1 (default 10000); stops at the first that fails
#   tests/simulate.sh --from N SEEDS seeds from N on
#   tests/simulate.sh --threads N SEEDS  on so many threads (default 2)
#   tests/simulate.sh --all SEEDS    goes on after a seed that fails, and lists all that fail
#   tests/simulate.sh --seed N       one seed, with its whole trace on stderr
set -eu
cd "$(dirname "$0")/.."
while [ $# -gt 0 ]; do
    case "$1" in
        --seed) export FLYWHEEL_SIM_SEED="$2"; shift 2 ;;
        --from) export FLYWHEEL_SIM_FIRST="$2"; shift 2 ;;
        --threads) export FLYWHEEL_SIM_THREADS="$2"; shift 2 ;;
        --all) export FLYWHEEL_SIM_ENOUGH=1000000000; shift ;;
        [0-9]*) export FLYWHEEL_SIM_SEEDS="$1"; shift ;;
        *) sed -n '2,9p' "$0"; exit 2 ;;
    esac
done
: "${FLYWHEEL_SIM_SEEDS:=10000}"
export FLYWHEEL_SIM_SEEDS
exec ${CARGO:-cargo} test --locked --profile simulate --lib daemon::sim::every_seed_keeps_the_invariants -- --exact --nocapture
