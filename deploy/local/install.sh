#!/usr/bin/env bash
# Makes sure that what the demo and the tests run on is here: a Rust toolchain with a linker, Redis, Postgres and
# PgBouncer.
# Silent when it is. Installs the servers where apt can; starts no system service.
set -euo pipefail

fail() {
    printf 'error: %s\n' "$1" >&2
    exit 1
}

has_postgres() {
    local folder
    for folder in /usr/lib/postgresql/*/bin /usr/pgsql-*/bin ${PATH//:/ }; do
        [ -x "$folder/initdb" ] && [ -x "$folder/postgres" ] && return 0
    done
    return 1
}

command -v cargo >/dev/null || fail 'cargo is not installed: install Rust (rustup) first'

missing=()
command -v cc >/dev/null || missing+=(gcc libc6-dev)
command -v redis-server >/dev/null || missing+=(redis-server)
has_postgres || missing+=(postgresql)
command -v pgbouncer >/dev/null || [ -x /usr/sbin/pgbouncer ] || missing+=(pgbouncer)
[ ${#missing[@]} -eq 0 ] && exit 0

by_hand="install these first: ${missing[*]}"
command -v apt-get >/dev/null || fail "$by_hand (this machine has no apt-get to do it here)"
as_root=()
if [ "$(id -u)" -ne 0 ]; then
    sudo -n true 2>/dev/null || fail "$by_hand (for example: sudo apt-get install ${missing[*]})"
    as_root=(sudo -n)
fi

# Debian starts a service as soon as its package is installed, unless this file says no.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap '"${as_root[@]}" rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
    "${as_root[@]}" chmod 755 "$policy"
fi

printf 'installing %s\n' "${missing[*]}" >&2
log=$(mktemp)
if ! { "${as_root[@]}" apt-get update && "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
    tail -n 5 "$log" >&2
    fail "apt-get can't install ${missing[*]}, its output is in $log"
fi
rm -f "$log"
