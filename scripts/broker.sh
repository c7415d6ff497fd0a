#!/usr/bin/env bash
# A private RabbitMQ for people, tests and CI: on loopback only, on free ports, with all
# its files in one temporary directory. It ends when its standard input closes.
#
#   broker.sh [--nodes N] [--tls DIR] [--config FILE] [--plugin NAME]
#   broker.sh --version
#
#   --nodes N      a cluster of N nodes (1 to 5), which pause in a minority up to
#                  RabbitMQ 4.2; in 4.3 nothing pauses
#   --tls DIR      also listen for TLS with DIR's ca.pem, server.pem and
#                  server-key.pem; clients must show a certificate of that ca and
#                  may log in by its common name (EXTERNAL)
#   --config FILE  lines for every node's rabbitmq.conf; they win over those here
#   --plugin NAME  enable a plugin that ships with RabbitMQ and needs no other
#
# When every node accepts connections, it prints its facts, one key=value a line (url,
# dir, version, and for each node I port.I, node.I, pid.I and, with --tls, tls_port.I),
# then `ready`. After that, each input line is a command. Its answer is one line: `ok`,
# with new facts if there are any, or `error` and the reason.
#
#   kill I...     SIGKILL                         freeze I...   SIGSTOP
#   stop I...     SIGTERM                         thaw I...     SIGCONT
#   start I...    restart with its ports and data: `ok pid=PID`
#   ctl I ARG...  rabbitmqctl, quoted as for xargs; its output goes to DIR/ctl.out
#   quit
#
# The end of standard input, INT and TERM end all nodes at once, also during a command.
#
# With RABBITMQ_ROOT=FOLDER it runs the RabbitMQ of the Debian in that folder, which
# debian_root.sh makes. That needs root.
#
# This is one long file because starting the nodes, the commands and the clean-up share
# their state.
set -eu
shopt -s extglob
scripts=$(dirname "$(realpath "$0")")

