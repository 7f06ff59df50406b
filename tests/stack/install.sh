#!/usr/bin/env bash
# Installs the requirements of the demo and the tests if they are missing: a linker, Redis, Postgres and PgBouncer.
# Fails without a Rust toolchain. Prints nothing if all of them are present.
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

command -v cargo >/dev/null || fail 'cargo not found: install Rust with rustup'

missing=()
command -v cc >/dev/null || missing+=(gcc libc6-dev)
command -v redis-server >/dev/null || missing+=(redis-server)
has_postgres || missing+=(postgresql)
command -v pgbouncer >/dev/null || [ -x /usr/sbin/pgbouncer ] || missing+=(pgbouncer)
[ ${#missing[@]} -eq 0 ] || "$(dirname "$0")"/packages.sh "${missing[@]}"
