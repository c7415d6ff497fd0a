#!/usr/bin/env bash
# Injects faults under load for some minutes, into a private cluster of three nodes, its
# clients and its servers. Prints the outcome of every call and the violations as a table,
# and fails if there is a violation.
#
#   scripts/soak.sh [MINUTES] [SEED]
#
# MINUTES is 5 by default, in which each kind of fault comes at least once. Fewer have those that
# the seed puts first. SEED repeats the faults of an earlier run, whose table shows it.
set -eu
cd "$(dirname "$0")/.."
# shellcheck source=scripts/debian.sh
. scripts/debian.sh
need gcc pkg-config libssl-dev rabbitmq-server

export RABBITMQ_RPC_SOAK_MINUTES=${1:-5}
[[ -z ${2:-} ]] || export RABBITMQ_RPC_SOAK_SEED=$2
exec cargo test --features json,soak --test it soak::every_call_ends_in_time_during_faults -- \
    --exact --nocapture