main() {
    local i
    [[ -z ${RABBITMQ_ROOT:-} ]] || enter "$@"
    find_rabbitmq
    if [[ $* == --version ]]; then
        echo "$version"
        exit
    fi
    nodes=1 tls='' config=/dev/null plugin=''
    while (($#)); do
        (($# > 1)) || usage
        case $1 in
            --nodes) nodes=$2 ;;
            --tls) tls=$(realpath -e "$2") || exit 66 ;;
            --config) config=$(realpath -e "$2") || exit 66 ;;
            --plugin) plugin=$2 ;;
            *) usage ;;
        esac
        shift 2
    done
    [[ $nodes == [1-5] ]] || usage

    commands=() partial='' pid=() epmd='' ctl='' dir=''
    trap end EXIT
    # A signal that arrives during the clean-up must not interrupt it.
    trap 'end; exit 0' INT TERM HUP PIPE
    dir=$(mktemp -d "${TMPDIR:-/tmp}/broker.XXXXXX")
    if [[ $dir == *[[:space:]]* ]]; then
        echo "RabbitMQ's scripts cannot use $dir, since it has a space in it. Set TMPDIR." >&2
        exit 66
    fi
    prepare
    claim_ports

    # The first node runs before the others start: nodes that start at the same time may each
    # form a cluster of one.
    boot 0
    await 0 || give_up 0
    for ((i = 1; i < nodes; i++)); do boot "$i"; done
    for ((i = 1; i < nodes; i++)); do await "$i" || give_up "$i"; done
    ((nodes == 1)) || joined || give_up 0

    print_facts
    while true; do
        until ((${#commands[@]})); do listen; done
        mapfile -t words < <(xargs -r printf '%s\n' <<<"${commands[0]}")
        commands=("${commands[@]:1}")
        execute "${words[@]}"
    done
}

usage() {
    sed -n 's/^#   broker.sh/usage: broker.sh/p' "$0" >&2
    exit 64
}

# Runs this script inside that folder, with the directories that it shares with the tests.
# Only this script sees the mounts, and they end with it.
enter() {
    local root shared
    root=$(realpath -e "$RABBITMQ_ROOT") || exit 66
    shared=$(realpath "$(dirname "$0")/..")
    # shellcheck disable=SC2016
    exec env -u RABBITMQ_ROOT unshare --mount -- bash -c '
        set -eu
        root=$1 script=$2/scripts/broker.sh
        for shared in /proc /dev "${TMPDIR:-/tmp}" ${CARGO_TARGET_DIR:+"$CARGO_TARGET_DIR"} "$2"; do
            mkdir -p "$root$shared"
            mount --bind "$shared" "$root$shared"
        done
        exec chroot "$root" "$script" "${@:3}"' bash "$root" "$shared" "$@"
}

find_rabbitmq() {
    local script
    # Debian's command in the PATH needs the user root or rabbitmq; the script that it calls
    # runs as any user.
    for script in /usr/lib/rabbitmq/bin/rabbitmq-server "$(command -v rabbitmq-server)"; do
        [[ -x $script ]] || continue
        rabbitmq=$(dirname "$(dirname "$(realpath "$script")")")
        version=$(printf '%s\n' "$rabbitmq"/plugins/rabbit-[0-9]*)
        version=${version##*/rabbit-}
        return
    done
    echo 'RabbitMQ is not installed. On Debian: sudo apt-get install rabbitmq-server' >&2
    exit 69
}

# Fills the directory and the environment that all nodes share. The settings of a system
# broker must not affect them.
prepare() {
    unset "${!RABBITMQ_@}" "${!ERL_@}" NOTIFY_SOCKET
    export HOME=$dir LC_ALL=C.UTF-8 ERL_CRASH_DUMP=$dir/erl_crash.dump
    (umask 377 && head -c 32 /dev/urandom | sha256sum | head -c 64 >"$dir/.erlang.cookie")

    # Erlang searches one directory after another for each module. With the seventy
    # directories of RabbitMQ a node starts in 6 s, with only those that it needs in 4 s.
    mkdir -p "$dir/rabbitmq/plugins" "$dir/none"
    ln -s "$rabbitmq"/{sbin,escript} "$dir/rabbitmq"
    ln -s "$rabbitmq"/plugins/!(rabbitmq_*|README) \
        "$rabbitmq"/plugins/rabbitmq_{prelaunch,auth_mechanism_ssl}-* "$dir/rabbitmq/plugins"
    [[ ! $plugin ]] || ln -s "$rabbitmq/plugins/$plugin"-* "$dir/rabbitmq/plugins"
    echo "[${tls:+rabbitmq_auth_mechanism_ssl}${tls:+${plugin:+,}}$plugin]." >"$dir/enabled_plugins"
    # The other nodes suspect a frozen node after two seconds instead of ten, and its quorum
    # queues get new leaders.
    echo '[{aten, [{poll_interval, 1000}]}].' >"$dir/advanced.config"

    local loopback='-kernel inet_dist_use_interface {127,0,0,1}'
    export RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="+S 2:2 +B i -start_epmd false $loopback"
    export RABBITMQ_CTL_ERL_ARGS="+S 1:1 $loopback"
    export RABBITMQ_MNESIA_BASE=$dir/data RABBITMQ_LOG_BASE=$dir/log
    export RABBITMQ_ENABLED_PLUGINS_FILE=$dir/enabled_plugins
    export RABBITMQ_CONF_ENV_FILE=$dir/none/env RABBITMQ_CONFIG_FILES=$dir/none
    export RABBITMQ_ADVANCED_CONFIG_FILE=$dir/advanced.config

    # A command that is started with this prefix ends even if this script is killed.
    tied=(env)
    ! command -v setpriv >/dev/null || tied=(setpriv --pdeathsig KILL)
}

# Reserves a block of sixteen ports by an epmd that listens on the first. This script starts
# that epmd, since one that a node starts outlives the node. The blocks are below the ports
# that the kernel gives to outgoing connections, so that the ports of a stopped node stay
# free.
claim_ports() {
    local base i
    export ERL_EPMD_PORT ERL_EPMD_ADDRESS=127.0.0.1
    for _ in {1..20}; do
        base=$((16384 + RANDOM % 1000 * 16))
        for ((i = 0; i < 16; i++)); do ! listens $((base + i)) || continue 2; done
        ERL_EPMD_PORT=$base
        "${tied[@]}" epmd </dev/null >"$dir/epmd.out" 2>&1 &
        epmd=$! && disown
        within 10 listens "$base" && alive "$epmd" && break
    done
    for ((i = 0; i < nodes; i++)); do
        node[i]=rabbit-$$-$i@localhost
        port[i]=$((base + 3 * i + 1))
        tls_port[i]=$((base + 3 * i + 2))
        dist_port[i]=$((base + 3 * i + 3))
    done
}

# Starts node I, for the first time or again.
boot() {
    local i=$1
    {
        echo "listeners.tcp.1 = 127.0.0.1:${port[i]}"
        if [[ $tls ]]; then
            echo "listeners.ssl.1 = 127.0.0.1:${tls_port[i]}"
            echo "ssl_options.cacertfile = $tls/ca.pem"
            echo "ssl_options.certfile = $tls/server.pem"
            echo "ssl_options.keyfile = $tls/server-key.pem"
            echo 'ssl_options.verify = verify_peer'
            echo 'ssl_options.fail_if_no_peer_cert = true'
            echo 'ssl_cert_login_from = common_name'
            printf 'auth_mechanisms.%s\n' '1 = PLAIN' '2 = AMQPLAIN' '3 = EXTERNAL'
        fi
        if ((nodes > 1)); then
            # The nodes join one by one under a lock. By default they sleep up to eight
            # seconds between two attempts to get it.
            echo "cluster_formation.classic_config.nodes.1 = ${node[0]}"
            ((i == 0)) || echo "cluster_formation.classic_config.nodes.2 = ${node[i]}"
            printf 'cluster_formation.%s\n' 'internal_lock_retries = 1' \
                'lock_retry_limit = 600' 'lock_retry_timeout = 100'
            # RabbitMQ 4.3 accepts this line and ignores it.
            echo 'cluster_partition_handling = pause_minority'
            # The other nodes notice a frozen node within five seconds instead of a minute.
            echo 'net_ticktime = 4'
        fi
        cat "$config"
    } >"$dir/node.$i.conf"

    # As under systemd, the script replaces itself with the Erlang machine, so $! is the pid
    # of that machine.
    RUNNING_UNDER_SYSTEMD=true RABBITMQ_NODENAME=${node[i]} \
        RABBITMQ_DIST_PORT=${dist_port[i]} RABBITMQ_CONFIG_FILE=$dir/node.$i.conf \
        RABBITMQ_PID_FILE=$dir/node.$i.pid "${tied[@]}" \
        "$dir/rabbitmq/sbin/rabbitmq-server" </dev/null >"$dir/node.$i.out" 2>&1 &
    pid[i]=$! && disown
}

# Waits until node I accepts connections; fails if it ends before.
await() {
    within 120 settled "$1" && runs "$1"
}

settled() {
    speaks_amqp "${port[$1]}" || ! runs "$1"
}

# Waits until every node counts all nodes as running.
joined() {
    local reason='' names
    printf -v names ", '%s'" "${node[@]}"
    controlled 0 eval "[ok = rpc:call(N, rabbit_nodes, await_running_count, [$nodes, 30000]) \
        || N <- [${names:2}]]."
    [[ ! $reason ]] || echo "The nodes did not join: $reason" >&2
    [[ ! $reason ]]
}

give_up() {
    echo "Node $1 did not start. The end of what it wrote:" >&2
    tail -n 30 "$dir/node.$1.out" "$dir/log/${node[$1]}.log" >&2
    exit 1
}

print_facts() {
    local i urls
    urls=$(printf ',amqp://guest:guest@127.0.0.1:%d/%%2f' "${port[@]}")
    echo "url=${urls:1}"
    printf '%s\n' "dir=$dir" "version=$version"
    for i in "${!node[@]}"; do
        printf '%s\n' "port.$i=${port[i]}" "node.$i=${node[i]}" "pid.$i=${pid[i]}"
        [[ ! $tls ]] || echo "tls_port.$i=${tls_port[i]}"
    done
    echo ready
    [[ ! -t 0 ]] || echo "Commands: kill, stop, start, freeze, thaw I...; ctl I ARG...; Ctrl-D ends all nodes." >&2
}

# Executes one command and answers it with one line.
execute() {
    local verb=${1:-} numbers=("${@:2}") i facts='' reason=''
    [[ $verb != ctl ]] || numbers=("${@:2:1}")
    [[ $verb == quit ]] || ((${#numbers[@]})) || verb=none reason='a command and a node are needed'
    for i in "${numbers[@]}"; do
        [[ $i == [0-4] && ${node[i]:-} ]] || verb=none reason="there is no node $i"
    done
    case $verb in
        none) ;;
        kill) signal KILL && ended ;;
        stop) signal TERM && ended ;;
        freeze) signal STOP ;;
        thaw) signal CONT ;;
        start) restarted ;;
        ctl) controlled "${@:2}" ;;
        quit) echo ok && exit 0 ;;
        *) reason="there is no command '$verb'" ;;
    esac || true
    if [[ $reason ]]; then echo "error $reason"; else echo "ok$facts"; fi
}

