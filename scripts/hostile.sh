#!/usr/bin/env bash
# Sends a server hostile requests from many connections while eight good clients call. Fails
# if a good call gets a wrong answer or none, if the slowest good call in 100 takes more than
# ten times as long as without hostile requests, or if the server grows.
#
#   scripts/hostile.sh [CONNECTIONS]
#
# CONNECTIONS is 10,000 by default.
set -eu
cd "$(dirname "$0")/.."
# shellcheck source=scripts/debian.sh
. scripts/debian.sh
need gcc pkg-config libssl-dev rabbitmq-server

export RABBITMQ_RPC_HOSTILE=${1:-10000}
exec cargo test --test it hostile::under_load -- --nocapture
