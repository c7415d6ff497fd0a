#!/usr/bin/env bash
# Has a peer that only seems to be a broker send any frames at any time to client and
# server, and fails if one of them panics, misses a deadline or grows.
#
#   scripts/lying_broker.sh [FRAMES] [SEED]
#
# FRAMES is 1,000,000 by default, and SEED 1.
set -eu
cd "$(dirname "$0")/.."
# shellcheck source=scripts/debian.sh
. scripts/debian.sh
need gcc pkg-config libssl-dev

export RABBITMQ_RPC_FRAMES=${1:-1000000} RABBITMQ_RPC_SEED=${2:-1}
exec cargo test --test it lying_broker -- --nocapture
