#!/usr/bin/env bash
# Runs all checks, as CI does: format, lints, documentation, scripts, tests. Installs missing
# packages if it may. Runs every check, and fails at the end if one of them failed.
#
# With RABBITMQ_ROOT=FOLDER the tests use the RabbitMQ of the Debian in that folder, which
# scripts/debian13.sh makes.
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
    failures=()

    check 'format' cargo fmt --check
    check 'lints' cargo clippy --quiet --all-targets -- -D warnings
    check 'lints of the bare library' cargo clippy --quiet --no-default-features --lib -- -D warnings
    check 'tests of the bare library' cargo test --quiet --no-default-features --lib
    RUSTDOCFLAGS='-D warnings' check 'documentation' cargo doc --quiet --no-deps
    if command -v shellcheck >/dev/null; then
        check 'scripts' shellcheck -x scripts/*.sh .ci/run
    fi
    run_tests
    # The seed is fixed, so that two runs have the same faults.
    check 'a minute of faults' scripts/soak.sh 1 1

    ((${#failures[@]} == 0)) || echo "Not in order: $(printf '%s; ' "${failures[@]}" | sed 's/; $//')." >&2
    echo "$passed passed, $failed failed"
    ((${#failures[@]} == 0))
}

# Runs one check and prints one line with the result, and the check's output if it failed.
check() {
    local name=$1 start=$SECONDS verdict=ok
    "${@:2}" >"$log" 2>&1 || verdict=FAILED
    printf '%-28s %-7s %3d s\n' "$name" "$verdict" $((SECONDS - start))
    [[ $verdict == ok ]] && return
    cat "$log" >&2
    failures+=("$name")
}

run_tests() {
    local start=$SECONDS verdict=ok
    cargo test --no-fail-fast 2>&1 | tee "$log"
    ((PIPESTATUS[0] == 0)) || verdict=FAILED failures+=(tests)
    passed=$(sum passed)
    failed=$(sum failed)
    printf '%-28s %-7s %3d s\n' tests "$verdict" $((SECONDS - start))
}

# Adds up one column of the test binaries' summary lines.
sum() {
    grep '^test result:' "$log" | grep -o "[0-9]* $1" | awk '{ sum += $1 } END { print sum + 0 }'
}

main "$@"
