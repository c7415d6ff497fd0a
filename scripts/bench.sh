#!/usr/bin/env bash
# Measures this crate against other blocking RPC programs, on a private node.
#
#   scripts/bench.sh [--rounds 5] [--requests 4000] [--n 7] [--peers ours,c,...]
#   scripts/bench.sh --growth [--rounds 5] [--seconds 2]
#
# With --growth it measures how rate and CPU time grow with calls in flight, body sizes and
# processes, compared with librabbitmq's C pair. Results go to standard output and to
# target/bench: results.json, table.md, latency.svg; or growth.json, growth.md, growth.svg.
# By default it takes some four minutes after the build, and six with --growth.
set -euo pipefail
cd "$(dirname "$0")/.."

# shellcheck source=scripts/debian.sh
. scripts/debian.sh
need rabbitmq-server openssl python3-pika librabbitmq-dev gcc libc6-dev pkg-config

target=${CARGO_TARGET_DIR:-target}
cargo build --release --bins --examples

mkdir -p "$target/bench"
flags=$(pkg-config --cflags --libs librabbitmq)
for side in server client; do
    # $flags is several words.
    # shellcheck disable=SC2086
    gcc -O2 -Wall -Wextra -o "$target/bench/librabbitmq_$side" \
        "scripts/bench/librabbitmq_$side.c" $flags
done

program=run.py
if [[ ${1:-} == --growth ]]; then
    program=growth.py
    shift
fi
exec python3 -B "scripts/bench/$program" --target "$target" "$@"
