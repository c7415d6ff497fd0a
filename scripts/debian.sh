# Sourced by the other scripts for `need`.
# shellcheck shell=bash

# Makes sure that Debian packages are installed: installs missing ones as root or through
# sudo, and otherwise prints what to run and exits 69.
#   need PACKAGE...
need() {
    local package missing=() root=()
    for package; do
        has_package "$package" || missing+=("$package")
    done
    ((${#missing[@]})) || return 0

    if ! command -v apt-get >/dev/null; then
        echo "Please install what Debian calls ${missing[*]}; without apt-get this script cannot." >&2
        exit 69
    fi
    ((EUID == 0)) || root=(sudo -n)
    if ! "${root[@]}" true 2>/dev/null; then
        echo "Please run: sudo apt-get install ${missing[*]}" >&2
        exit 69
    fi
    echo "Installing ${missing[*]}" >&2
    if ! "${root[@]}" bash -c "$install" install "${missing[@]}" </dev/null >&2; then
        echo "Could not install ${missing[*]}." >&2
        exit 69
    fi
}

has_package() {
    if command -v dpkg-query >/dev/null; then
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null) == installed ]]
    else
        # Without dpkg, look for the command or library that the package provides.
        case $1 in
            amqp-tools) command -v amqp-publish ;;
            libc6-dev) command -v cc ;;
            librabbitmq-dev) pkg-config --exists librabbitmq ;;
            libssl-dev) pkg-config --exists openssl ;;
            python3-kombu) python3 -c 'import kombu' ;;
            python3-pika) python3 -c 'import pika' ;;
            *) command -v "$1" ;;
        esac >/dev/null 2>&1
    fi
}

# Debian starts a service when it installs it. To keep it from starting a system broker, this
# denies service starts during the installation, unless the machine has a policy already.
# shellcheck disable=SC2016
install='
    set -eu
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        trap '\''rm -f "$policy"'\'' EXIT
        printf "#!/bin/sh\nexit 101\n" >"$policy"
        chmod 755 "$policy"
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update
    apt-get -qq install --no-install-recommends -o DPkg::Lock::Timeout=300 "$@"
'
