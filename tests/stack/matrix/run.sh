#!/usr/bin/env bash
# Runs the core of the integration tests with each server of the matrix, and prints a summary. Fails if a test fails;
# servers that no package provides are left out and named. Arguments: folder for the servers, test command.
# SERVERS selects servers, such as SERVERS=valkey-9.1,postgres-18.
set -euo pipefail

folder=${1:?missing argument: folder}
shift
here=$(dirname "${BASH_SOURCE[0]}")
all=redis-7.0,redis-8.0,valkey-8.1,valkey-9.1,postgres-15,postgres-17,postgres-18

# Modules of tests/integration that depend on the behaviour of Redis and Postgres.
core=(cluster crash_points database_failures dead_letters direct_copy group_binding growth hash_partitions incidents
    least_privilege likesctl migrations overload partial_writes pipeline recovery redis_ack redis_errors sentinels table
    trimming)

mkdir -p "$folder"
summary=()
status=0
IFS=, read -ra servers <<<"${SERVERS:-$all}"
for server in "${servers[@]}"; do
    if ! variable=$("$here/server.sh" "$server" "$folder"); then
        [[ ,$all, == *,$server,* ]] || exit 2
        summary+=("$server: left out")
        continue
    fi
    printf '== %s (%s)\n' "$server" "$variable"
    if env "$variable" "$@" "${core[@]/%/::}"; then
        summary+=("$server: passed")
    else
        summary+=("$server: FAILED")
        status=1
    fi
done
printf '%s\n' '== summary' "${summary[@]}"
exit "$status"
