#!/usr/bin/env bash
# Runs all checks, as CI does: format, lints, documentation, scripts, tests. Installs missing
# packages if it may. Runs every check, and fails at the end if one of them failed.
#
# The tests run on this machine's RabbitMQ. Those that need a broker then run again on the one
# of Debian testing, from a folder that scripts/debian_root.sh makes once. That needs root;
# without it this script says so and leaves them out.
#
# With RABBITMQ_ROOT=FOLDER all tests use the RabbitMQ of the Debian in that folder, and no
# other.
set -eu
cd "$(dirname "$0")/.."
# shellcheck source=scripts/debian.sh
. scripts/debian.sh

main() {
    need gcc libc6-dev pkg-config libssl-dev rabbitmq-server openssl
    need python3-pika python3-kombu amqp-tools librabbitmq-dev
    if ! command -v cargo >/dev/null; then
        echo 'There is no cargo. A Rust toolchain comes from https://rustup.rs' >&2
        exit 69
    fi
    log=$(mktemp)
    trap 'rm -f "$log"' EXIT
    failures=() passed=0 failed=0
    # Most of the tests wait, for brokers and for time to pass.
    export RUST_TEST_THREADS=$((2 * $(nproc)))

    check 'format' cargo fmt --check
    check 'lints' cargo clippy --quiet --all-targets -- -D warnings
    check 'lints with JSON' cargo clippy --quiet --all-targets --features json -- -D warnings
    check 'lints of the bare library' cargo clippy --quiet --no-default-features --lib -- -D warnings
    # What takes long there is the same with all features.
    check 'tests of the bare library' cargo test --quiet --no-default-features --lib -- \
        --skip model:: --skip frames::
    RUSTDOCFLAGS='-D warnings' check 'documentation' cargo doc --quiet --no-deps
    if command -v shellcheck >/dev/null; then
        check 'scripts' shellcheck -x scripts/*.sh .ci/run
    fi
    run_tests "tests on RabbitMQ $(version)" all_tests
    [[ ${RABBITMQ_ROOT:-} ]] || test_newer
    # Each commit has other faults; two runs of the same commit have the same.
    check 'a minute of faults' scripts/soak.sh 1 "$(git rev-list --count HEAD 2>/dev/null || echo 1)"

    ((${#failures[@]} == 0)) || echo "Not in order: $(printf '%s; ' "${failures[@]}" | sed 's/; $//')." >&2
    echo "$passed passed, $failed failed"
    ((${#failures[@]} == 0))
}

# Runs one check and prints one line with the result, and the check's output if it failed.
check() {
    local name=$1 start=$SECONDS verdict=ok
    "${@:2}" >"$log" 2>&1 || verdict=FAILED
    report "$name" "$verdict" "$start"
    [[ $verdict == ok ]] || cat "$log" >&2
}

# The integration tests on the RabbitMQ that people run today.
test_newer() {
    local release=forky why=''
    if ((EUID != 0)); then
        why='only root can run another Debian'
    elif ! unshare --mount true 2>/dev/null; then
        why='root may not mount here'
    fi
    if [[ $why ]]; then
        echo "No tests on the RabbitMQ of Debian $release: $why."
        return
    fi
    local failures_before=${#failures[@]}
    check "a Debian $release" scripts/debian_root.sh "$release"
    ((${#failures[@]} == failures_before)) || return 0
    local -x RABBITMQ_ROOT
    RABBITMQ_ROOT=$(sed -n 's/^RabbitMQ .* is in \(.*\)\.$/\1/p' "$log")
    run_tests "tests on RabbitMQ $(version)" all_tests --test it
}

# All but the soak, which runs alone. Its feature is on, so that it builds nothing anew.
all_tests() {
    cargo test --features json,soak --no-fail-fast "$@" -- \
        --skip soak::every_call_ends_in_time_during_faults
}

# The version of the RabbitMQ that scripts/broker.sh starts.
version() {
    scripts/broker.sh --version || echo unknown
}

# Runs tests, shows their output, and adds up their summary lines.
run_tests() {
    local start=$SECONDS verdict=ok
    "${@:2}" 2>&1 | tee "$log"
    ((PIPESTATUS[0] == 0)) || verdict=FAILED
    passed=$((passed + $(sum passed))) failed=$((failed + $(sum failed)))
    report "$1" "$verdict" "$start"
}

# Adds up one column of the test binaries' summary lines.
sum() {
    grep '^test result:' "$log" | grep -o "[0-9]* $1" | awk '{ sum += $1 } END { print sum + 0 }'
}

# report NAME VERDICT START
report() {
    printf '%-28s %-7s %4d s\n' "$1" "$2" $((SECONDS - $3))
    [[ $2 == ok ]] || failures+=("$1")
}

main "$@"
