#!/usr/bin/env bash
# Makes a Debian 13 with RabbitMQ 4 in a folder, for testing with it on another Debian.
#
#   scripts/debian13.sh FOLDER
#   RABBITMQ_ROOT=FOLDER scripts/test.sh
#
# Needs root, some minutes and 700 MB. Does nothing if the folder is complete.
set -eu
cd "$(dirname "$0")/.."
# shellcheck source=scripts/debian.sh
. scripts/debian.sh

main() {
    if (($# != 1)); then
        sed -n 's/^#   scripts\/debian13.sh/usage: scripts\/debian13.sh/p' "$0" >&2
        exit 64
    fi
    if ((EUID != 0)); then
        echo 'Only root can make a Debian in a folder: sudo scripts/debian13.sh FOLDER' >&2
        exit 77
    fi
    folder=$(realpath -m "$1")
    if [[ -e $folder/complete ]]; then
        echo "There is one in $folder already."
        return
    fi
    need debootstrap
    mkdir -p "$folder"
    debootstrap --variant=minbase trixie "$folder"
    # Keeps services from starting while they are installed.
    printf '#!/bin/sh\nexit 101\n' >"$folder/usr/sbin/policy-rc.d"
    chmod 755 "$folder/usr/sbin/policy-rc.d"
    # The host's settings for downloads, such as a proxy.
    cp -rT /etc/apt/apt.conf.d "$folder/etc/apt/apt.conf.d"
    DEBIAN_FRONTEND=noninteractive chroot "$folder" \
        apt-get -qq install --no-install-recommends rabbitmq-server </dev/null
    # The nodes' names end with localhost, which must resolve.
    cp /etc/hosts "$folder/etc/hosts"
    touch "$folder/complete"
    echo "RabbitMQ $(version) is in $folder."
}

version() {
    # shellcheck disable=SC2016
    chroot "$folder" dpkg-query -W -f '${Version}' rabbitmq-server
}

main "$@"
