#!/usr/bin/env bash
# Runs client and server against a peer that does a broker's handshake and then sends random
# frames at any time. Fails if one of them panics, misses a deadline or grows.
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
