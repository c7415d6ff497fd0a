#!/usr/bin/env bash
# The test that nothing leaks, with more calls: 1,000,000 calls, of which 1 % are dropped, 5,000
# clients opened and closed, 1,000 reconnects. Takes about ten minutes, and prints memory,
# threads and descriptors after each part.
set -eu
cd "$(dirname "$0")/.."
RABBITMQ_RPC_LEAKS=long exec cargo test --test it client::leaks::nothing_leaks -- --nocapture