signal() {
    local i
    for i in "${numbers[@]}"; do
        runs "$i" && kill "-$1" "${pid[i]}" || reason="node $i is not running"
    done
    [[ ! $reason ]]
}

ended() {
    local i
    for i in "${numbers[@]}"; do
        within 60 gone "${pid[i]}" || reason="node $i still runs after 60 s"
    done
}

restarted() {
    local i
    for i in "${numbers[@]}"; do
        runs "$i" && reason="node $i is running" && return
        boot "$i"
    done
    for i in "${numbers[@]}"; do
        await "$i" || reason="node $i does not start, see $dir/node.$i.out"
        facts+=" pid=${pid[i]}"
    done
}

# Has one rabbitmqctl execute all commands, which starts with the first of them.
controlled() {
    local output=$dir/ctl.out status=$dir/ctl.status
    alive "$ctl" || start_ctl
    rm -f "$status"
    printf '%s\n' $(($# + 2)) --quiet --node "${node[$1]}" "${@:2}" >&8
    if ! within 60 answered; then
        kill -KILL "$ctl"
        reason='rabbitmqctl does not answer'
    elif ! grep -qsx ok "$status"; then
        reason=$(grep -m 1 -v -e '^Error:$' -e '^$' "$output" || echo 'rabbitmqctl failed')
    fi
}

start_ctl() {
    # A new pipe has nothing in it that an earlier one has left.
    rm -f "$dir/ctl.in"
    mkfifo "$dir/ctl.in"
    # Open for reading too, because opening a pipe only for writing waits for a reader.
    exec 8<>"$dir/ctl.in"
    # RabbitMQ's scripts take their folder from $0.
    # shellcheck disable=SC2016
    ERL_FLAGS="-hidden $RABBITMQ_CTL_ERL_ARGS" "${tied[@]}" sh -c '
        set -a
        . "${0%/*}/rabbitmq-env"
        _rmq_env_set_erl_libs
        exec escript "$@"' "$dir/rabbitmq/sbin/rabbitmqctl" \
        "$scripts/rabbitmqctl.escript" "$dir/rabbitmq/escript/rabbitmqctl" "$dir" \
        <"$dir/ctl.in" 8>&- >"$dir/ctl.log" 2>&1 &
    ctl=$! && disown
}

answered() {
    [[ -s $dir/ctl.status ]] || ! alive "$ctl"
}

# Waits until a command succeeds: within SECONDS COMMAND...
within() {
    local deadline=$((SECONDS + $1))
    until "${@:2}"; do
        ((SECONDS < deadline)) || return 1
        listen 0.05
    done
}

# Reads one line from standard input, within so many seconds if a number is given. Every wait
# of this script goes through here, so that it always notices the end of input.
listen() {
    local more
    if read -r ${1:+-t "$1"} more; then
        commands+=("$partial$more") partial=''
    elif (($? > 128)); then
        partial+=$more
    else
        exit 0
    fi
}

speaks_amqp() {
    local byte
    { printf 'AMQP\0\0\t\1' >&9 && IFS= read -r -N 1 -t 2 byte <&9 && [[ $byte == $'\1' ]]; } \
        9<>"/dev/tcp/127.0.0.1/$1"
} 2>/dev/null

listens() {
    : 9<>"/dev/tcp/127.0.0.1/$1"
} 2>/dev/null

runs() {
    alive "${pid[$1]}"
}

gone() {
    ! alive "$1"
}

# Whether this script's child with that id runs. The id of one that ended may belong to a
# stranger by now.
alive() {
    local stat
    read -r stat <"/proc/$1/stat" || return 1
    # "PID (NAME) STATE PARENT ...", and a name may contain anything.
    [[ ${stat##*) } == [!ZX]" $$ "* ]]
} 2>/dev/null

# SIGKILL ends a frozen node too. $! is the last process started, whose pid may be in no
# other variable yet.
end() {
    set +e
    trap '' INT TERM HUP PIPE
    local child
    for child in "${pid[@]}" $epmd $ctl $!; do
        while alive "$child"; do kill -KILL "$child"; sleep 0.02; done
    done
    [[ ! $dir ]] || rm -rf "$dir"
} 2>/dev/null

main "$@"
