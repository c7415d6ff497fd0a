#!/usr/bin/env bash
# Shows remote procedure calls from end to end: a broker, a server, a client, a number that
# is too large, two servers that share the work, and a server that stops during work.
#
# Uses the broker of $AMQP_URL, or starts a private one. It stops all that it has started,
# also when it is interrupted.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/debian.sh
. scripts/debian.sh

main() {
    need gcc pkg-config libssl-dev
    if [[ ${AMQP_URL:-} ]]; then need amqp-tools; else need rabbitmq-server; fi
    if ! command -v cargo >/dev/null; then
        echo 'There is no cargo. A Rust toolchain comes from https://rustup.rs' >&2
        exit 69
    fi

    declare -A server
    scratch='' broker=none queue='' option=() step='' reason=''
    trap end EXIT
    trap 'trap "" INT TERM HUP; exit 130' INT
    trap 'trap "" INT TERM HUP; exit 143' TERM HUP
    scratch=$(mktemp -d "${TMPDIR:-/tmp}/demo.XXXXXX")

    step 'Build the programs'
    launch cargo build --release --bins </dev/null
    wait $! || give_up 'cargo build failed, see above.'
    bin=$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/release

    if [[ ${AMQP_URL:-} ]]; then
        # Others may use this broker too, so the demo has a queue of its own.
        queue=rpc_demo_$$ option=(--queue "$queue")
        step "Use the broker of \$AMQP_URL"
    else
        step 'Start a private RabbitMQ'
        start_broker
    fi

    step 'Start a server'
    start_server one

    step 'Ask for a number'
    ask 7
    answered 13

    step 'Ask for several: all go out at once, the answers come in the order asked'
    ask 0 1 7 93 186
    answered 0 1 13 12200160415121876738 332825110087067562321196029789634457848

    step 'Ask for one too large for 128 bits: the server refuses, and says why'
    ask 187
    refused 65

    step 'Tell the server to stop'
    stop_server one

    step 'Let two servers share slow work: the double recursion of tutorial six'
    start_server two --recursive
    start_server three --recursive
    ask 38 37 36 35 38 37 36 35
    answered 39088169 24157817 14930352 9227465 39088169 24157817 14930352 9227465

    step 'Stop one of them at work: it answers what it has begun, the other does the rest'
    ask 38 38 38 38 38 38 38 38
    await 39088169 client "$client"
    stop_server two
    answered 39088169 39088169 39088169 39088169 39088169 39088169 39088169 39088169
    stop_server three

    step 'Done: everything was answered, and all that was started is stopped'
}

step() {
    step=$1
    printf '\n== %s\n' "$step"
}

start_broker() {
    mkfifo "$scratch/broker.in"
    # The broker runs until this descriptor is closed. It is open for reading too, because
    # opening a pipe only for writing waits for a reader.
    exec 3<>"$scratch/broker.in"
    launch scripts/broker.sh <"$scratch/broker.in" >"$scratch/broker.out" 2>"$scratch/broker.log"
    broker=$!
    await ready broker "$broker"
    AMQP_URL=$(sed -n 's/^url=//p' "$scratch/broker.out")
    export AMQP_URL
    echo "   $AMQP_URL"
}

# start_server NAME OPTION...
start_server() {
    local name=$1
    shift
    show rpc_server "${option[@]}" "$@"
    launch "$bin/rpc_server" "${option[@]}" "$@" </dev/null >"$scratch/$name.out" 2>"$scratch/$name.log"
    server[$name]=$!
    await 'Awaiting RPC requests' "$name" $!
}

stop_server() {
    local name=$1 status=0 served
    kill -TERM "${server[$name]}"
    wait "${server[$name]}" || status=$?
    ((status == 0)) || give_up "Server $name exited $status instead of 0."
    served=$(grep -o 'served: [0-9]*' "$scratch/$name.log" | tail -n 1 || true)
    echo "   server $name stopped in good order${served:+, $served}"
}

# Asks for numbers. The next `answered` or `refused` checks the outcome.
ask() {
    show rpc_client "${option[@]}" "$@"
    launch "$bin/rpc_client" "${option[@]}" "$@" </dev/null >"$scratch/client.out" 2>"$scratch/client.log"
    client=$!
}

answered() {
    local status=0
    wait "$client" || status=$?
    sed 's/^/   /' "$scratch/client.out"
    ((status == 0)) || give_up "The client exited $status instead of 0."
    [[ $(cat "$scratch/client.out") == $(printf '%s\n' "$@") ]] || give_up "The answer should have been $*."
}

refused() {
    local status=0
    wait "$client" || status=$?
    sed 's/^/   /' "$scratch/client.log"
    ((status == $1)) || give_up "The client exited $status instead of $1."
    echo "   exit code $status"
}

show() {
    echo "   \$ $*"
}

# Starts a command in a process group of its own, so that an interrupt reaches only this
# script, which then ends the group.
launch() {
    set -m
    "$@" 3>&- &
    set +m
}

# Waits until a program's standard output has a line with this text.
#   await TEXT NAME PID
await() {
    local deadline=$((SECONDS + 120))
    until grep -qs "$1" "$scratch/$2.out"; do
        kill -0 "$3" 2>/dev/null || give_up "The $2 ended before it printed '$1'."
        ((SECONDS < deadline)) || give_up "The $2 did not print '$1' within two minutes."
        sleep 0.05
    done
}

give_up() {
    reason=$1
    exit 1
}

end() {
    local status=$? log running
    set +e
    trap '' INT TERM HUP
    case $status in
        0 | 130 | 143) ;;
        *)
            printf '\nThe demo failed at: %s\n%s\n' "$step" "$reason" >&2
            for log in "$scratch"/*.log; do
                [[ ! -s $log ]] || printf -- '--- end of %s\n%s\n' "${log##*/}" "$(tail -n 20 "$log")" >&2
            done
            ;;
    esac
    # Hides bash's messages about terminated jobs.
    exec 2>/dev/null
    mapfile -t running < <(jobs -rp | grep -vx "$broker")
    finish "${running[@]}"
    delete_queue
    # The broker goes last, by the end of its input.
    exec 3>&-
    finish "$broker"
    rm -rf "$scratch"
}

# Ends process groups: by SIGTERM, and after ten seconds by SIGKILL.
finish() {
    local groups=("${@/#/-}")
    kill -TERM -- "${groups[@]}"
    for _ in {1..100}; do
        kill -0 -- "${groups[@]}" || return
        sleep 0.1
    done
    kill -KILL -- "${groups[@]}"
}

# Deletes the queue from a broker that others use.
delete_queue() {
    local url
    [[ $queue ]] || return
    for url in ${AMQP_URL//,/ }; do
        # The tool knows no options in a URL.
        ! amqp-delete-queue --url="${url%%\?*}" --queue="$queue" >/dev/null || return
    done
    echo "The queue $queue is left on the broker."
}

main "$@"
