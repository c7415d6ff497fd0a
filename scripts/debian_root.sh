#!/usr/bin/env bash
# Makes a Debian of another release in a folder, for testing with its RabbitMQ.
#
#   scripts/debian_root.sh RELEASE [FOLDER]
#   RABBITMQ_ROOT=FOLDER scripts/test.sh
#
# RELEASE is a name such as trixie (RabbitMQ 4.0) or forky (4.3). FOLDER is by default
# $XDG_CACHE_HOME/rabbitmq-rpc/RELEASE, else ~/.cache/rabbitmq-rpc/RELEASE. Needs root, two
# minutes and 300 MB. If there is one in the folder, this only prints which RabbitMQ it has.
set -eu
cd "$(dirname "$0")/.."
# shellcheck source=scripts/debian.sh
. scripts/debian.sh

main() {
    if (($# < 1 || $# > 2)); then
        sed -n 's/^#   scripts\/debian_root.sh/usage: scripts\/debian_root.sh/p' "$0" >&2
        exit 64
    fi
    release=$1
    folder=$(realpath -m "${2:-${XDG_CACHE_HOME:-$HOME/.cache}/rabbitmq-rpc/$release}")
    [[ -e $folder/usr/lib/rabbitmq ]] || make
    echo "RabbitMQ $(version) is in $folder."
}

# The folder gets its name when it is complete.
make() {
    if ((EUID != 0)); then
        echo "Only root can make a Debian in a folder: sudo scripts/debian_root.sh $release" >&2
        exit 77
    fi
    need debootstrap
    mkdir -p "$(dirname "$folder")"
    new=$(mktemp -d "$folder.XXXXXX")
    trap 'rm -rf --one-file-system "$new"' EXIT
    chmod 755 "$new"

    # debootstrap knows a new release only by its next version. What it does for sid serves.
    local scripts=/usr/share/debootstrap/scripts script=''
    [[ -e $scripts/$release ]] || script=$scripts/sid
    debootstrap --variant=minbase "$release" "$new" '' "$script"
    # Keeps services from starting while they are installed.
    printf '#!/bin/sh\nexit 101\n' >"$new/usr/sbin/policy-rc.d"
    chmod 755 "$new/usr/sbin/policy-rc.d"
    # The host's settings for downloads, such as a proxy.
    cp -rT /etc/apt/apt.conf.d "$new/etc/apt/apt.conf.d"
    DEBIAN_FRONTEND=noninteractive chroot "$new" \
        apt-get -qq install --no-install-recommends rabbitmq-server </dev/null
    # The nodes' names end with localhost, which must resolve.
    cp /etc/hosts "$new/etc/hosts"
    mv -T "$new" "$folder"
}

version() {
    # shellcheck disable=SC2016
    dpkg-query --admindir "$folder/var/lib/dpkg" -W -f '${source:Upstream-Version}' rabbitmq-server
}

main "$@"
