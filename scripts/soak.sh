#!/usr/bin/env bash
# Minutes of faults under load, on a private cluster of three nodes: processes and nodes are
# killed, connections closed, queues deleted, packets swallowed. Prints what became of every
# call as a table, and fails if anything in it must not be.
#
#   scripts/soak.sh [MINUTES] [SEED]
#
# Five minutes unless said otherwise. The seed, which the table names, repeats a run's faults.
set -eu
cd "$(dirname "$0")/.."
# shellcheck source=scripts/debian.sh
. scripts/debian.sh
need gcc pkg-config libssl-dev rabbitmq-server

export RABBITMQ_RPC_SOAK_MINUTES=${1:-5}
[[ -z ${2:-} ]] || export RABBITMQ_RPC_SOAK_SEED=$2
exec cargo test --features soak --test it soak::faults_cost_no_answer -- --exact --nocapture
